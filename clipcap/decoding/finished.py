"""Images whose captions have ended leave the batch, so that the others are decoded sooner.

Shapes: B images, B' of them that are still decoded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipcap.decoding.cached_gpt2 import Session
from clipcap.decoding.cached_transformer import TransformerSession

ASKED = 16  # steps between two questions to a GPU


class Finished:
    """Removes finished images from the batch and knows which rows of the whole batch remain.

    Removing them copies the cache, so finished images stay until they are a quarter of the batch. Asking a GPU which
    images are finished means waiting for it, so it is asked only every 16 tokens. Where steps are captured the batch is
    only ever halved: the fewer shapes there are, the fewer steps have to be captured.

    Attributes:
        rows: (B',), indices into the whole batch of the rows that the session still decodes.
    """

    def __init__(self, session: Session | TransformerSession, batch: int, device: torch.device) -> None:
        self.session = session
        self.rows = torch.arange(batch, device=device)
        self.halves = session.gpt.captures
        self.asked = ASKED if device.type != "cpu" else 1

    def leave(self, step: int, done: Tensor) -> Tensor | None:
        """Decide after a step which rows of the session to go on with; the others are removed from it.

        Args:
            step: the number of that step, counted from 0.
            done: (B',), whether all continuations of a row are finished.

        Returns:
            Indices of the rows to go on with, empty when all are done; None when every row stays.
        """
        if (step + 1) % self.asked:
            return None
        going = (~done).nonzero()[:, 0]
        if len(going) and self.halves:
            # Every new number of rows would capture another step, so a batch of 256 only becomes 128, 64 and so on.
            # Finished images fill it up to that size, which costs less than a capture.
            size = len(done)
            while size >= 2 * len(going):
                size = -(-size // 2)
            going = torch.cat((going, done.nonzero()[: size - len(going), 0]))
        if len(going) > 0.75 * len(done):
            return None
        self.rows = self.rows[going]
        if len(going):
            self.session.keep(going)
        return going
