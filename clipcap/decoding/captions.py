"""What a search gives: captions as token ids.

Shapes: B images, K continuations of each (beams or samples), T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Captions:
    """The result of a search.

    Attributes:
        tokens: (B, K, T), filled up to each caption's length.
        lengths: (B, K), how many of the T tokens belong to the caption, including the stop token.
        order: (B, K), the captions of each image, best first.
        possible: (B, K), whether each token of the caption had a probability: a finite one above 0.
    """

    tokens: Tensor
    lengths: Tensor
    order: Tensor
    possible: Tensor

    def as_lists(self, count: int) -> list[list[list[int]]]:
        """Token ids of the best `count` captions of each image, best first.

        Impossible captions are left out, so an image may have fewer, or none.
        """
        columns = (self.tokens.tolist(), self.lengths.tolist(), self.order.tolist(), self.possible.tolist())
        return [
            [row[k][: lengths[k]] for k in order if possible[k]][:count]
            for row, lengths, order, possible in zip(*columns, strict=True)
        ]
