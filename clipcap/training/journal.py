"""What a run reports while it trains: metrics.jsonl, samples.jsonl, loss.png, and a tracker where one is asked for."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from clipcap.decoding.options import Decoding
from clipcap.errors import UserError, first_line
from clipcap.files import append_whole, write_whole
from clipcap.model.batches import collate
from clipcap.model.clipcap import ClipCap
from clipcap.model.prompts import caption_embeddings
from clipcap.training.arguments import LoopArguments
from clipcap.training.loader import CaptionDataset
from clipcap.training.plots import plot_losses
from clipcap.training.progress import Progress

SAMPLE = Decoding(max_tokens=40)  # how the captions of samples.jsonl are decoded


class Journal:
    """The metrics and samples of one run; only the main process writes.

    Args:
        accelerator: knows the tracker, if there is one.
        folder: the run's output folder.
        strategy: its name, for the plot.
        progress: keeps all rows too, so that the files of a resumed run continue from its saved state.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, strategy: str, progress: Progress) -> None:
        self.accelerator, self.folder, self.strategy, self.progress = accelerator, folder, strategy, progress

    def start(self) -> None:
        """Write the files anew: empty, or with the rows of the state from which the run is resumed."""
        if self.accelerator.is_main_process:
            for name, rows in (("metrics.jsonl", self.progress.rows), ("samples.jsonl", self.progress.samples)):
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                write_whole(self.folder / name, text.encode())

    def start_tracker(self, args: LoopArguments) -> None:
        """Begin a run of the tracker, if one is asked for. Raises UserError where it cannot, as without a login."""
        if args.report_to == "none":
            return
        try:
            self.accelerator.init_trackers("clipcap", {k: v for k, v in vars(args).items() if v is not None})
        except Exception as error:  # each tracker has its own
            raise UserError(
                f"--report-to {args.report_to} cannot start ({first_line(error)}): log in to it, or leave --report-to "
                "out"
            ) from None

    def log(self, values: dict[str, float], epoch: float) -> None:
        """Write a row of metrics, by name, at `epoch` epochs. Raises UserError when one of them is not finite."""
        self.check(values)
        row = {"step": self.progress.step, "epoch": round(epoch, 4), **values}
        self.progress.rows.append(row)
        self.accelerator.log(values, step=self.progress.step)
        self._append("metrics.jsonl", row)

    def check(self, values: dict[str, float]) -> None:
        """Raise a UserError, which says what to change, when one of these metrics is not finite."""
        step = self.progress.step
        if not all(math.isfinite(value) for value in values.values()):
            lower = "lower --learning-rate; weights saved before are kept"
            if self.accelerator.mixed_precision == "fp16":
                lower = f"take --precision fp32, since the range of fp16 is small, or {lower}"
            remedy = lower if step else "check the weights and the data"
            raise UserError(f"the loss became {values} at step {step}: {remedy}")

    def sample(self, model: ClipCap, data: CaptionDataset, references: Sequence[dict[str, str]]) -> None:
        """Caption the first rows of `data` and write each caption beside what `references` says about its row."""
        if not references:
            return
        rows = [data[index] for index in range(len(references))]
        prompts = [list(prompt) for _, prompt, _ in rows]
        captions = caption_embeddings(model, collate(rows).clip_embedding, SAMPLE, prompts)
        shown = [{**reference, "caption": caption} for reference, caption in zip(references, captions, strict=True)]
        self.progress.samples.append({"step": self.progress.step, "captions": shown})
        self._append("samples.jsonl", self.progress.samples[-1])

    def plot(self) -> None:
        """Draw the losses so far into loss.png."""
        title = f"{self.strategy} fine-tuning"
        plot_losses({self.strategy: self.progress.rows}, self.folder / "loss.png", title)

    def end(self, captions: float, seconds: float, early: str) -> None:
        """Say what it took to train these captions, `seconds` in all, and whether that was early; trackers end too."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if self.accelerator.is_main_process:
            print(
                f"{self.strategy}: {captions} captions in {self.progress.seconds:.0f} s of training "
                f"({seconds:.0f} s in all), best validation loss {self.progress.best:.4f}{early}",
                file=sys.stderr,
            )

    def _append(self, name: str, row: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            path, line = self.folder / name, (json.dumps(row, ensure_ascii=False) + "\n").encode()
            try:
                with path.open("ab", buffering=0) as file:
                    append_whole(file, line)
            except OSError as error:
                error.filename = str(path)
                raise
