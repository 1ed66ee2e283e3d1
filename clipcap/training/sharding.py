"""Training with FSDP, as `accelerate launch --use_fsdp` asks for it: each process keeps a share of every weight.

So are gradients and the optimizer's moments: 16 bytes for each parameter that trains are divided among the processes.
What evaluates and saves needs whole weights, and takes them from a copy, for which every process has 4 bytes for each
parameter besides.
"""

from __future__ import annotations

import copy
import os

import torch
from torch.distributed.tensor import DTensor

from clipcap.errors import UserError
from clipcap.model.clipcap import ClipCap

FLAGS = {"fsdp_version": "2", "fsdp_state_dict_type": "FULL_STATE_DICT", "fsdp_cpu_ram_efficient_loading": "false"}


def asks_for_fsdp() -> bool:
    """Whether the launcher of this process does."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check_sharding() -> None:
    """Raise a UserError where the launcher asks for FSDP in a way in which the state could not be read everywhere."""
    if not asks_for_fsdp():
        return
    for flag, needed in FLAGS.items():
        given = os.environ.get(flag.upper(), "")
        if given.lower() != needed.lower():
            flags = " ".join(f"--{flag} {value}" for flag, value in FLAGS.items())
            raise UserError(f"--{flag} of accelerate launch must be {needed}, not {given!r}: give --use_fsdp {flags}")


class WholeModel:
    """A model with all of its weights, wherever those that train are sharded.

    Args:
        model: that trains; made before it is sharded.
        sharded: whether it will be.
    """

    def __init__(self, model: ClipCap, sharded: bool) -> None:
        self.model, self.copy = model, copy.deepcopy(model) if sharded else model

    @torch.no_grad()
    def __call__(self) -> ClipCap:
        """The model as it is now. Where it is sharded, all processes must ask for it together."""
        if self.copy is not self.model:
            device = self.model.device
            weights = self.copy.to(device).state_dict()
            for name, share in self.model.state_dict().items():
                weights[name].copy_(share.full_tensor() if isinstance(share, DTensor) else share)
            self.copy.train(self.model.training)
        return self.copy
