"""How much is measured: rounds, photos and batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.timing import Contender, Measurement, alternate


@dataclass(frozen=True)
class Plan:
    """How much of everything one run measures.

    Attributes:
        rounds: turns of every contender; the median counts.
        quick: an eighth of the photos, the two usual batch sizes, and no profiles.
        advance: told the name of a contender after each of its turns.
    """

    rounds: int
    quick: bool
    device: torch.device
    advance: Callable[[str], object] = lambda name: None

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes at which a stage is measured."""
        return self.usual_batches if self.quick else (1, *self.usual_batches, 128)

    @property
    def usual_batches(self) -> tuple[int, ...]:
        """Those of what takes long, and of a quick run."""
        return (8, 32)

    def photos(self, count: int) -> int:
        """How many photos a folder holds that would hold `count`."""
        return max(16, count // 8) if self.quick else count

    def baseline(self, count: int, folder: Sequence[Path]) -> int:
        """How many photos of a folder a slow contender gets; more on a GPU, where few take too little time."""
        return min(count * (8 if self.device.type == "cuda" else 1), len(folder))

    def alternate(self, group: str, title: str, unit: str, contenders: Sequence[Contender]) -> Measurement:
        """`timing.alternate` with this plan's rounds and device."""

        def advance(name: str) -> None:
            self.advance(f"{title}: {name}")

        return alternate(group, title, unit, contenders, self.rounds, self.device, advance, profiled=not self.quick)
