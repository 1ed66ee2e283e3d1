"""A run on disk: its progress, the state from which it is resumed, and the record that its weights carry."""

from __future__ import annotations

import json
import math
import pickle
import platform
import resource
import shutil
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from clipcap.errors import UserError, first_line
from clipcap.model.clipcap import ClipCap

RUN = "run.json"  # the file in a state that says what must be the same for a run to be resumed from it


@dataclass
class Progress:
    """How far a run has come; saved and loaded with its state.

    Attributes:
        step: optimizer steps taken.
        best: the lowest validation loss so far, in nats.
        seconds: time spent in training steps.
        window: summed loss of the steps since the last row of metrics; a tensor while it grows on the device.
        window_steps: how many steps these are.
        rows: the rows of metrics.jsonl.
        samples: the rows of samples.jsonl.
    """

    step: int = 0
    best: float = math.inf
    seconds: float = 0.0
    window: float | Tensor = 0.0
    window_steps: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, loss: Tensor) -> None:
        """Count a step and add its loss on the device: reading it would mean waiting for the device at every step."""
        self.step += 1
        self.window = self.window + loss
        self.window_steps += 1

    def mean_loss(self) -> float:
        """The mean loss of the steps since the last call."""
        mean = float(self.window) / self.window_steps
        self.window, self.window_steps = 0.0, 0
        return mean

    def state_dict(self) -> dict[str, Any]:
        """The progress as plain values, which `accelerate` saves."""
        return {**vars(self), "window": float(self.window)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the values that `state_dict` gave."""
        vars(self).update(state)


class State:
    """The folder from which a run is resumed, to reach the same weights as a run that was never interrupted.

    It holds the present weights (not the best ones), the optimizer's moments, the learning-rate schedule, the states of
    the random generators of every process, the progress, and in `run.json` the values that must be the same to resume.

    Args:
        accelerator: has everything registered that belongs to a state.
        folder: the run's output folder.
        identity: the values that must be the same for a run to be resumed, by name.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, identity: dict[str, Any]) -> None:
        self.accelerator, self.folder, self.identity = accelerator, folder, identity

    def clear(self) -> None:
        """Delete the state of an earlier run."""
        for name in ("state", "state.old", "state.new"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def save(self) -> None:
        """Write the state under another name, then let it take the place of the last one.

        A folder cannot be replaced in one step, so the last state is renamed first. Whenever the run is killed, there
        is a complete state named `state` or `state.old`, and `load` looks for them in this order.
        """
        new, state, old = (self.folder / name for name in ("state.new", "state", "state.old"))
        self.accelerator.save_state(str(new), safe_serialization=False)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (new / RUN).write_text(json.dumps(self.identity))
            shutil.rmtree(old, ignore_errors=True)
            if state.exists():
                state.rename(old)
            new.rename(state)
            shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def load(self) -> None:
        """Restore the last state; if there is none, say so and leave everything as it is.

        Raises:
            UserError: the state belongs to another run, or it is damaged.
        """
        for state in (self.folder / "state", self.folder / "state.old"):
            if state.is_dir():
                self._check_same_run(state)
                try:
                    self.accelerator.load_state(str(state))
                except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
                    raise UserError(
                        f"the state in {state} is damaged or of another model ({first_line(error)}): "
                        "start anew without --resume"
                    ) from None
                return
        print(f"no state in {self.folder} yet: starting from the beginning", file=sys.stderr)

    def _check_same_run(self, state: Path) -> None:
        run = state / RUN
        begun = json.loads(run.read_text()) if run.is_file() else {}
        for name, value in self.identity.items():
            if begun.get(name) != value:
                told = "" if isinstance(value, list) else f" ({begun.get(name)}, not {value})"
                raise UserError(
                    f"the run in {self.folder} was started with other {name}{told}: give the same to --resume it, or "
                    "start anew without --resume"
                )


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
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
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
