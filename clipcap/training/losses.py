"""The loss that a step lowers, and the loss on held-out captions that says when weights are better."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from clipcap.cli.processes import ALONE, Processes
from clipcap.cli.progress import ProgressBar
from clipcap.fast.large_weights import HeadLoss
from clipcap.model.batches import Batch
from clipcap.model.clipcap import ClipCap
from clipcap.training.loader import CaptionDataset, in_order, loader

NONSENSE = 8  # nats per token: more than GPT-2 needs for any text, and not much less than a guess among its tokens


class Objective(nn.Module):
    """The loss as the forward pass of a module, because wrappers for several devices act on forward passes."""

    def __init__(self, model: ClipCap, fast: bool) -> None:
        super().__init__()
        self.model = model
        self._no_split_modules = model.gpt._no_split_modules  # what FSDP puts together in one go: the blocks
        self.head_loss = HeadLoss() if fast else None

    def forward(self, batch: Batch) -> Tensor:
        """Mean cross-entropy per caption token of a batch, a scalar in nats, times the weight of the batch."""
        if self.head_loss is None:
            return self.model.loss(batch) * batch.weight
        losses = self.head_loss(self.model.caption_states(batch), self.model.head, batch.targets)
        return losses.mean() * batch.weight


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
