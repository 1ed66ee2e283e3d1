"""Where to compute and in which precision: chosen once, here.

    python -m clipcap.devices

prints what was chosen and which versions are installed: what a report of an error needs to say.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from clipcap.cli.processes import on_this_machine
from clipcap.errors import UserError, first_line

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "fp32", "bf16")
CAPTIONING = (*PRECISIONS, "int8")  # what captions; int8 is too coarse to train, and to keep embeddings
REPORTED = ("torch", "transformers", "open_clip_torch", "peft", "accelerate", "datasets", "pillow")


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """CUDA where there is one, else the CPU; or the device that is named.

    Where a launcher started several processes on this machine, each has the GPU of its own number, unless it is named.
    """
    import torch

    number, processes = on_this_machine()
    own = f"cuda:{number % torch.cuda.device_count()}" if processes > 1 and torch.cuda.is_available() else "cuda"
    if str(device) == "auto":
        return torch.device(own if torch.cuda.is_available() else "cpu")
    if str(device) == "cuda":
        device = own
    try:
        chosen = torch.device(device)
        (torch.zeros(1, device=chosen) + 1).item()  # a device without memory, such as "meta", can do less
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UserError(
            f"device {str(device)!r} cannot be used here ({first_line(error)}); try --device auto or cpu"
        ) from None
    return chosen


def pick_dtype(precision: str, device: torch.device, fast: bool = True) -> torch.dtype:
    """The dtype of the weights. "auto" is bf16 where the device multiplies it fast, else fp32.

    A CPU needs AVX-512 BF16 or AMX for that: elsewhere bf16 is emulated and slower than fp32. "int8" is for linear
    layers on a CPU, computed by `clipcap.fast`; what is no linear layer has the dtype of "auto".
    """
    import torch

    if precision not in CAPTIONING:
        raise UserError(f"unknown precision {precision!r}; choose one of {', '.join(CAPTIONING)}")
    if precision == "int8" and device.type != "cpu":
        raise UserError(f"int8 is for CPUs, and the device is {device}: take another precision, or the device cpu")
    if precision == "int8" and not fast:
        raise UserError("int8 is computed by clipcap/fast: leave out --no-fast (fast=False), or take another precision")
    if precision not in ("auto", "int8"):
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def main(argv: Sequence[str] | None = None) -> None:
    """Print the versions, then the device and the precision that "auto" picks; a part that is missing is named so."""
    lines = {"python": platform.python_version(), "system": platform.platform()}
    for package in REPORTED:
        try:
            lines[package] = version(package)
        except PackageNotFoundError:
            lines[package] = "not installed"
    try:
        lines |= _chosen()
    except (ImportError, OSError) as error:  # a torch that does not load is what some reports are about
        lines["device"] = f"none: torch cannot be imported ({first_line(error)})"
    for name, value in lines.items():
        print(f"{name:<16}{value}")


def _chosen() -> dict[str, str]:
    import torch

    device = pick_device()
    chosen = {
        "device": str(device),
        "precision": "bf16" if pick_dtype("auto", device) == torch.bfloat16 else "fp32",
        "threads": str(torch.get_num_threads()),
    }
    if device.type == "cuda":
        chosen["GPU"] = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return chosen


if __name__ == "__main__":
    main()
