"""Fine-tuning of the head or any other named part: the rest of the model stays bit for bit what it was.

    python frozen_finetuning.py --data instagram_data --init coco --train head

It writes frozen_model_weights.pt. Frozen parts have no gradient, no optimizer state and no dropout, and those below the
lowest part that trains are run without autograd.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from clipcap.cli.options import arg, parse
from clipcap.cli.status import run
from clipcap.model.clipcap import ClipCap
from clipcap.model.parts import PARTS, parameters_of
from clipcap.training.arguments import DataArguments, LoopArguments, StartArguments
from clipcap.training.experiment import Experiment
from clipcap.world.shipped import FINE_TUNING


@dataclass
class StrategyArguments:
    """Which parts of the model train."""

    _argument_group_name = "parts"

    train: list[str] = arg(["head"], f"one or more of {', '.join(PARTS)}, last:N (default: head)", metavar="PART")


@dataclass
class FrozenLoopArguments(LoopArguments):
    """The same, with the higher learning rate that a single part needs."""

    learning_rate: float = arg(1e-4, "highest learning rate; warms up to it, then falls to 0")


def build(model: ClipCap, parts: Sequence[str]) -> dict[str, int]:
    """Freeze all but the named parts; returns the names and sizes of the parameters that train.

    The head mostly shares its weights with the input embedding. If only one of the two trains, they are untied first.

    Raises:
        UserError: the model has no such part.
    """
    if ("head" in parts) != ("embeddings" in parts) and model.config.tied_head:
        model.untie_head()
    names = set().union(*(parameters_of(model, part) for part in parts))
    return model.train_only(names.__contains__)


def main(argv: Sequence[str] | None = None) -> None:
    """Train with the options of a command line, this process's own when None. Raises UserError."""
    strategy_args, data_args, start_args, loop_args = parse(
        argv,
        *(StrategyArguments, DataArguments, StartArguments, FrozenLoopArguments),
        description="Fine-tuning of one part of ClipCap on captions people wrote.",
        example="python frozen_finetuning.py --data instagram_data --init coco --train head",
        demo=FINE_TUNING,
    )
    strategy_args.train = sorted(set(strategy_args.train))  # so that --resume takes them in any order
    experiment = Experiment.prepare("frozen", data_args, start_args, loop_args, strategy_args)
    build(experiment.model, strategy_args.train)
    head_alone = strategy_args.train == ["head"]
    experiment.train("head-only" if head_alone else " + ".join(strategy_args.train), "frozen_model_weights.pt")


if __name__ == "__main__":
    run(main)
