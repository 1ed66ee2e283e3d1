"""The record that weights carry of their training."""

from __future__ import annotations

import gc
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from clipcap.errors import UserError
from clipcap.model.clipcap import ClipCap
from clipcap.training.progress import Progress
from clipcap.weights.format import read

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]


def start_peak(device: torch.device) -> None:
    """Forget the peak memory of what this process did before on a GPU; no system forgets that of a process."""
    if device.type == "cuda":
        gc.collect()  # the model before is let go, so that it does not count either
        torch.cuda.reset_peak_memory_stats(device)


def run_record(model: ClipCap, strategy: str, progress: Progress, epochs: float, validation: float) -> dict[str, Any]:
    """The record that weights carry of their training, in plain values: cost, losses, versions.

    Args:
        model: the trained model.
        strategy: its name.
        progress: of the run.
        epochs: how many epochs it has trained.
        validation: the validation loss of these weights, in nats.
    """
    device = model.device
    parameters = [parameter for _, parameter in model.own_parameters()]
    peak = None
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    elif resource:
        kilobytes = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobytes
    return {
        "strategy": strategy,
        "step": progress.step,
        "epochs": epochs,
        "losses": {"validation": validation, "history": list(progress.rows)},
        "seconds": progress.seconds,
        "peak_memory_bytes": peak,
        "device": device.type,
        "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "total_parameters": sum(p.numel() for p in parameters),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "accelerate", "peft")},
    }


def check_best(weights: Path, best: float) -> None:
    """Raise a UserError unless these are weights of a run that has reached this validation loss, or a lower one."""
    if not weights.is_file():
        how = "is gone"
    else:  # a run that was killed between weights and state has weights that are better than its state says
        record = read(weights).get("record")
        losses = record.get("losses") if isinstance(record, dict) else None
        loss = losses.get("validation") if isinstance(losses, dict) else None
        if isinstance(loss, float) and loss <= best:
            return
        how = "is the file of another run"
    raise UserError(
        f"{weights}, the best weights of the run to resume, {how}: put the file back, or start anew without --resume"
    )
