"""Linear layers in int8 for captioning on a CPU: a quarter of the memory traffic of fp32, and integer arithmetic.

Every row of the weight has a scale of its own, and so has every row of the input, which makes a row's result
independent of the rest of its batch. In a whole model that holds up to near ties: what stays in fp32 differs between
batches by 1e-7, and where that rounds an input to the next integer, logits differ by some hundredths. What computes it
fast are private operators of PyTorch on fbgemm. Where they are missing, the same integers are multiplied in fp32, which
is no faster.

What it buys, measured by turns with fp32 on full-size models, 2 cores with AVX2: decoding is 2.2 times as fast at
batches 1 and 8, 1.8 times at batch 32 and 1.6 times at batch 128; ViT-B/32 is 1.9 times as fast at batch 1 and 1.3
times at batch 16. On 1 core torchao 0.18 took 4 to 20 times as long as fp32 (`Int8DynamicActivationInt8WeightConfig`,
768 to 3072 numbers, batches of 1 to 128).

Shapes: in and out are the widths of a layer's input and output; "..." stands for any dimensions.
"""

from __future__ import annotations

import ctypes
import warnings
from contextlib import suppress
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipcap.errors import UserError

LEVELS = 127  # the largest integer, of both signs
ZERO = 128  # what stands for 0 in fbgemm's unsigned inputs
ROWS = 4096  # of a weight are quantised at a time, so that a large one needs little memory on the way
SMALLEST = 1e-20  # a row of zeros is divided by this


class Int8Linear(nn.Module):
    """The same as `nn.Linear` up to the rounding of weights and inputs to int8. It can neither train nor be saved.

    Args:
        weight: (out, in), not kept.
        bias: (out,), if there is one.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.training, self.smallest = False, SMALLEST
        if not operators_work():
            warnings.warn("this PyTorch has no fast int8 for this CPU: it is emulated, and no faster", stacklevel=2)
        self.product = (PackedInt8 if operators_work() else Emulated)(*quantize(weight))
        self.bias = None if bias is None else bias.detach().float().clone()  # no view of a file, which would stay open

    def forward(self, x: Tensor) -> Tensor:
        """Input (..., in) -> output (..., out), in the dtype of x. Where x is not finite, the whole row is not.

        Raises UserError where a gradient is asked for.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise UserError(
                "a model in int8 has no gradients: call it under torch.no_grad(), or load it in another precision"
            )
        exact = x.float()
        sizes = exact.abs()  # written over below, as y is: fresh memory takes up to a fifth of the time of many rows
        largest = sizes.amax(-1, keepdim=True).clamp_min_(self.smallest)  # vector_norm takes ten times as long
        y = self.product(torch.div(exact, largest, out=sizes))
        y = y.mul_(largest) if self.bias is None else torch.addcmul(self.bias, y, largest, out=y)
        return y.to(x.dtype)

    def train(self, mode: bool = True) -> Int8Linear:
        """Raises UserError for training mode."""
        return _refuse() if mode else self

    def _save_to_state_dict(self, *_: object) -> None:
        _refuse()


def _refuse() -> Int8Linear:
    raise UserError("a model in int8 can only caption: load the weights in another precision to train or save them")


def quantize(weight: Tensor, vnni: bool | None = None) -> tuple[Tensor, Tensor]:
    """Integers (out, in) in int8 and scales (out,), whose products are the weight (out, in), rounded.

    Without VNNI, fbgemm multiplies two neighbouring columns of a weight by inputs from 0 to 255 and adds both products
    in 16 bits, which saturate. There the scale is such that the positive and the negative integers of no two neighbours
    add up to more than 128: 255 * 128 < 2 ** 15. Seven bits would do as well, and are coarser.

    Args:
        weight: (out, in).
        vnni: whether the CPU has VNNI; None: look.
    """
    vnni = torch.cpu._is_vnni_supported() if vnni is None else vnni
    integers, scales = [], []
    for rows in weight.detach().float().split(ROWS):
        most = rows.abs() if vnni else _sums_of_neighbours(rows)
        scale = most.amax(1).div_(LEVELS).clamp_min_(SMALLEST)
        integers.append((rows / scale[:, None]).round_().to(torch.int8))
        scales.append(scale)
    return torch.cat(integers), torch.cat(scales)


def _sums_of_neighbours(rows: Tensor) -> Tensor:
    """The positive, or the negative, numbers of each two neighbours added up, whichever are larger; without a sign."""
    first, second = rows[:, ::2], F.pad(rows[:, 1::2], (0, rows.shape[1] % 2))
    positive, negative = first.clamp(min=0) + second.clamp(min=0), first.clamp(max=0) + second.clamp(max=0)
    return torch.maximum(positive, negative.neg())


class PackedInt8(nn.Module):
    """The product (..., out) of x (..., in), from -1 to 1 and rounded to int8, and a quantised weight, by fbgemm."""

    def __init__(self, integers: Tensor, scales: Tensor) -> None:
        super().__init__()
        with warnings.catch_warnings():
            # PyTorch means to remove these tensors one day; `operators_work` then says no.
            warnings.filterwarnings("ignore", message=".*quantize.* deprecated", category=UserWarning)
            zeros = torch.zeros(len(scales), dtype=torch.long)
            weight = torch._make_per_channel_quantized_tensor(integers, scales.double(), zeros, 0)
        self.weight = torch.ops.quantized.linear_prepack(weight, None)
        self.scale, self.zero = 1 / LEVELS, ZERO  # of x; TorchScript (`scripted`) knows no constants of a file

    def forward(self, x: Tensor) -> Tensor:
        """Input (..., in) -> output (..., out)."""
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        return multiply(x, self.scale, self.zero, self.weight)


class Emulated(nn.Module):
    """The same as `PackedInt8` by public operators, up to the rounding of sums."""

    def __init__(self, integers: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.weight, self.levels = integers.float().mul_(scales[:, None]), LEVELS

    def forward(self, x: Tensor) -> Tensor:
        """Input (..., in) -> output (..., out)."""
        return F.linear((x * self.levels).round_().div_(self.levels), self.weight)


def give_back() -> None:
    """Return to the system what quantising has freed, which glibc keeps: 0.45 GB with full-size models."""
    with suppress(AttributeError, OSError, TypeError):  # other systems have no such function
        ctypes.CDLL(None).malloc_trim(0)


@cache
def operators_work() -> bool:
    """Try the private operators where they come closest to saturating; other machines and releases may lack them."""
    weight, x = torch.tensor([[1.0, 0], [0.5, 0.5], [-0.5, -0.5], [1, -1]]).repeat(8, 32), torch.ones(2, 64)
    integers = quantize(weight)
    try:
        fbgemm = torch.backends.quantized.engine in ("x86", "fbgemm")
        return fbgemm and torch.allclose(PackedInt8(*integers)(x), Emulated(*integers)(x), atol=1e-3)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False


def is_faster(device: torch.device) -> bool:
    """Whether captioning in int8 takes less time here than in fp32 or bf16; with AMX, which was not measured, no."""
    return device.type == "cpu" and operators_work() and not torch.cpu._is_amx_tile_supported()
