"""What is asked of tensors from a file before anything is built of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clipcap.errors import UserError

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NAME = re.compile(r"[\w.]{1,200}", re.ASCII)
Model = TypeVar("Model")
RANDOM = {
    *(nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_, Tensor.normal_, Tensor.uniform_),
    *(nn.init.kaiming_normal_, nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.xavier_uniform_),
}


def check_plain(tensors: Mapping[Any, Any], most_bytes: int) -> None:
    """Raise a UserError unless these are named tensors of plain floating-point numbers.

    Args:
        tensors: as they were read from a file.
        most_bytes: how much they may take together. A tensor can claim more numbers than its file holds.
    """
    total = 0
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UserError(f"{str(name)[:80]!r} is no name of a tensor: the file is damaged")
        if type(tensor) not in (Tensor, nn.Parameter):
            raise UserError(f"{name} is a {type(tensor).__name__}, not a tensor")
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
        dense = dense and not tensor.is_neg() and not tensor.is_conj()
        if not dense or tensor.dtype not in FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.") if dense else "sparse, nested, negated or meta"
            raise UserError(f"{name} is {kind}, and weights are dense tensors of floating-point numbers: save them so")
        total += tensor.numel() * tensor.element_size()
    if total > most_bytes:
        raise UserError(f"its tensors claim {total:,} bytes, more than the file holds: it is damaged")


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise a UserError that names the first tensor with NaN or infinite numbers in it."""
    if name := _not_finite(tensors):
        raise UserError(f"{name} holds NaN or infinite numbers, so its training failed: use other weights")


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    for name, tensor in tensors.items():
        # Ten times as quick as `isfinite` of every number: a NaN becomes both the smallest and the largest.
        numbers = tensor.is_floating_point() and tensor.numel()
        if numbers and not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
            return name
    return None


def convert(model: Model, dtype: torch.dtype, device: torch.device | str | None = None) -> Model:
    """A model with finite weights in another dtype and, if one is given, on another device; it is changed in place.

    Raises:
        UserError: a weight is beyond the range of fp16.
    """
    module: Any = model  # open_clip's carry no types
    module.to(device=device, dtype=dtype)
    if dtype == torch.float16 and (name := _not_finite(dict(module.named_parameters()))):
        raise UserError(f"{name} holds a number beyond {torch.finfo(dtype).max:.0f}, where fp16 ends: use fp32")
    return model


def check_room(model: nn.Module, weights: Path) -> None:
    """Raise a UserError if a model, built without numbers, has more of them than the file of its weights has bytes."""
    numbers, size = sum(part.numel() for part in (*model.parameters(), *model.buffers())), weights.stat().st_size
    if numbers > size:
        raise UserError(f"the model has {numbers:,} numbers, and the file of its weights has {size:,} bytes")


def uninitialised(make: Callable[[], Model]) -> Model:
    """The model that `make` builds, without the random numbers that a file of weights will replace: a second's work."""
    with _Uninitialised():
        return make()


class NotResized(TorchFunctionMode):
    """Inside, positions of another number than the model's are refused: open_clip would resize them without a word."""

    def __torch_function__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is nn.functional.interpolate:
            raise UserError(
                f"its positions are {list(args[0].shape[2:])}, and the model's {kwargs['size']}: it belongs to a "
                "model for images or texts of another size"
            )
        return function(*args, **kwargs)


class _Uninitialised(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in RANDOM:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
