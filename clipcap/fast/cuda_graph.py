"""CUDA graphs: the hundreds of kernels of a step are launched at once instead of one by one from Python.

What it buys was never measured: it has not run on a GPU yet, only on a stand-in that records a step and repeats it.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from threading import RLock

import torch
from torch import Tensor

from clipcap.errors import first_line, is_out_of_memory

# Held while a batch is decoded with captured steps: those of one shape share their memory, and captures a stream.
ONE_THREAD = RLock()
FAILED: set[torch.device] = set()  # where a capture has failed: another one fails too, and may crash in the allocator


def captures(device: torch.device) -> bool:
    """Whether steps are captured on this device."""
    return device.type == "cuda" and device not in FAILED


def capture(run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor] | None:
    """A function that does what `run` does, on the same memory, and returns the same tensor at every call.

    The tensors that `run` reads and writes must stay where they are, and nothing in it may depend on values that Python
    holds. `run` is called here once, so whatever it changes must be set again afterwards. Where it cannot be captured,
    a warning says so, None comes back, and `captures` says no from then on.

    Raises:
        RuntimeError: the device's memory does not suffice (`is_out_of_memory`).
    """
    try:
        with torch.cuda.device(device):
            aside = _stream(device)
            aside.wait_stream(torch.cuda.current_stream())
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(aside):  # left whatever happens; `torch.cuda.graph` stays on it if its end fails
                run()  # lets the libraries choose kernels and allocate workspaces, which a capture cannot record
                # In the "global" mode, memory that another thread pins at this moment would end the capture.
                with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                    result = run()
            torch.cuda.current_stream().wait_stream(aside)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        FAILED.add(device)
        reason = first_line(error)
        warnings.warn(f"the decoding step cannot be captured as a CUDA graph ({reason}); it runs slower", stacklevel=2)
        return None

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all captures: each further one would keep a workspace of cuBLAS, 8 to 32 MB."""
    return torch.cuda.Stream(device)
