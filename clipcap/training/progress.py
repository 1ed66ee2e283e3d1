"""How far a run has come."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from torch import Tensor

from clipcap.cli.processes import Processes


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

    def share_window(self, processes: Processes) -> None:
        """Let every process have the loss of all: each adds that of its own rows, weighted, see `loader.share`."""
        self.window = fmean(processes.gather(float(self.window)))

    def mean_loss(self, processes: Processes) -> float:
        """The mean loss of the steps since the last call."""
        self.share_window(processes)
        mean = float(self.window) / self.window_steps
        self.window, self.window_steps = 0.0, 0
        return mean

    @property
    def stale(self) -> int:
        """How many evaluations there were since the one with the lowest validation loss; before step 1 none counts."""
        losses = [row["val_loss"] for row in self.rows if "val_loss" in row and row["step"]]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def state_dict(self) -> dict[str, Any]:
        """The progress as plain values, which `accelerate` saves."""
        return {**vars(self), "window": float(self.window)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the values that `state_dict` gave. Raises ValueError for other names."""
        if state.keys() != vars(self).keys():
            raise ValueError("its progress is that of no run")
        vars(self).update(state)

    def check(self, steps: int) -> None:
        """Raise ValueError, or what damaged values raise themselves, unless this is of a run of so many steps."""
        for name, most in (("step", steps), ("window_steps", self.step)):
            count = getattr(self, name)
            require(type(count) is int and 0 <= count <= most, f"its {name} is not one of 0 to {most}")
        for name in ("seconds", "window"):
            value = getattr(self, name)
            require(type(value) is float and math.isfinite(value), f"its {name} is no number")
        require(type(self.best) is float and self.best > -math.inf, "its best loss is no number")
        for name in ("rows", "samples"):
            rows = getattr(self, name)
            require(type(rows) is list and all(type(row) is dict for row in rows), f"its {name} are no rows")
            text = json.dumps(rows, ensure_ascii=False, allow_nan=False).encode()
            require(json.loads(text) == rows, f"its {name} are no plain values")
        for row in self.rows:
            require({"step", "epoch"} <= row.keys() and all(map(is_number, row.values())), "its rows are no metrics")


def require(met: bool, otherwise: str) -> None:
    """Raise ValueError unless a condition is met."""
    if not met:
        raise ValueError(otherwise)


def is_number(value: Any) -> bool:
    """Whether this is a finite number, and no tensor that counts as one."""
    return type(value) in (int, float) and math.isfinite(value)
