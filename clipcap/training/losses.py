"""The loss that a step lowers, and the loss on held-out captions that says when weights are better."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipcap.cli.progress import ProgressBar
from clipcap.fast.large_weights import HeadLoss
from clipcap.model.batches import Batch
from clipcap.model.clipcap import ClipCap
from clipcap.training.loader import CaptionDataset, in_order, loader


class Objective(nn.Module):
    """The loss as the forward pass of a module, because wrappers for several devices act on forward passes."""

    def __init__(self, model: ClipCap, fast: bool) -> None:
        super().__init__()
        self.model = model
        self.head_loss = HeadLoss() if fast else None

    def forward(self, batch: Batch) -> Tensor:
        """Mean cross-entropy per caption token of a batch, a scalar in nats."""
        if self.head_loss is None:
            return self.model.loss(batch)
        return self.head_loss(self.model.caption_states(batch), self.model.head, batch.targets).mean()


def validation_loss(model: ClipCap, dataset: CaptionDataset, batch_size: int) -> float:
    """Mean cross-entropy per caption token over a whole dataset, in nats."""
    total, count = summed_loss(model, dataset, batch_size)
    return total / count


@torch.no_grad()
def summed_loss(model: ClipCap, dataset: CaptionDataset, batch_size: int, progress: bool = False) -> tuple[float, int]:
    """The cross-entropy of all caption tokens of a dataset together, in nats, and how many tokens there are."""
    was_training = model.training
    model.eval()
    batches = loader(dataset, in_order(dataset, batch_size), model.device)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in ProgressBar(batches, "loss", unit="batch", leave=False, disable=not progress):
        total += model.token_losses(batch.to(model.device)).double().sum().cpu()
        count += len(batch.targets)
    model.train(was_training)
    return total.item(), count
