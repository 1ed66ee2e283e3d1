"""The arguments that the four fine-tuning scripts share, in three groups."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from clipcap.cli.options import arg
from clipcap.devices import PRECISIONS
from clipcap.errors import UserError, at_least

# Options of the four scripts that change no number of a run: it may be resumed with others. LoRA weights know their
# base by its content, so that another --base is the same file elsewhere.
NO_NUMBERS = {"base", "output_dir", "resume", "report_to", "demo", "merged", "export_peft"}
# Options in whose place a run records what they stood for: the dataset's identity, the device's kind, the precision.
RESOLVED = {"data", "device", "precision"}
# Beyond these, memory or the random generators give out.
MOST = {
    "epochs": 10**6,
    "batch_size": 2**16,
    "accumulate": 2**16,
    "min_steps": 10**6,
    "evals_per_epoch": 10**6,
    "seed": 2**32 - 1,
}
OF_TRANSFORMER = ("clip_length", "mapping_layers")  # what the MLP mapping network has not
MOST_LAYERS = 1000  # of a mapping network: more take minutes to count


@dataclass
class DataArguments:
    """Which captions to learn."""

    _argument_group_name = "data"

    data: str | None = arg(None, "dataset folder that load_data.py wrote", metavar="DIR")
    max_tokens: int = arg(67, "captions are cut to this many tokens")
    limit_train: int | None = arg(None, "use only the first N training captions")
    demo: bool = arg(False, "use the demo world that ships with the project as the default")


@dataclass
class StartArguments:
    """Which model to start from."""

    _argument_group_name = "model"

    init: str | None = arg(
        None, "weights to start from: a file, coco, coco-transformer, hf:owner/name, ...", metavar="WEIGHTS"
    )
    base: str | None = arg(None, "what LoRA weights named here were trained on, if it has moved", metavar="FILE")
    language_model: str | None = arg(
        None, "without --init: a causal language model by hub name or folder (default: gpt2)", metavar="NAME"
    )
    mapping: str | None = arg(
        None, "without --init: the mapping network (default: mlp)", choices=["mlp", "transformer"]
    )
    prefix_length: int | None = arg(None, "without --init: prefix tokens (default: 10)")
    clip_length: int | None = arg(None, "without --init: CLIP tokens of the transformer (default: 10)")
    mapping_layers: int | None = arg(None, "without --init: layers of the transformer (default: 8)")
    normalize: bool = arg(False, "without --init: divide CLIP embeddings by their L2 norm")

    def check(self) -> None:
        """Raise a UserError for a fresh mapping network that cannot be."""
        useless = [name for name in OF_TRANSFORMER if getattr(self, name) is not None]
        if useless and self.mapping != "transformer":
            option = f"--{useless[0].replace('_', '-')}"
            raise UserError(f"{option} has an effect only with --mapping transformer: leave it out")
        if (self.mapping_layers or 0) > MOST_LAYERS:
            raise UserError(f"--mapping-layers must be at most {MOST_LAYERS}, not {self.mapping_layers}")


@dataclass
class LoopArguments:
    """How long, how fast, and where to."""

    _argument_group_name = "training"

    output_dir: str | None = arg(None, "folder for weights, metrics and state (default: runs/STRATEGY)", metavar="DIR")
    epochs: int = arg(3, "passes over the training captions")
    min_steps: int = arg(0, "a small data set is repeated within each epoch until the run has this many steps")
    batch_size: int = arg(32, "captions per step, which several processes share out")
    accumulate: int = arg(1, "batches whose mean gradient moves the weights")
    learning_rate: float = arg(2e-5, "highest learning rate; warms up to it, then falls to 0")
    mapping_learning_rate: float | None = arg(None, "that of the mapping network (default: the same)", metavar="RATE")
    warmup: float = arg(0.05, "share of the steps that warm up")
    weight_decay: float = arg(0.01, "weight decay of matrices; vectors have none")
    clip_norm: float = arg(1.0, "gradients with a larger norm are scaled down to this one")
    evals_per_epoch: int = arg(
        2, "evaluations per epoch; each saves the state, and the weights if they are the best so far"
    )
    patience: int | None = arg(2, "end after this many evaluations without a better validation loss")
    seed: int = arg(0, "seed of initialisation, order of the data and dropout")
    device: str = arg("auto", "device to train on: cpu, cuda, ...")
    precision: str = arg("auto", "auto: bf16 or fp16 where it is faster", choices=list(PRECISIONS))
    report_to: str = arg("none", "where else to send the metrics", choices=["none", "tensorboard", "wandb", "trackio"])
    no_fast: bool = arg(False, "leave out clipcap/fast: slower, for comparison; only dropout draws otherwise")
    compile: bool = arg(False, "torch.compile each step: for GPUs, where it was never measured; slower on a CPU")
    resume: bool = arg(False, "go on from the state in the output folder")

    def check(self) -> None:
        """Raise a UserError for a value that makes no sense."""
        at_least(
            1,
            option=True,
            epochs=self.epochs,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            evals_per_epoch=self.evals_per_epoch,
            patience=self.patience,
        )
        if self.precision not in PRECISIONS:
            raise UserError(f"--precision must be one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise UserError(f"--{name.replace('_', '-')} must be at most {most}, not {getattr(self, name)}")
        at_least(0, option=True, seed=self.seed, min_steps=self.min_steps, weight_decay=self.weight_decay)
        for name in ("learning_rate", "mapping_learning_rate"):
            if (rate := getattr(self, name)) is not None and not 0 < rate < math.inf:
                raise UserError(f"--{name.replace('_', '-')} must be a number above 0, not {rate}")
        if not self.weight_decay < math.inf:
            raise UserError(f"--weight-decay must be a number, not {self.weight_decay}")
        if not self.clip_norm > 0:
            raise UserError(f"--clip-norm must be above 0 (inf for no clipping), not {self.clip_norm}")
        if not 0 <= self.warmup < 1:
            raise UserError(f"--warmup must be a share of the steps, at least 0 and below 1, not {self.warmup}")

    def repeats(self, captions: int) -> int:
        """How often each of so many captions comes in an epoch, for a run of `min_steps` steps in all."""
        return max(1, math.ceil(self.min_steps * self.accumulate * self.batch_size / (self.epochs * captions)))


def settings(*arguments: Any) -> dict[str, Any]:
    """The options of these dataclasses that must be the same when a run is resumed, by name.

    With others it would not reach the same weights. Every option counts unless it is named above.
    """
    options = {name: value for group in arguments for name, value in vars(group).items()}
    return {name: value for name, value in options.items() if name not in NO_NUMBERS | RESOLVED}
