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


@torch.no_grad()
def validation_loss(model: ClipCap, dataset: CaptionDataset, batch_size: int, progress: bool = False) -> float:
    """Mean cross-entropy per caption token over a whole dataset, in nats."""
    was_training = model.training
    model.eval()
    batches = loader(dataset, in_order(dataset, batch_size), model.device)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in ProgressBar(batches, "loss", unit="batch", leave=False, disable=not progress):
        total += model.token_losses(batch.to(model.device)).cpu().double().sum()  # Apple's GPUs have no float64
        count += len(batch.targets)
    model.train(was_training)
    return total.item() / count
