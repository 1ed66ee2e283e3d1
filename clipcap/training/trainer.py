"""The one training loop: every strategy trains through it, whichever parameters train.

It runs on `accelerate`, so the same script trains on a CPU, on a GPU, or with torchrun on several, which share the
captions of every step. The output folder receives the weights with the best validation loss, `metrics.jsonl`,
`loss.png`, `samples.jsonl` (captions of fixed validation images) and `state/`, from which `--resume` reaches the same
weights as an uninterrupted run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, set_seed
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from clipcap.cli.processes import ALONE, Processes
from clipcap.cli.progress import ProgressBar
from clipcap.errors import Interrupted
from clipcap.fast.exchange import speed_up
from clipcap.fast.half import FrozenInHalf
from clipcap.model.batches import Batch
from clipcap.model.clipcap import ClipCap
from clipcap.training.arguments import LoopArguments, settings
from clipcap.training.journal import Journal
from clipcap.training.loader import BucketSampler, CaptionDataset, loader
from clipcap.training.losses import Objective, try_longest, validation_loss, warn_of_nonsense
from clipcap.training.progress import Progress
from clipcap.training.record import run_record, start_peak
from clipcap.training.resumable import resumable
from clipcap.training.setup import deferred_interrupt, make_accelerator, only_run, parameter_groups, rate
from clipcap.training.sharding import WholeModel
from clipcap.training.state import State
from clipcap.training.whole import Whole
from clipcap.weights.checkpoint import save_checkpoint

LOG_EVERY = 10  # steps between rows of metrics.jsonl


class Trainer:
    """One run of the loop.

    Args:
        model: with `requires_grad` set on the parameters that train.
        train, validation: the data.
        args: the arguments of the loop.
        strategy: its name, for messages, plots and the record.
        weights: file name of the weights in the output folder.
        record: what else the weights record about the run (data, arguments).
        save: writes the weights; `save_checkpoint` unless the strategy writes something smaller.
        references: image and true caption of the first validation rows, shown beside their captions in samples.jsonl.
        options: those that must be the same when the run is resumed; None for those of the loop alone.
        folders: what else this run writes into, and no other may at the same time.
        processes: those that train together.
    """

    def __init__(
        self,
        model: ClipCap,
        train: CaptionDataset,
        validation: CaptionDataset,
        args: LoopArguments,
        strategy: str,
        weights: str,
        record: dict[str, Any],
        save: Callable[[ClipCap, Path], None] = save_checkpoint,
        references: Sequence[dict[str, str]] = (),
        options: dict[str, Any] | None = None,
        folders: Sequence[Path] = (),
        processes: Processes = ALONE,
    ) -> None:
        self.model, self.train_set, self.validation, self.args = model, train, validation, args
        self.strategy, self.record, self.save, self.references = strategy, record, save, references
        self.processes = processes
        folder = Path(args.output_dir or "")
        self.weights, self.folders = folder / weights, (folder, *folders)
        self.accelerator = make_accelerator(args, model.config.width)
        fast = not args.no_fast
        model.use_fast(fast)
        fast &= not args.compile  # which makes kernels of its own from plain PyTorch
        if fast:
            speed_up(model)
        sharded = self.accelerator.distributed_type == DistributedType.FSDP
        self.whole = WholeModel(model, sharded)
        optimizer = torch.optim.AdamW(parameter_groups(model, args), fused=True)
        precision = self.accelerator.mixed_precision
        self.sampler = BucketSampler(train.lengths(), args.batch_size, args.seed)
        self.epoch_steps = -(-len(self.sampler) // args.accumulate)
        self.steps = self.epoch_steps * args.epochs
        self.schedule = get_linear_schedule_with_warmup(optimizer, int(self.steps * args.warmup), self.steps)
        self.objective, self.optimizer = self.accelerator.prepare(Objective(model, fast, args.compile), optimizer)
        self.frozen = FrozenInHalf(model, "no" if args.no_fast or sharded else precision)
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.schedule, self.progress)
        facts = {
            "strategy": strategy,
            "data": record.get("data", {}).get("identity"),
            "rows": len(train),
            "device": self.accelerator.device.type,
            "precision": precision,
            "FSDP": sharded,
            "trained parameters": sorted(name for name, p in model.named_parameters() if p.requires_grad),
        }
        whole = Whole(self.optimizer.optimizer, self.schedule, self.progress, self.steps)
        self.state = State(self.accelerator, processes, folder, options or settings(args), facts, whole)
        self.journal = Journal(self.accelerator, folder, strategy, self.progress)

    def run(self) -> Path:
        """Train to the end; returns the file of the best weights.

        Raises:
            Interrupted: by Ctrl-C or a request to terminate; its state is saved.
            UserError: its loss is not finite, it cannot be resumed, disk or memory is full, or another run is there.
        """
        args, progress = self.args, self.progress
        with resumable(self.weights.parent), only_run(self.folders, self.processes):
            self._begin()
            total, begun = len(self.train_set) * args.epochs, time.perf_counter()
            bar = ProgressBar(total=total, initial=self.captions, desc=self.strategy, unit="captions")
            with bar, deferred_interrupt() as interrupted:
                if not progress.step:
                    self.look_before()
                for epoch in range(progress.step // self.epoch_steps, args.epochs):
                    if self.out_of_patience:
                        break
                    self._epoch(epoch, bar, interrupted)
            early = f", ended after {self.epochs:.3g} of {args.epochs} epochs" if progress.step < self.steps else ""
            self.journal.end(bar.n, time.perf_counter() - begun, early)
        return self.weights

    def _begin(self) -> None:
        """Restore the last state, or delete that of an earlier run, and begin the files that the run reports in."""
        args = self.args
        self.state.check(args.resume)  # what is refused costs no minute of compiling, and no run of a tracker
        if args.compile or self.accelerator.device.type == "cuda":
            with self.frozen.used():
                try_longest(self.objective, self.accelerator, self.train_set, args, self.processes)
        set_seed((args.seed + self.processes.rank) % 2**32)  # each process drops out other numbers
        self.journal.start_tracker(args)  # before an earlier state is deleted, or random numbers are restored
        self.state.start(args.resume, self.weights)
        start_peak(self.model.device)
        self.journal.start()

    def _epoch(self, epoch: int, bar: ProgressBar, interrupted: list[int]) -> None:
        """Train an epoch, or what is left of it, unless patience ends before."""
        args, progress = self.args, self.progress
        self.train_set.epoch = self.sampler.epoch = epoch
        self.sampler.skip = (progress.step % self.epoch_steps) * args.accumulate
        self.model.train()
        batches = iter(loader(self.train_set, self.sampler, self.model.device, self.processes))
        try:
            while group := list(islice(batches, args.accumulate)):
                evaluated = self._step_and_report(group, bar)
                self._stop_if_asked(interrupted)
                if evaluated and self.out_of_patience:
                    break
        finally:
            del batches  # and with it its workers, which a kept traceback would let Python wait for when it ends

    def _step_and_report(self, group: list[Batch], bar: ProgressBar) -> bool:
        """Train on some batches and report the loss where it is time to; returns whether an evaluation followed."""
        started, progress = time.perf_counter(), self.progress
        progress.add(self.step(group))
        evaluates = self.evaluates_after(progress.step)
        if evaluates or progress.step % LOG_EVERY == 0:
            loss = progress.mean_loss(self.processes)
            self.journal.log({"train_loss": loss, "lr": rate(self.optimizer)}, self.epochs)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        progress.seconds += time.perf_counter() - started
        bar.update(self.captions - bar.n)
        if evaluates:
            self.evaluate()
        return evaluates

    def _stop_if_asked(self, interrupted: list[int]) -> None:
        """Save the state and raise Interrupted if a process was asked to end: all stop at the same step."""
        if number := self.processes.largest(max(interrupted, default=0)):
            self.progress.share_window(self.processes)
            self.journal.check({"train_loss": float(self.progress.window)})
            self.state.save()
            step = f"step {self.progress.step} of {self.steps}"
            raise Interrupted(f"interrupted at {step}; run the same command with --resume to go on", number)

    @property
    def epochs(self) -> float:
        """How many epochs have been trained, as a fraction."""
        return self.progress.step / self.epoch_steps

    @property
    def captions(self) -> int:
        """How many captions have been trained, each as often as it came."""
        return self.progress.step * len(self.train_set) // self.epoch_steps

    @property
    def out_of_patience(self) -> bool:
        """Whether as many evaluations as `--patience` says have passed without a better loss; a resumed run knows."""
        return self.args.patience is not None and self.progress.stale >= self.args.patience

    def evaluates_after(self, step: int) -> bool:
        """Whether an evaluation follows this step: they are spread evenly, and the last step has one."""
        every = max(self.epoch_steps / self.args.evals_per_epoch, 1)
        return round(round(step / every) * every) == step

    def step(self, group: list[Batch]) -> Tensor:
        """Move the weights by the mean gradient of some batches; returns their mean loss, still on the device.

        Of several processes each returns that of its share, weighted so that their mean is that of the batches.
        """
        total = torch.zeros((), device=self.model.device)
        with self.frozen.used():
            for number, batch in enumerate(group, 1):
                # Gradients of several devices are exchanged once per step, with the last batch.
                last = number == len(group)
                with nullcontext() if last else self.accelerator.no_sync(self.objective):
                    loss = self.objective(batch.to(self.model.device)) / len(group)
                    self.accelerator.backward(loss)
                total += loss.detach()
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def look_before(self) -> None:
        """Log the validation loss before the first step, and say what to check where it is that of nonsense."""
        loss = validation_loss(self.whole(), self.validation, self.args.batch_size, self.processes)
        self.journal.log({"val_loss": loss}, 0.0)
        if self.processes.main:
            warn_of_nonsense(loss)

    def evaluate(self) -> None:
        """Compute the validation loss, caption fixed images, and save plot, state and, if they are best, weights."""
        progress, model = self.progress, self.whole()
        loss = validation_loss(model, self.validation, self.args.batch_size, self.processes)
        self.journal.log({"val_loss": loss}, self.epochs)
        if self.processes.main:
            self.journal.sample(model, self.validation, self.references)
            self.journal.plot()
            if loss < progress.best:
                model.record = run_record(model, self.strategy, progress, self.epochs, loss) | self.record
                self.save(model, self.weights)
        progress.best = min(progress.best, loss)
        self.state.save()
