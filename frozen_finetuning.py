"""Fine-tuning of the head or any other named part: the rest of the model stays bit for bit what it was.

    python frozen_finetuning.py --data instagram_data --init coco --train head

It writes frozen_model_weights.pt. Frozen parts have no gradient, no optimizer state and no dropout, and those below the
lowest part that trains are run without autograd.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from clipcap.cli.options import arg, parse
from clipcap.cli.status import run
from clipcap.errors import UserError
from clipcap.model.clipcap import ClipCap
from clipcap.training.arguments import DataArguments, LoopArguments, StartArguments
from clipcap.training.experiment import Experiment
from clipcap.world.shipped import FINE_TUNING

# Part -> how the names of its parameters begin, as a regular expression. `last:N`, the last N blocks, is one more.
PARTS = {
    "head": r"gpt\.lm_head\.|gpt\.transformer\.ln_f\.",
    "mapping": r"clip_project\.",
    "embeddings": r"gpt\.transformer\.wte\.",
    "positions": r"gpt\.transformer\.wpe\.",
    "norms": r"gpt\.transformer\.(ln_f|h\.\d+\.ln_[12])\.",
    "attention": r"gpt\.transformer\.h\.\d+\.attn\.",
    "mlp": r"gpt\.transformer\.h\.\d+\.mlp\.",
}


@dataclass
class StrategyArguments:
    """Which parts of the model train."""

    _argument_group_name = "parts"

    train: list[str] = arg(["head"], f"one or more of {', '.join(PARTS)}, last:N (default: head)", metavar="PART")


@dataclass
class FrozenLoopArguments(LoopArguments):
    """The same, with the higher learning rate that a single part needs."""

    learning_rate: float = arg(1e-4, "highest learning rate; warms up to it, then falls to 0")


def pattern_of(part: str, blocks: int) -> str:
    """How the names of a part's parameters begin, as a regular expression; GPT-2 has `blocks` blocks.

    Raises:
        UserError: the model has no such part.
    """
    if part in PARTS:
        return PARTS[part]
    last = re.fullmatch(r"last:(\d{1,9})", part)
    if not last or not 1 <= int(last[1]) <= blocks:
        raise UserError(
            f"--train {part} is no part of this model; choose from {', '.join(PARTS)}, and last:1 to last:{blocks}"
        )
    numbers = "|".join(map(str, range(blocks - int(last[1]), blocks)))
    return rf"gpt\.transformer\.h\.({numbers})\."


def build(model: ClipCap, parts: Sequence[str]) -> dict[str, int]:
    """Freeze all but the named parts; returns the names and sizes of the parameters that train.

    GPT-2's head shares its weights with the input embedding. If only one of the two trains, they are untied first.
    """
    patterns = [pattern_of(part, model.gpt.config.n_layer) for part in parts]
    if ("head" in parts) != ("embeddings" in parts) and model.config.tied_head:
        model.untie_head()
    pattern = re.compile("|".join(patterns))
    return model.train_only(lambda name: pattern.match(name) is not None)


def main(argv: Sequence[str] | None = None) -> None:
    """Train with the options of a command line, this process's own when None. Raises UserError."""
    strategy_args, data_args, start_args, loop_args = parse(
        argv,
        *(StrategyArguments, DataArguments, StartArguments, FrozenLoopArguments),
        description="Fine-tuning of one part of ClipCap on captions people wrote.",
        example="python frozen_finetuning.py --data instagram_data --init coco --train head",
        demo=FINE_TUNING,
    )
    experiment = Experiment.prepare("frozen", data_args, start_args, loop_args, strategy_args)
    build(experiment.model, strategy_args.train)
    head_alone = strategy_args.train == ["head"]
    experiment.train("head-only" if head_alone else " + ".join(strategy_args.train), "frozen_model_weights.pt")


if __name__ == "__main__":
    run(main)
