"""The rows of a dataset and their order: batches of similar length, reproducible from a seed.

Shapes: C CLIP width.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from clipcap.cli.processes import ALONE, Processes
from clipcap.cli.status import requests_to_end
from clipcap.data.embeddings import Embeddings
from clipcap.model.batches import Batch, collate
from clipcap.model.controls import some_controls


class CaptionDataset(Dataset):
    """Token ids and embeddings of one split; the embeddings stay where they are, on disk or in memory.

    A row is an embedding (C,), the ids of its prompt and those of its caption. With controls, some of them stand behind
    the prompt, chosen by nothing but the seed, the epoch and the place in `rows`: anew whenever a row comes again.

    Args:
        embeddings: (rows, C).
        captions: token ids, one list for each row.
        prompts: token ids that stand before the caption and are not learned; None for none.
        rows: which rows to use; None for all of them.
        controls: for each row, the token ids of what its prompt may state, see `clipcap.model.controls`; None for none.
        seed: of the choice among the controls.

    Attributes:
        epoch: the epoch whose rows come next.
    """

    def __init__(
        self,
        embeddings: np.ndarray | Embeddings,
        captions: Sequence[Sequence[int]],
        prompts: Sequence[Sequence[int]] | None = None,
        rows: Sequence[int] | None = None,
        controls: Sequence[Sequence[Sequence[int]]] | None = None,
        seed: int = 0,
    ) -> None:
        self.embeddings, self.captions = embeddings, captions
        self.prompts = prompts or [()] * len(captions)
        self.rows = range(len(captions)) if rows is None else rows
        self.controls = controls or [()] * len(captions)
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Sequence[int], Sequence[int]]:
        row = self.rows[index]
        stated = some_controls(self.controls[row], (self.seed, self.epoch, index))
        return self.embeddings[row], [*self.prompts[row], *stated], self.captions[row]

    def lengths(self) -> list[int]:
        """The number of tokens in prompt, all controls and caption together, for each row."""
        return [
            len(self.prompts[row]) + sum(map(len, self.controls[row])) + len(self.captions[row]) for row in self.rows
        ]


class BucketSampler:
    """Batches of rows of similar length, in an order that depends only on the seed and the epoch.

    Rows are shuffled, sorted by length within pools of 64 batches and cut into batches; then the batches are shuffled.
    Sorting keeps padding short, and the pools keep the order random.

    Args:
        lengths: the number of tokens of each row.
        batch_size: rows per batch.
        seed: of the order.

    Attributes:
        epoch: the epoch whose order comes next.
        skip: how many batches of it to leave out, when a run is resumed within an epoch.
    """

    POOL = 64  # batches

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int = 0) -> None:
        self.lengths, self.batch_size, self.seed = np.asarray(lengths), batch_size, seed
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(len(self.lengths))
        pool = self.POOL * self.batch_size
        order = np.concatenate(
            [
                rows[np.argsort(self.lengths[rows], kind="stable")]
                for rows in np.split(order, range(pool, len(order), pool))
            ]
        )
        batches = np.split(order, range(self.batch_size, len(order), self.batch_size))
        for turn in random.permutation(len(batches))[self.skip :]:
            yield batches[turn].tolist()


def share(rows: Sequence[tuple[np.ndarray, Sequence[int], Sequence[int]]], rank: int, world: int) -> Batch:
    """What one of several processes takes of a batch: every `world`-th of its rows.

    Its weight makes the mean loss of the whole batch out of those of the shares, in the mean over all processes. A
    process for which there is no row computes the first one again, with weight 0, since all take part in every step.
    """
    own = rows[rank::world]
    batch = collate(own or rows[:1])
    tokens, own_tokens = (sum(len(caption) for _, _, caption in part) for part in (rows, own))
    batch.weight.fill_(world * own_tokens / tokens)
    return batch


def loader(
    dataset: CaptionDataset,
    sampler: BucketSampler | list[list[int]],
    device: torch.device,
    processes: Processes = ALONE,
) -> DataLoader:
    """The batches of a dataset, or of each batch the share of this process.

    For a CUDA device, worker processes prepare them ahead in pinned memory. They are forked where that is possible, and
    so share the dataset with this process; elsewhere each gets a copy.
    """
    ahead = device.type == "cuda"
    forks = ahead and "fork" in multiprocessing.get_all_start_methods()
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=partial(share, rank=processes.rank, world=processes.world),
        num_workers=2 if ahead else 0,
        multiprocessing_context="fork" if forks else None,
        worker_init_fn=_outlive_requests_to_end,
        pin_memory=ahead,
        generator=torch.Generator(),  # so that iterating does not draw from the global one, which is resumed exactly
    )


def _outlive_requests_to_end(worker: int) -> None:
    """Go on when torchrun, or a terminal by Ctrl-C or its own end, asks the whole process group to end.

    The process that trains still has to come to the end of its step, and to save its state.
    """
    for number in requests_to_end():
        signal.signal(number, signal.SIG_IGN)


def in_order(dataset: CaptionDataset, batch_size: int) -> list[list[int]]:
    """Batches of row numbers: every row once, the longest first."""
    order = np.argsort(dataset.lengths(), kind="stable")[::-1].tolist()
    starts = range(0, len(order), batch_size)
    return [order[start : start + batch_size] for start in starts]
