"""Where to compute and in which precision: chosen once, here.

    python -m clipcap.devices

prints what was chosen and which versions are installed: what a report of an error needs to say.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, TypeVar

from clipcap.cli.processes import on_this_machine
from clipcap.errors import UserError, first_line, is_out_of_memory

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # what options call them: what torch does
PRECISIONS = ("auto", *DTYPES)
BF16 = (8, 0)  # the first generation of NVIDIA's GPUs that multiplies it, Ampere
CAPTIONING = (*PRECISIONS, "int8")  # what captions; int8 is too coarse to train, and to keep embeddings
REPORTED = ("torch", "transformers", "open_clip_torch", "peft", "accelerate", "datasets", "pillow")


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """CUDA where there is one, else Apple's GPU ("mps"), else the CPU; or the device that is named.

    Where a launcher started several processes on this machine, each has the GPU of its own number, if none is named.
    Where the GPU cannot add two numbers, as where this PyTorch has no kernels for it, "auto" says so and takes the CPU.

    Raises:
        UserError: the device that is named cannot be used; or the GPU is full, and a CPU would take days instead.
    """
    import torch

    number, processes = on_this_machine()
    own = f"cuda:{number % torch.cuda.device_count()}" if processes > 1 and torch.cuda.is_available() else "cuda"
    if str(device) != "auto":
        chosen = own if str(device) == "cuda" else device
        if reason := _fails(chosen):
            raise UserError(f"device {str(device)!r} cannot be used here ({reason}); try --device auto or cpu")
        return torch.device(chosen)
    gpu = own if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if reason := _fails(gpu):
        tell_once(
            f"the GPU {gpu} cannot be used ({reason}), so the CPU is; install a PyTorch that is made for this GPU"
        )
        return torch.device("cpu")
    return torch.device(gpu)


def _fails(device: str | torch.device) -> str | None:
    """Why a device cannot be used, None if it can. Raises UserError where it could be, if others did not use it."""
    import torch

    try:
        (torch.zeros(1, device=torch.device(device)) + 1).item()  # one without memory, such as "meta", can do less
    except (RuntimeError, AssertionError, TypeError) as error:
        if is_out_of_memory(error) or "busy or unavailable" in str(error):
            raise UserError(
                f"the GPU {device} is in use ({first_line(error)}): end what uses it, wait, or give --device cpu"
            ) from None
        return first_line(error)
    return None


@cache
def tell_once(sentence: str) -> None:
    """Say something on stderr, once."""
    print(sentence, file=sys.stderr)


def pick_dtype(precision: str, device: torch.device, fast: bool = True) -> torch.dtype:
    """The dtype of the weights. "auto" is bf16 where the device multiplies it fast, else fp16 on CUDA, fp32 elsewhere.

    A CPU needs AVX-512 BF16 or AMX for bf16: elsewhere it is emulated and slower than fp32. CUDA devices that lack it,
    such as the T4, have tensor cores for fp16 and none for fp32. "int8" is for linear layers on a CPU, computed by
    `clipcap.fast`; what is no linear layer has the dtype of "auto".
    """
    import torch

    if precision not in CAPTIONING:
        raise UserError(f"unknown precision {precision!r}; choose one of {', '.join(CAPTIONING)}")
    if precision == "int8" and device.type != "cpu":
        raise UserError(f"int8 is for CPUs, and the device is {device}: take another precision, or the device cpu")
    if precision == "int8" and not fast:
        raise UserError("int8 is computed by clipcap/fast: leave out --no-fast (fast=False), or take another precision")
    if precision not in ("auto", "int8"):
        return getattr(torch, DTYPES[precision])
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= BF16 else torch.float16
    return torch.bfloat16 if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else torch.float32


def precision_of(dtype: torch.dtype) -> str:
    """What options call a dtype: "fp32", "bf16" or "fp16"."""
    return next(name for name, value in DTYPES.items() if str(dtype) == f"torch.{value}")


@contextmanager
def single_threaded() -> Iterator[None]:
    """Have PyTorch compute in this thread alone, so that the thread may live on: see `in_own_thread`."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_own_thread(work: Callable[[], T]) -> T:
    """Do work of PyTorch in a thread that ends with it; gives what the work returns, and raises what it raises.

    GNU OpenMP, which is PyTorch's on Linux, keeps threads for every thread that has computed, as long as that one
    lives. Once all of them are more than the cores, they sleep after every operator: on two cores, captions in a second
    thread took twice the time.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


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
    except UserError as error:  # a launcher that says only in part how many processes there are
        lines["device"] = f"none: {error}"
    for name, value in lines.items():
        print(f"{name:<16}{value}")


def _chosen() -> dict[str, str]:
    import torch

    device = pick_device()
    chosen = {
        "device": str(device),
        "precision": precision_of(pick_dtype("auto", device)),
        "threads": str(torch.get_num_threads()),
    }
    if device.type == "cuda":
        chosen["GPU"] = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return chosen


if __name__ == "__main__":
    main()
