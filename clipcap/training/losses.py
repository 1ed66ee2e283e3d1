"""The loss that a step lowers, and the loss on held-out captions that says when weights are better."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from clipcap.cli.processes import ALONE, Processes
from clipcap.cli.progress import ProgressBar
from clipcap.errors import UserError, first_line, is_out_of_memory
from clipcap.fast.large_weights import HeadLoss, takes_over, without_affine
from clipcap.model.batches import Batch
from clipcap.model.clipcap import ClipCap
from clipcap.training.arguments import LoopArguments
from clipcap.training.loader import CaptionDataset, in_order, loader

if TYPE_CHECKING:
    from accelerate import Accelerator  # which takes seconds to import

BACKEND = "inductor"  # of torch.compile
NONSENSE = 8  # nats per token: more than GPT-2 needs for any text, and not much less than a guess among its tokens


class Objective(nn.Module):
    """The loss as the forward pass of a module, because wrappers for several devices act on forward passes.

    Args:
        model: that trains.
        fast: whether the head's loss is computed by `clipcap.fast`.
        compiled: fuse the small kernels of mapping network, language model and loss, forward and backward, as
            torch.compile does when it is first called. One compiled form serves captions of all lengths: only batches
            of one row, or with fewer than two tokens to read, have others.
    """

    def __init__(self, model: ClipCap, fast: bool, compiled: bool = False) -> None:
        super().__init__()
        self.model = model
        self._no_split_modules = model.gpt._no_split_modules  # what FSDP puts together in one go: the blocks
        self.head_loss = HeadLoss() if fast else None
        self.loss = self._loss
        if compiled:
            torch.compiler.reset()  # PyTorch limits how many forms a function has, those of earlier runs included
            self.loss = torch.compile(self._loss, dynamic=True, fullgraph=True, backend=BACKEND)

    def forward(self, batch: Batch) -> Tensor:
        """Mean cross-entropy per caption token of a batch, a scalar in nats, times the weight of the batch."""
        return self.loss(batch)

    def _loss(self, batch: Batch) -> Tensor:
        if self.head_loss is None:
            return self.model.loss(batch) * batch.weight
        norm = self._norm_beside_head()
        with without_affine(norm):
            states = self.model.caption_states(batch)
        return self.head_loss(states, self.model.head, batch.targets, norm).mean() * batch.weight

    def _norm_beside_head(self) -> nn.LayerNorm | None:
        """GPT-2's final norm, where it and the head train alone: `HeadLoss` then computes the gradients of both."""
        gpt = self.model.gpt
        if not isinstance(gpt, GPT2LMHeadModel) or not takes_over(gpt.lm_head.weight):
            return None
        if gpt.lm_head.weight is gpt.transformer.wte.weight:  # what is above it then has gradients, too
            return None
        norm, trained = gpt.transformer.ln_f, {weight for weight in self.model.parameters() if weight.requires_grad}
        return norm if trained == {gpt.lm_head.weight, norm.weight, norm.bias} else None


def try_longest(
    objective: nn.Module, accelerator: Accelerator, dataset: CaptionDataset, args: LoopArguments, processes: Processes
) -> None:
    """Go forward and backward once with the longest captions, to notice at once what they have no memory for.

    No weight moves, but random numbers are drawn. A compiled objective compiles itself.

    Raises:
        UserError: it cannot be compiled here.
    """
    if args.compile and processes.main:
        print("compiling the training step, which takes a minute or more", file=sys.stderr)
    objective.train()
    trained = [weight for weight in objective.parameters() if weight.requires_grad]
    moments = [torch.empty_like(weight) for weight in trained for _ in range(2)]  # AdamW's, from the first step on
    for batch in loader(dataset, in_order(dataset, args.batch_size)[:1], accelerator.device, processes):
        try:
            accelerator.backward(objective(batch.to(accelerator.device)))
        except Exception as error:  # whatever PyTorch and the compilers that it calls raise
            if not args.compile or is_out_of_memory(error):
                raise
            raise UserError(
                f"--compile does not work here ({first_line(error)}): it needs a C++ compiler on a CPU, and Triton on "
                "a GPU; leave it out"
            ) from None
    objective.zero_grad()
    del moments


def validation_loss(model: ClipCap, dataset: CaptionDataset, batch_size: int, processes: Processes = ALONE) -> float:
    """Mean cross-entropy per caption token over a whole dataset, in nats. Several processes share its batches."""
    own = in_order(dataset, max(batch_size // processes.world, 1))[processes.rank :: processes.world]
    totals, counts = zip(*processes.gather(summed_loss(model, dataset, own)), strict=True)
    return sum(totals) / sum(counts)


@torch.no_grad()
def summed_loss(
    model: ClipCap, dataset: CaptionDataset, batches: list[list[int]], progress: bool = False
) -> tuple[float, int]:
    """The cross-entropy of all caption tokens in some batches of rows, in nats, and how many tokens there are."""
    was_training = model.training
    model.eval()
    loaded = loader(dataset, batches, model.device)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in ProgressBar(loaded, "loss", unit="batch", leave=False, disable=not progress):
        total += model.token_losses(batch.to(model.device)).cpu().double().sum()  # Apple's GPUs have no float64
        count += len(batch.targets)
    model.train(was_training)
    return total.item(), count


def warn_of_nonsense(loss: float) -> None:
    """Say what to check where the loss before training is that of nonsense."""
    if loss > NONSENSE:
        print(
            f"before training the validation loss is {loss:.1f} nats per token, and that of weights which fit the "
            f"data is below {NONSENSE}: check that they were trained with the CLIP of the dataset, and normalise "
            "embeddings as they must; a fresh mapping network may begin like this",
            file=sys.stderr,
        )
