"""CUDA graphs: a step's hundreds of kernels are launched at once instead of one by one from Python.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from clipcap.errors import first_line


def captures(device: torch.device) -> bool:
    """Whether steps are captured here."""
    return device.type == "cuda"


def capture(run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """A function that does what `run` does, on the same memory, and returns the same tensor at every call.

    What `run` reads and writes must stay where it is, and nothing in it may depend on values that Python holds. It is
    run once here, so whatever it changes must be set afterwards.
    """
    try:
        with torch.cuda.device(device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                run()  # libraries choose kernels and allocate their workspaces
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
