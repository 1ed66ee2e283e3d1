"""What a restored state must look like: torch takes over whatever a file says, and its kernels believe it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from clipcap.training.progress import Progress, is_number, require

NUMBERS = ("lr", "initial_lr", "weight_decay", "eps")  # of a parameter group; the other values never change
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}


class Whole:
    """The shape of a run's optimizer, schedule and progress, taken before a state is restored into them.

    Args:
        optimizer, schedule, progress: those of the run.
        steps: how many steps the whole run has.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        progress: Progress,
        steps: int,
    ) -> None:
        self.optimizer, self.schedule, self.progress, self.steps = optimizer, schedule, progress, steps
        self.groups = [without_parameters(group) for group in optimizer.param_groups]
        self.attributes = {name: type(value) for name, value in vars(schedule).items()}

    def check(self) -> None:
        """Raise ValueError, or what damaged values raise themselves, unless everything restored has its shape."""
        self._check_optimizer()
        self._check_schedule()
        self.progress.check(self.steps)

    def _check_optimizer(self) -> None:
        """The fused kernels read and write as many numbers as the parameter has, however few the moments have."""
        for group, before in zip(self.optimizer.param_groups, self.groups, strict=True):
            now = without_parameters(group)
            require(now.keys() == before.keys(), "the optimizer has other options")
            for name, value in now.items():
                if name in NUMBERS:
                    require(is_number(value), f"the optimizer's {name} is no number")
                elif name == "betas":
                    betas = len(value) == 2 and all(is_number(beta) and 0 <= beta < 1 for beta in value)
                    require(betas, "the optimizer's betas are out of range")
                else:
                    same = type(value) is type(before[name]) and value == before[name]
                    require(same, f"the optimizer's {name} is another")
        parameters = {parameter for group in self.optimizer.param_groups for parameter in group["params"]}
        require(self.optimizer.state.keys() <= parameters, "the optimizer has moments of no parameter")
        require(bool(self.optimizer.state) or not self.progress.step, "the optimizer has no moments")
        for parameter, moments in self.optimizer.state.items():
            require(moments.keys() == MOMENTS, "the optimizer has other moments")
            step = moments["step"]
            counted = isinstance(step, Tensor) and step.shape == () and 0 <= float(step) < math.inf
            require(counted, "the optimizer has counted no steps")
            like = torch.empty_like(parameter, device="meta")  # with the strides that torch gives moments
            for name in ("exp_avg", "exp_avg_sq"):
                moment = moments[name]
                fits = isinstance(moment, Tensor) and moment.layout is torch.strided and moment.dtype == like.dtype
                fits = fits and moment.shape == like.shape and moment.stride() == like.stride()
                require(fits, "the optimizer has moments of another shape than the parameters")

    def _check_schedule(self) -> None:
        found = {name: type(value) for name, value in vars(self.schedule).items()}
        require(found == self.attributes, "the schedule is another")
        for name in ("last_epoch", "_step_count"):
            require(getattr(self.schedule, name) >= 0, f"the schedule's {name} is negative")
        for name in ("base_lrs", "_last_lr"):
            rates = getattr(self.schedule, name)
            require(len(rates) == len(self.groups) and all(map(is_number, rates)), f"the schedule's {name} is no rate")


def without_parameters(group: dict[str, Any]) -> dict[str, Any]:
    """The options of a parameter group."""
    return {name: value for name, value in group.items() if name != "params"}
