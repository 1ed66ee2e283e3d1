"""The one training loop: every strategy trains through it, whatever of the model it trains.

It runs on `accelerate`, so the same script trains on a CPU, a GPU, or with `accelerate launch` on several. It writes
into its output folder: the weights of the best validation loss, `metrics.jsonl`, `loss.png`, `samples.jsonl` (captions
of fixed validation images) and `state/`, from which `--resume` goes on to the same weights as a run never interrupted.
"""

from __future__ import annotations

import json
import math
import pickle
import platform
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from clipcap.arguments import LoopArguments
from clipcap.checkpoint import save_checkpoint
from clipcap.data import Batch, BucketSampler, CaptionDataset, in_order, loader
from clipcap.decoding import Decoding
from clipcap.devices import pick_device, pick_dtype
from clipcap.dropout import replace_dropout
from clipcap.errors import UserError
from clipcap.half import FrozenInHalf
from clipcap.model import ClipCap
from clipcap.plots import plot_losses
from clipcap.tokenizer import tokenizer_from_json

RUN = "run.json"  # in a state: what must be the same for a run to go on from it
LOG_EVERY = 10  # steps between rows of metrics.jsonl
WIDE = 512  # from this width on, bf16 saves more on a CPU than its conversions cost


@dataclass
class Progress:
    """How far a run has come; saved and loaded with its state."""

    step: int = 0
    best: float = math.inf
    seconds: float = 0.0
    window: float = 0.0  # summed loss of the steps since the last row
    window_steps: int = 0
    rows: list[dict] = field(default_factory=list)
    samples: list[dict] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Objective(nn.Module):
    """The loss as a module's forward, which is what wrappers for several devices look at."""

    def __init__(self, model: ClipCap) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return self.model.loss(batch)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameters that train: matrices, which decay, and vectors, which do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]


@torch.no_grad()
def validation_loss(model: ClipCap, dataset: CaptionDataset, batch_size: int, progress: bool = False) -> float:
    """Mean cross-entropy per caption token over a whole dataset, in nats."""
    was_training = model.training
    model.eval()
    batches = loader(dataset, in_order(dataset, batch_size), model.device)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in tqdm(batches, "loss", unit="batch", leave=False, disable=not progress, file=sys.stderr):
        total += model.token_losses(batch.to(model.device)).double().sum().cpu()
        count += len(batch.targets)
    model.train(was_training)
    return total.item() / count


class Trainer:
    """One run of the loop.

    Args:
        model: with `requires_grad` set on what trains.
        train, validation: the data.
        args: of the loop.
        strategy: its name, for the record.
        weights: file name of the weights in the output folder.
        record: what else the weights remember of the run (data, arguments).
        save: writes the weights; `save_checkpoint` unless the strategy writes something smaller.
        references: what the first validation rows are shown with, in samples.jsonl.
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
    ) -> None:
        self.model, self.train_set, self.validation, self.args = model, train, validation, args
        self.strategy, self.record, self.save, self.references = strategy, record, save, references
        self.folder = Path(args.output_dir)
        self.weights = self.folder / weights
        self.accelerator = self._accelerator()
        replace_dropout(model)
        self.objective = Objective(model)
        optimizer = torch.optim.AdamW(decay_groups(model, args.weight_decay), lr=args.learning_rate, fused=True)
        self.objective, self.optimizer = self.accelerator.prepare(self.objective, optimizer)
        sharded = self.accelerator.distributed_type == DistributedType.FSDP
        self.frozen = FrozenInHalf(model, self.accelerator.mixed_precision == "bf16" and not sharded)
        world = self.accelerator.num_processes
        self.sampler = BucketSampler(train.lengths(), args.batch_size, args.seed, self.accelerator.process_index, world)
        self.epoch_steps = -(-len(self.sampler) // args.accumulate)
        self.steps = self.epoch_steps * args.epochs
        warmup = int(self.steps * args.warmup)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer.optimizer, warmup, self.steps)
        same = ("epochs", "batch_size", "accumulate", "learning_rate", "warmup", "weight_decay", "clip_norm", "seed")
        self.run_identity = {name: getattr(args, name) for name in (*same, "evals_per_epoch")} | {
            "rows": len(train),
            "processes": world,
            "precision": self.accelerator.mixed_precision,
            "data": record.get("data", {}).get("identity"),
            "trained parameters": sorted(name for name, p in model.named_parameters() if p.requires_grad),
        }
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.schedule, self.progress)
        every = self.epoch_steps / args.evals_per_epoch
        self.eval_steps = {round(number * every) for number in range(1, args.epochs * args.evals_per_epoch + 1)}

    def _accelerator(self) -> Accelerator:
        args = self.args
        device = pick_device(args.device)
        precision = args.precision
        if precision == "auto":
            wide = device.type != "cpu" or self.model.gpt.config.n_embd >= WIDE
            precision = "bf16" if wide and pick_dtype("auto", device) == torch.bfloat16 else "fp32"
        tracker = None if args.report_to == "none" else args.report_to
        if tracker and find_spec(tracker) is None:
            raise UserError(f"--report-to {tracker} needs the package: pip install {tracker}")
        return Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="bf16" if precision == "bf16" else "no",
            log_with=tracker,
            project_dir=self.folder,
        )

    def run(self) -> Path:
        """Train to the end; returns the file of the best weights."""
        set_seed(self.args.seed)
        if self.args.report_to != "none":
            self.accelerator.init_trackers("clipcap", {k: v for k, v in vars(self.args).items() if v is not None})
        if self.args.resume:
            self._load_state()
        else:
            for state in ("state", "state.old", "state.new"):
                shutil.rmtree(self.folder / state, ignore_errors=True)
        self._write_rows()
        main = self.accelerator.is_main_process
        world = self.accelerator.num_processes
        total = len(self.train_set) * self.args.epochs
        done = self.progress.step * len(self.train_set) // self.epoch_steps
        bar = tqdm(total=total, initial=done, desc=self.strategy, unit="captions", disable=not main, file=sys.stderr)
        started = time.perf_counter()
        with bar, _deferred_interrupt() as interrupted:
            for epoch in range(self.progress.step // self.epoch_steps, self.args.epochs):
                self._epoch(epoch, bar, world, interrupted)
        self.accelerator.end_training()
        if main:
            print(
                f"{self.strategy}: {total} captions in {self.progress.seconds:.0f} s of training "
                f"({time.perf_counter() - started:.0f} s in all), best validation loss {self.progress.best:.4f}",
                file=sys.stderr,
            )
        return self.weights

    def _epoch(self, epoch: int, bar: tqdm, world: int, interrupted: list) -> None:
        args, progress = self.args, self.progress
        self.sampler.epoch, self.sampler.skip = epoch, (progress.step % self.epoch_steps) * args.accumulate
        self.model.train()
        window = torch.tensor(progress.window, device=self.model.device)
        batches = iter(loader(self.train_set, self.sampler, self.model.device))
        while group := [batch for _, batch in zip(range(args.accumulate), batches, strict=False)]:
            started = time.perf_counter()
            window += self._step(group)
            progress.step += 1
            progress.window_steps += 1
            evaluate = progress.step in self.eval_steps
            if evaluate or progress.step % LOG_EVERY == 0:
                loss = window.item() / progress.window_steps
                self._log({"train_loss": loss, "lr": self.schedule.get_last_lr()[0]})
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                window.zero_()
                progress.window_steps = 0
            progress.window = window
            progress.seconds += time.perf_counter() - started
            bar.update(min(sum(len(batch.tokens) for batch in group) * world, bar.total - bar.n))
            if evaluate:
                self._evaluate()
            if interrupted:
                self._save_state()
                raise UserError(
                    f"interrupted at step {progress.step} of {self.steps}; the same command with --resume goes on"
                )

    def _step(self, group: list[Batch]) -> Tensor:
        """Move the weights by the gradients of some batches; returns their mean loss, still on the device."""
        total = torch.zeros((), device=self.model.device)
        with self.frozen.used():
            for number, batch in enumerate(group, 1):
                with self._synchronised(number == len(group)):
                    loss = self.objective(batch.to(self.model.device)) / len(group)
                    self.accelerator.backward(loss)
                total += loss.detach()
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _synchronised(self, last: bool) -> AbstractContextManager:
        """Gradients of several devices are exchanged once per step."""
        return nullcontext() if last else self.accelerator.no_sync(self.objective)

    def _log(self, values: dict[str, float]) -> None:
        progress = self.progress
        if not all(math.isfinite(value) for value in values.values()):
            raise UserError(
                f"the loss became {values} at step {progress.step}: lower --learning-rate, no weights are lost"
            )
        row = {"step": progress.step, "epoch": round(progress.step / self.epoch_steps, 4), **values}
        progress.rows.append(row)
        if self.args.report_to != "none":
            self.accelerator.log(values, step=progress.step)
        if self.accelerator.is_main_process:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

    def _evaluate(self) -> None:
        """Validation loss, captions of fixed images, the loss curve, the weights if they are the best, the state."""
        progress = self.progress
        loss = validation_loss(self.model, self.validation, self.args.batch_size)
        self._log({"val_loss": loss})
        if self.accelerator.is_main_process:
            self._sample()
            plot_losses({self.strategy: progress.rows}, self.folder / "loss.png", f"{self.strategy} fine-tuning")
            if loss < progress.best:
                self.model.record = {**self._measured(loss), **self.record}
                self.save(self.model, self.weights)
        progress.best = min(progress.best, loss)
        self._save_state()

    def _sample(self) -> None:
        if not self.references:
            return
        rows = [self.validation[index] for index in range(len(self.references))]
        embeddings = torch.from_numpy(np.stack([embedding for embedding, _, _ in rows])).float()
        prompts = [list(prompt) for _, prompt, _ in rows]
        found = self.model.generate(embeddings.to(self.model.device), Decoding(max_tokens=40), prompts)
        tokenizer = tokenizer_from_json(self.model.config.tokenizer)
        captions = [tokenizer.decode(ids).strip() for ids in found]
        shown = [
            {**reference, "caption": caption} for reference, caption in zip(self.references, captions, strict=True)
        ]
        self.progress.samples.append({"step": self.progress.step, "captions": shown})
        with (self.folder / "samples.jsonl").open("a") as file:
            file.write(json.dumps(self.progress.samples[-1], ensure_ascii=False) + "\n")

    def _measured(self, loss: float) -> dict[str, Any]:
        model, device = self.model, self.model.device
        parameters = [p for n, p in model.named_parameters() if not n.startswith("literal_captioner.")]
        peak = (
            torch.cuda.max_memory_allocated(device)
            if device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        )
        return {
            "strategy": self.strategy,
            "step": self.progress.step,
            "epochs": self.progress.step / self.epoch_steps,
            "losses": {"validation": loss, "history": list(self.progress.rows)},
            "seconds": self.progress.seconds,
            "peak_memory_bytes": peak,
            "device": device.type,
            "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "total_parameters": sum(p.numel() for p in parameters),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("torch", "transformers", "accelerate", "peft")},
        }

    def _write_rows(self) -> None:
        """Start the files of rows anew, with those of the state that the run goes on from."""
        if not self.accelerator.is_main_process:
            return
        for name, rows in (("metrics.jsonl", self.progress.rows), ("samples.jsonl", self.progress.samples)):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (self.folder / name).write_text(text)

    def _save_state(self) -> None:
        """Write the state under another name, then let it take the place of the last one."""
        self.progress.window = float(self.progress.window)
        new, state, old = (self.folder / name for name in ("state.new", "state", "state.old"))
        self.accelerator.save_state(str(new), safe_serialization=False)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (new / RUN).write_text(json.dumps(self.run_identity))
            shutil.rmtree(old, ignore_errors=True)
            if state.exists():
                state.rename(old)
            new.rename(state)
            shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _check_same_run(self, state: Path) -> None:
        run = state / RUN
        begun = json.loads(run.read_text()) if run.is_file() else {}
        for name, value in self.run_identity.items():
            if begun.get(name) != value:
                told = "" if isinstance(value, list) else f" {begun.get(name)}, not {value}"
                raise UserError(f"{self.folder} was begun with other {name}{told}: use the same to --resume")

    def _load_state(self) -> None:
        for state in (self.folder / "state", self.folder / "state.old"):
            if state.is_dir():
                self._check_same_run(state)
                try:
                    self.accelerator.load_state(str(state))
                except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
                    raise UserError(
                        f"the state in {state} is damaged or of another model ({str(error).splitlines()[0]}): "
                        "start anew without --resume"
                    ) from None
                return
        print(f"no state in {self.folder} yet: starting from the beginning", file=sys.stderr)


@contextmanager
def _deferred_interrupt() -> Iterator[list]:
    """Ctrl-C and termination fill a list instead of stopping mid-step, where weights and progress would disagree."""
    received: list = []
    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in signals}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
