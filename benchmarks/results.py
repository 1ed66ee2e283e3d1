"""What was measured, as JSON and as a page to read. No figure in it is typed in."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.machine import Limits, Work
from benchmarks.timing import Measurement
from clipcap.errors import UserError

REFERENCES = ("published with CLIP", "published", "alternative")  # what "ours" is compared with


@dataclass
class Results:
    """One run.

    Attributes:
        device: "cpu" or "cuda".
        models: their name.
        machine: see `machine.describe`.
        limits: measured peaks.
        rounds: of every comparison.
        quick: whether little was measured.
        photos: how many different ones, and how large, in words.
        measurements: by title.
        memory: task -> peak bytes.
        predict_memory: number of photos -> peak bytes of predict.py.
        runs: of the command that measured all of it, on the same machine.
    """

    device: str
    models: str
    machine: dict[str, str]
    limits: Limits
    rounds: int
    quick: bool
    photos: str = ""
    measurements: dict[str, Measurement] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    predict_memory: dict[int, int] = field(default_factory=dict)
    runs: int = 1

    def limit(self, measurement: Measurement, name: str) -> float | None:
        """Items per second that the machine allows a contender; None where its work is not known."""
        work = measurement.work.get(name)
        return work and 1 / self.limits.seconds(work)

    def as_json(self) -> str:
        values = asdict(self)
        rates = {str(dtype).removeprefix("torch."): rate for dtype, rate in self.limits.operations.items()}
        values["limits"] = {"operations_per_second": rates, "bytes_per_second": self.limits.bandwidth}
        return json.dumps(values, indent=1, default=str) + "\n"


def add_to(page: Path, new: Results) -> Results:
    """What an earlier run wrote, for a new one to go on with.

    Raises:
        UserError: there is nothing, or it was measured otherwise or on another machine.
    """
    file = page.with_suffix(".json")
    if not file.is_file():
        raise UserError(f"there is no {file} to add to: leave out --add")
    values = json.loads(file.read_text(encoding="utf-8"))
    for name in ("device", "models", "machine", "rounds", "quick"):
        if values[name] != getattr(new, name):
            raise UserError(f"{file} was measured with other {name}: leave out --add to begin anew")
    for found in values["measurements"].values():
        works = found["work"].items()
        found["work"] = {name: Work(**(work | {"dtype": _dtype(work["dtype"])})) for name, work in works}
    limits = values["limits"]
    operations = {_dtype(name): rate for name, rate in limits["operations_per_second"].items()}
    return Results(
        **{name: values[name] for name in ("device", "models", "machine", "rounds", "quick", "photos", "memory")},
        limits=Limits(operations, limits["bytes_per_second"]).best(new.limits),
        measurements={title: Measurement(**found) for title, found in values["measurements"].items()},
        predict_memory={int(count): size for count, size in values["predict_memory"].items()},
        runs=values["runs"] + 1,
    )


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name.removeprefix("torch."))


def write(results: Results, page: Path) -> None:
    """Write the page and, beside it, the same as JSON with every single round."""
    page.with_suffix(".json").write_text(results.as_json(), encoding="utf-8")
    page.write_text("\n".join(_page(results)), encoding="utf-8")


def _page(results: Results) -> Iterable[str]:
    yield "# Speed and memory\n"
    run = "that run" if results.runs == 1 else f"{results.runs} runs (--add) on this machine"
    yield (
        f"Written by `python -m benchmarks{' --quick' if results.quick else ''}`; every figure was measured in {run}, "
        f"on {results.models}, with random weights and no stop token. Contenders took turns in one process; rates are "
        f"medians of {results.rounds} rounds, ratios medians of each round's ratio.\n"
    )
    yield "- **ours**: this project, in the precision that it chooses (bf16 where the device multiplies it fast)."
    yield (
        "- **published**: the published algorithm (`published.py`): fp32, one image at a time, no key-value cache; "
        "training pads to 77 tokens. Measured on the few items per round in brackets, and compared as a rate."
    )
    yield (
        "- **alternative**: open_clip and Hugging Face `generate` in the same precision as ours, in batches of 32 or "
        "as given (`alternative.py`).\n"
    )
    yield from _machine(results)
    yield from _targets(results)
    measurements = results.measurements.values()
    for group in dict.fromkeys(measurement.group for measurement in measurements):
        yield from _rates(results, group, [measurement for measurement in measurements if measurement.group == group])
    yield from _memory(results)


def _machine(results: Results) -> Iterable[str]:
    peaks = results.limits.operations
    yield "## Machine\n\n| | |\n|---|---|"
    yield from (f"| {name} | {value} |" for name, value in results.machine.items())
    yield f"| matrix products, measured | fp32 {_rate(peaks[torch.float32])}, bf16 {_rate(peaks[torch.bfloat16])} |"
    yield f"| memory, measured | {results.limits.bandwidth / 1e9:.1f} GB/s |"
    yield f"| photos | {results.photos} |\n"


def _rate(operations: float) -> str:
    return f"{operations / 1e12:.2f} Tflop/s"


def _targets(results: Results) -> Iterable[str]:
    from benchmarks.targets import targets

    rows = []
    for target in targets(results.device):
        aim, value = target.aim(results.device), target.value(results)
        if aim is None or value is None:
            continue
        word = "met" if target.met(value, results.device) else "**MISSED**"
        rows.append(
            f"| {target.what} | {'at most' if target.most else 'at least'} {target.show(aim)} | {target.show(value)} "
            f"| {word} | {target.reason(results)} |"
        )
    if rows:
        yield "## Targets\n\n| what | target | measured | | what this machine allows |\n|---|---|---|---|---|"
        yield from rows
        yield (
            "\nA machine allows what the products with weights alone would take at its peak, measured above, in the "
            "precision of ours, or what reading the weights takes where that is longer. Where that is less than the "
            "target, no code reaches the target here. How much of its time ours spends in these products is read from "
            "the profile of a further turn; the rest is photos, attention, choosing tokens, the optimizer, and so on.\n"
        )


def _rates(results: Results, title: str, measurements: list[Measurement]) -> Iterable[str]:
    yield f"## {title}\n\n| | per second | ratio | share of the limit |\n|---|---|---|---|"
    for measurement in measurements:
        names = list(measurement.rates)
        rates = ", ".join(f"{name} **{measurement.rate(name):.3g}** ({measurement.items[name]})" for name in names)
        references = [name for name in (REFERENCES if "ours" in names else names[:1]) if name in names]
        fast = ["ours"] if "ours" in names else names[1:]
        ratios = ", ".join(f"{measurement.ratio(a, b):.1f}x {b}" for a in fast for b in references)
        if "ours" not in names:
            ratios = ", ".join(f"{a} {measurement.ratio(a, names[0]):.2f}x {names[0]}" for a in fast)
        shares = ", ".join(
            f"{'' if name == 'ours' else name + ' '}{measurement.rate(name) / limit:.0%} of {limit:.3g}"
            for name in measurement.work
            if (limit := results.limit(measurement, name))
        )
        yield f"| {measurement.title}, {measurement.unit} | {rates} | {ratios} | {shares} |"
        yield from (f"| | {note} | | |" for note in measurement.notes)
    yield (
        "\nIn brackets: items per round. The limit is that of the products with weights at the measured peak, or of "
        "reading the weights at the measured bandwidth where that takes longer; all else comes on top.\n"
    )


def _memory(results: Results) -> Iterable[str]:
    if results.memory:
        kind = "allocated on the GPU" if results.device == "cuda" else "resident while it works, libraries included"
        yield f"## Peak memory\n\nEach in a process of its own; {kind}.\n\n| | GiB |\n|---|---|"
        yield from (f"| {task} | {size / 2**30:.2f} |" for task, size in results.memory.items())
        yield ""
    if results.predict_memory:
        yield "| `predict.py` with its workers, tiny weights | MiB |\n|---|---|"
        yield from (f"| {count} photos | {size / 2**20:.0f} |" for count, size in results.predict_memory.items())
        yield ""
