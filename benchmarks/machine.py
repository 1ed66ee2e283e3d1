"""The machine: what it is, and how fast it multiplies and reads memory, measured and not looked up."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from clipcap.devices import pick_dtype, precision_of
from clipcap.fast.int8 import Int8Linear

PACKAGES = ("torch", "transformers", "open_clip_torch", "numpy", "pillow", "accelerate", "peft")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "bf16", "sve")
SMALLEST = 256  # side of the first matrix product that is timed


@dataclass(frozen=True)
class Work:
    """What one item cannot do without, whatever the code.

    Attributes:
        operations: multiplications and additions with weights.
        bytes: memory read and written.
        dtype: of the multiplications.
    """

    operations: float
    bytes: float = 0.0
    dtype: torch.dtype = torch.bfloat16

    def __add__(self, other: Work) -> Work:
        """The work of both, in the precision of the first."""
        return Work(self.operations + other.operations, self.bytes + other.bytes, self.dtype)


@dataclass(frozen=True)
class Limits:
    """Measured on this machine: operations per second by dtype, and bytes per second to and from memory."""

    operations: dict[torch.dtype, float]
    bandwidth: float

    def seconds(self, work: Work) -> float:
        """The least time: of the arithmetic at the peak rate or of the memory traffic, whichever takes longer."""
        return max(work.operations / self.operations[work.dtype], work.bytes / self.bandwidth)

    def best(self, other: Limits) -> Limits:
        """The higher of each figure: what slowed one measurement may not have slowed the other."""
        operations = {dtype: max(rate, other.operations[dtype]) for dtype, rate in self.operations.items()}
        return Limits(operations, max(self.bandwidth, other.bandwidth))


def measure_limits(device: torch.device, patience: float = 1.0) -> Limits:
    """The best of several attempts: square matrix products, and copies that fit in no cache.

    Args:
        patience: seconds for the attempts at one size; a slow machine makes fewer of them, and smaller ones.
    """
    size, megabytes = (8192, 2048) if device.type == "cuda" else (2048, 256)
    dtypes = dict.fromkeys((torch.float32, torch.bfloat16, pick_dtype("auto", device)))
    if device.type == "cpu":
        dtypes[torch.int8] = None
    operations = {dtype: _product_rate(dtype, size, device, patience) for dtype in dtypes}
    source = torch.ones(megabytes << 18, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / _best(lambda: target.copy_(source), device, patience)
    return Limits(operations, copied)


def _product_rate(dtype: torch.dtype, size: int, device: torch.device, patience: float) -> float:
    """Operations per second of the best square product, from small ones up to `size`.

    Twice the size takes eight times as long. A CPU without instructions for bf16 would take seconds for one large
    product and is no faster at it than at a small one, so the sizes end where one product would use up the patience.
    """
    rate, side, seconds = 0.0, min(SMALLEST, size), 0.0
    while side <= size and 8 * seconds < patience:
        a, b = torch.rand(2, side, side, device=device)
        if dtype == torch.int8:
            product = partial(Int8Linear(b, None).product, a)
        else:
            product = partial(torch.matmul, a.to(dtype), b.to(dtype))
        seconds = _best(product, device, patience)
        rate = max(rate, 2 * side**3 / seconds)
        side *= 2
    return rate


def _best(run: Callable[[], object], device: torch.device, patience: float, attempts: int = 8) -> float:
    """Seconds of the fastest of several attempts; no more of them once they took `patience` seconds together."""
    times: list[float] = []
    while len(times) < attempts and sum(times) < patience:
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def name_of(dtype: torch.dtype) -> str:
    """What options call the precision of a product."""
    return "int8" if dtype == torch.int8 else precision_of(dtype)


def describe(device: torch.device) -> dict[str, str]:
    """What one needs to know to compare figures; nothing that names the machine."""
    cpu = _proc("/proc/cpuinfo", ":")
    memory = _proc("/proc/meminfo", ":")
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = cpu.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in cpu:
        model += f" (family {cpu['cpu family']}, model {cpu['model']})"
    described = {
        "CPU": f"{model}, {cores} cores",
        "instructions": ", ".join(name for name in INSTRUCTIONS if name in flags) or platform.machine(),
        "threads of torch": str(torch.get_num_threads()),
    }
    if "MemTotal" in memory:
        described["memory"] = f"{int(memory['MemTotal'].split()[0]) / 2**20:.0f} GiB"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described["GPU"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    described["system"] = f"{platform.system()}, Python {platform.python_version()}"
    return described | {"packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES)}


def _proc(file: str, separator: str) -> dict[str, str]:
    """The first value of every key in a file of the proc file system; empty where there is none."""
    if not Path(file).is_file():
        return {}
    pairs = (line.split(separator, 1) for line in Path(file).read_text().splitlines() if separator in line)
    found: dict[str, str] = {}
    for key, value in pairs:
        found.setdefault(key.strip(), value.strip())
    return found
