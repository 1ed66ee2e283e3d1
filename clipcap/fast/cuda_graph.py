"""CUDA graphs: the hundreds of kernels of a step are launched at once instead of one by one from Python.

What it buys was never measured: it has not run on a GPU yet, only on a stand-in that records a step and repeats it.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from clipcap.errors import first_line


def captures(device: torch.device) -> bool:
    """Whether steps are captured on this device."""
    return device.type == "cuda"


def capture(run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """A function that does what `run` does, on the same memory, and returns the same tensor at every call.

    The tensors that `run` reads and writes must stay where they are, and nothing in it may depend on values that Python
    holds. `run` is called here once, so whatever it changes must be set again afterwards. Where it cannot be captured,
    a warning says so and `run` itself comes back.

    Raises:
        torch.OutOfMemoryError: the device's memory does not suffice.
    """
    try:
        with torch.cuda.device(device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                run()  # lets the libraries choose kernels and allocate workspaces, which a capture cannot record
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = run()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = first_line(error)
        warnings.warn(f"the decoding step cannot be captured as a CUDA graph ({reason}); it runs slower", stacklevel=2)
        return run

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
