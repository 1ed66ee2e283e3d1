"""Fine-tuning: the project's own loop for every strategy, beside the published training step."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from functools import partial
from typing import cast

import numpy as np
import torch

from benchmarks import floors, published
from benchmarks.plan import Plan
from benchmarks.setting import Setting
from benchmarks.timing import Contender, Measurement
from clipcap.model.clipcap import ClipCap
from clipcap.training.arguments import LoopArguments
from clipcap.training.loader import BucketSampler, CaptionDataset
from clipcap.training.progress import Progress
from clipcap.training.trainer import Trainer
from clipcap.weights.lora import inject

BATCH, PUBLISHED_BATCH = 16, 40
BATCHES = {
    "fine-tuning": BATCH,
    "published step with CLIP in it": BATCH,
    "published step from stored embeddings": PUBLISHED_BATCH,
}
CAPTIONS = 1024  # one pool of 64 batches
LOG_LENGTH = (2.33, 0.74)  # mean and deviation of the log of the tokens in an Instagram caption, over 100 of them
MOST_TOKENS = 67


class Loop(Trainer):
    """The training loop without what it does besides: validation, samples, weights and state on disk."""

    def _begin(self) -> None:
        """New files alone: no state, and no longest captions, which come before the first step on a GPU."""
        self.journal.start()

    def look_before(self) -> None:
        """Nothing: validation is not what is timed."""

    def evaluate(self) -> None:
        """Nothing, for the same reason."""


class Sample(list):
    """A few of an epoch's batches, from the shortest captions to the longest."""

    epoch = skip = 0

    @classmethod
    def of(cls, sampler: BucketSampler, batches: int) -> Sample:
        """That many batches, evenly spaced by length, of those that a sampler draws."""
        ordered = sorted(sampler, key=lambda rows: sampler.lengths[rows].max())
        return cls(ordered[len(ordered) // batches // 2 :: len(ordered) // batches][:batches])

    @classmethod
    def longest(cls, sampler: BucketSampler) -> Sample:
        """The batch with the longest caption alone, which takes the most memory."""
        return cls([max(sampler, key=lambda rows: sampler.lengths[rows].max())])


def captions(vocabulary: int, count: int = CAPTIONS) -> list[list[int]]:
    """Random tokens, as many as people write."""
    random = np.random.default_rng(0)
    lengths = np.exp(random.normal(*LOG_LENGTH, count)).round().clip(1, MOST_TOKENS - 1).astype(int) + 1
    return [random.integers(1, vocabulary, length).tolist() for length in lengths]


def full(model: ClipCap) -> None:
    """As basic_finetuning.py does."""
    model.train_only(lambda name: True)


def lora(model: ClipCap) -> None:
    """As lora_finetuning.py does with its defaults."""
    inject(model, 4, 16.0, 0.1, ["c_attn", "c_proj", "c_fc"])
    model.train_only(lambda name: ".lora_" in name or name.startswith("clip_project."))


def head_only(model: ClipCap) -> None:
    """As frozen_finetuning.py does with its defaults."""
    model.untie_head()
    model.train_only(lambda name: name.startswith(("gpt.lm_head.", "gpt.transformer.ln_f.")))


def against_published(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """Full fine-tuning beside the published step, with CLIP in it and from stored embeddings."""
    contenders = [ours(setting, plan, "ours", full), *published_steps(setting)]
    yield plan.alternate("Fine-tuning", "full fine-tuning", "captions/s", contenders)


def published_steps(setting: Setting) -> list[Contender]:
    """The published training step on one batch: with CLIP in it, and from stored embeddings."""
    model = setting.published(setting.model())
    model.gpt.train()
    optimizer = published.default_optimizer(model)
    dataset = captions(setting.sizes.vocabulary)
    tokens = published.pad(dataset[:PUBLISHED_BATCH], published.padded_length(dataset)).to(setting.device)
    photos = setting.photos(BATCH)
    embeddings = torch.randn(PUBLISHED_BATCH, setting.sizes.clip["embed_dim"], device=setting.device)

    def with_clip(count: int) -> None:
        published.step_from_photos(model, optimizer, photos[:count], tokens[:count])

    def stored(count: int) -> None:
        published.step_from_embeddings(model, optimizer, embeddings[:count], tokens[:count])

    return [
        Contender("published with CLIP", with_clip, BATCH),
        Contender("published", stored, PUBLISHED_BATCH),
    ]


def strategies(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """Our own strategies beside each other."""
    ways = {"full": full, "LoRA": lora, "head-only": head_only}
    contenders = [ours(setting, plan, name, choose) for name, choose in ways.items()]
    yield plan.alternate("Fine-tuning", "strategies", "captions/s", contenders)


def ours(
    setting: Setting, plan: Plan, name: str, choose: Callable[[ClipCap], None], longest: bool = False
) -> Contender:
    """The loop over batches of all lengths, or the longest alone, in the precision that it chooses itself."""
    model = setting.model()
    choose(model)
    tokens = captions(setting.sizes.vocabulary)
    embeddings = np.random.default_rng(0).standard_normal((len(tokens), model.config.clip_dim), dtype=np.float32)
    dataset = CaptionDataset(embeddings, tokens)
    args = LoopArguments(
        output_dir=str(setting.folder), epochs=1, batch_size=BATCH, evals_per_epoch=1, device=str(setting.device)
    )
    loop = Loop(model, dataset, dataset, args, strategy=name, weights="", record={})
    sample = Sample.longest(loop.sampler) if longest else Sample.of(loop.sampler, 4 if plan.quick else 8)
    loop.sampler = cast(BucketSampler, sample)  # the loop reads its length, its batches, `epoch` and `skip`, no more
    count = sum(len(rows) for rows in sample)
    mean = sum(len(tokens[row]) for rows in sample for row in rows) / count
    work = floors.training_caption(model, mean, BATCH, setting.fast)
    return Contender(name, partial(_run, loop), count, work, warm_up=count)


def _run(loop: Loop, count: int) -> None:
    loop.progress.load_state_dict(Progress().state_dict())  # begin anew
    with redirect_stderr(io.StringIO()):
        loop.run()
