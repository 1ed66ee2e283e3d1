"""Contenders that run by turns, so that whatever slows the machine slows all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import Work, synchronize

PRODUCTS = {  # what multiplies with weights
    *("aten::mm", "aten::addmm", "aten::addmm_", "mkldnn::_linear_pointwise"),
    "quantized::linear_with_input_q_dq_qweight_dq_output_fp32",
}


@dataclass
class Contender:
    """One way to do the work.

    Attributes:
        name: among the contenders of a comparison.
        run: does that many items.
        items: done in each round; a slow contender gets few, and rates are compared.
        work: the arithmetic and memory traffic that one item cannot do without, where that is known.
        warm_up: items done before the first round; on a GPU, which prepares for shapes, those of a round.
    """

    name: str
    run: Callable[[int], object]
    items: int
    work: Work | None = None
    warm_up: int = 1


@dataclass
class Measurement:
    """What a comparison found: items per second of every contender, round by round.

    Attributes:
        work: of the contenders of which it is known.
        products: the share of their time, on a CPU, that products with weights take.
    """

    group: str
    title: str
    unit: str
    rates: dict[str, list[float]]
    items: dict[str, int]
    work: dict[str, Work] = field(default_factory=dict)
    products: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def rate(self, name: str) -> float:
        """Items per second: the median of the rounds."""
        return median(self.rates[name])

    def ratio(self, fast: str, slow: str) -> float:
        """The median over the rounds of one contender's rate against another's in the same round."""
        return median(a / b for a, b in zip(self.rates[fast], self.rates[slow], strict=True))


def alternate(
    group: str,
    title: str,
    unit: str,
    contenders: Sequence[Contender],
    rounds: int,
    device: torch.device,
    advance: Callable[[str], object] = lambda name: None,
    profiled: bool = True,
) -> Measurement:
    """Run the contenders by turns, in opposite order every other round; `advance` is told after each turn.

    Args:
        profiled: whether those of which the work is known get a further turn, with a profile.
    """
    for contender in contenders:
        contender.run(contender.items if device.type == "cuda" else min(contender.warm_up, contender.items))
        advance(contender.name)
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            rates[contender.name].append(contender.items / seconds(contender, device))
            advance(contender.name)
    items = {contender.name: contender.items for contender in contenders}
    found = Measurement(group, title, unit, rates, items)
    for contender in contenders:
        if contender.work:
            found.work[contender.name] = contender.work
            if profiled and device.type == "cpu":
                found.products[contender.name] = share_of_products(contender)
    return found


def share_of_products(contender: Contender) -> float:
    """How much of a further, profiled turn is spent in products with weights."""
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        contender.run(contender.items)
        taken = time.perf_counter() - start
    return sum(op.self_cpu_time_total for op in profiled.key_averages() if op.key in PRODUCTS) / 1e6 / taken


def seconds(contender: Contender, device: torch.device) -> float:
    """How long one turn takes, with all that it started on a GPU."""
    gc.collect()
    synchronize(device)
    start = time.perf_counter()
    contender.run(contender.items)
    synchronize(device)
    return time.perf_counter() - start
