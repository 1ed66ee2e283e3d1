"""What a run tells while it goes on: metrics.jsonl, samples.jsonl, loss.png, and a tracker where one is asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from clipcap.decoding.options import Decoding
from clipcap.errors import UserError
from clipcap.model.clipcap import ClipCap
from clipcap.model.gpt2 import tokenizer_from_json
from clipcap.plots import plot_losses
from clipcap.training.loader import CaptionDataset
from clipcap.training.state import Progress

SAMPLE = Decoding(max_tokens=40)  # how the captions of samples.jsonl are searched for


class Journal:
    """The rows and samples of one run; only the main process writes.

    Args:
        accelerator: with the tracker, if any.
        folder: the run's output folder.
        strategy: its name, for the plot.
        progress: holds the rows too, so that a resumed run's files continue where its state stood.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, strategy: str, progress: Progress) -> None:
        self.accelerator, self.folder, self.strategy, self.progress = accelerator, folder, strategy, progress

    def start(self) -> None:
        """Begin the files anew, with the rows of the state that the run goes on from."""
        if self.accelerator.is_main_process:
            for name, rows in (("metrics.jsonl", self.progress.rows), ("samples.jsonl", self.progress.samples)):
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                (self.folder / name).write_text(text)

    def log(self, values: dict[str, float], epoch: float) -> None:
        """Write a row of metrics. Raises UserError when one of them is no number."""
        step = self.progress.step
        if not all(math.isfinite(value) for value in values.values()):
            raise UserError(f"the loss became {values} at step {step}: lower --learning-rate, no weights are lost")
        row = {"step": step, "epoch": round(epoch, 4), **values}
        self.progress.rows.append(row)
        self.accelerator.log(values, step=step)
        self._append("metrics.jsonl", row)

    def sample(self, model: ClipCap, data: CaptionDataset, references: Sequence[dict[str, str]]) -> None:
        """Caption the first rows of `data`, each shown with what `references` says of it."""
        if not references:
            return
        rows = [data[index] for index in range(len(references))]
        embeddings = torch.from_numpy(np.stack([embedding for embedding, _, _ in rows])).float()
        found = model.generate(embeddings.to(model.device), SAMPLE, [list(prompt) for _, prompt, _ in rows])
        tokenizer = tokenizer_from_json(model.config.tokenizer)
        shown = [
            {**reference, "caption": tokenizer.decode(ids).strip()}
            for reference, ids in zip(references, found, strict=True)
        ]
        self.progress.samples.append({"step": self.progress.step, "captions": shown})
        self._append("samples.jsonl", self.progress.samples[-1])

    def plot(self) -> None:
        """Draw the losses so far."""
        title = f"{self.strategy} fine-tuning"
        plot_losses({self.strategy: self.progress.rows}, self.folder / "loss.png", title)

    def _append(self, name: str, row: dict) -> None:
        if self.accelerator.is_main_process:
            with (self.folder / name).open("a") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
