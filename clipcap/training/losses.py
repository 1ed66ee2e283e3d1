"""The loss that a step lowers, and the loss on held-out captions that says when weights are better."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipcap.cli.processes import ALONE, Processes
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
        """Mean cross-entropy per caption token of a batch, a scalar in nats, times the weight of the batch."""
        if self.head_loss is None:
            return self.model.loss(batch) * batch.weight
        losses = self.head_loss(self.model.caption_states(batch), self.model.head, batch.targets)
        return losses.mean() * batch.weight


@torch.no_grad()
def validation_loss(
    model: ClipCap,
    dataset: CaptionDataset,
    batch_size: int,
    processes: Processes = ALONE,
    progress: bool = False,
) -> float:
    """Mean cross-entropy per caption token over a whole dataset, in nats. Several processes share its batches."""
    was_training = model.training
    model.eval()
    own = in_order(dataset, max(batch_size // processes.world, 1))[processes.rank :: processes.world]
    batches = loader(dataset, own, model.device)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in ProgressBar(batches, "loss", unit="batch", leave=False, disable=not progress):
        total += model.token_losses(batch.to(model.device)).double().sum().cpu()
        count += len(batch.targets)
    model.train(was_training)
    totals, counts = zip(*processes.gather((total.item(), count)), strict=True)
    return sum(totals) / sum(counts)
