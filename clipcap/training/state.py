"""A run on disk: how far it has come, the state from which it goes on, and what its weights remember of it."""

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

RUN = "run.json"  # in a state: what must be the same for a run to go on from it


@dataclass
class Progress:
    """How far a run has come; saved and loaded with its state."""

    step: int = 0
    best: float = math.inf
    seconds: float = 0.0
    window: float | Tensor = 0.0  # summed loss of the steps since the last row; a tensor while it grows on the device
    window_steps: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, loss: Tensor) -> None:
        """Count a step. Its loss is summed where it lies: reading it would make the device wait after every step."""
        self.step += 1
        self.window = self.window + loss
        self.window_steps += 1

    def mean_loss(self) -> float:
        """The mean loss of the steps since it was last asked for."""
        mean = float(self.window) / self.window_steps
        self.window, self.window_steps = 0.0, 0
        return mean

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for `accelerate`."""
        return {**vars(self), "window": float(self.window)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        vars(self).update(state)


class State:
    """The folder from which a run goes on to the same weights as one that was never interrupted.

    It holds the trained weights as they are (not the best ones), the optimizer's moments, the learning rate's schedule,
    the random numbers' states of every process, the progress, and in `run.json` what must be the same to go on.

    Args:
        accelerator: with everything registered that a state is made of.
        folder: the run's output folder.
        identity: what must be the same for a run to go on, by name.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, identity: dict[str, Any]) -> None:
        self.accelerator, self.folder, self.identity = accelerator, folder, identity

    def clear(self) -> None:
        """Forget an earlier run."""
        for name in ("state", "state.old", "state.new"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def save(self) -> None:
        """Write the state under another name, then let it take the place of the last one.

        A folder cannot be replaced in one step, so the last state steps aside first: whenever the run is killed, one
        complete state stands under `state` or `state.old`, and `load` looks in this order.
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
        """Go on from the last state; without one, from the beginning, with a message.

        Raises:
            UserError: the state is of another run, or damaged.
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
                told = "" if isinstance(value, list) else f" {begun.get(name)}, not {value}"
                raise UserError(f"{self.folder} was begun with other {name}{told}: use the same to --resume")


def run_record(model: ClipCap, strategy: str, progress: Progress, epochs: float, validation: float) -> dict[str, Any]:
    """What weights remember of how they were trained: cost, losses, versions. Plain values."""
    device = model.device
    parameters = [p for n, p in model.named_parameters() if not n.startswith("literal_captioner.")]
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
