"""Full fine-tuning: the mapping network and all of GPT-2 learn to caption the way people caption their own photos.

    python basic_finetuning.py --data instagram_data --init coco --output-dir runs/base

It writes base_weights.pt (best validation loss), loss.png, metrics.jsonl and captions of validation images.
Without --init it starts from plain GPT-2 and a fresh mapping network; --freeze-language-model then trains the mapping
network alone, as ClipCap's transformer variant does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from clipcap.cli.options import arg, parse
from clipcap.cli.status import run
from clipcap.training.arguments import DataArguments, LoopArguments, StartArguments
from clipcap.training.experiment import Experiment
from clipcap.world.shipped import FINE_TUNING


@dataclass
class StrategyArguments:
    """Which part of the model trains."""

    _argument_group_name = "full fine-tuning"

    freeze_language_model: bool = arg(False, "train the mapping network alone")


def main(argv: Sequence[str] | None = None) -> None:
    """Train with the options of a command line, this process's own when None. Raises UserError."""
    strategy_args, data_args, start_args, loop_args = parse(
        argv,
        *(StrategyArguments, DataArguments, StartArguments, LoopArguments),
        description="Full fine-tuning of ClipCap on captions people wrote.",
        example="python basic_finetuning.py --data instagram_data --init coco --output-dir runs/base",
        demo=FINE_TUNING,
    )
    experiment = Experiment.prepare("base", data_args, start_args, loop_args, strategy_args)
    mapping_alone = strategy_args.freeze_language_model
    experiment.model.train_only(lambda name: name.startswith("clip_project.") or not mapping_alone)
    experiment.train("mapping" if mapping_alone else "full", "base_weights.pt")


if __name__ == "__main__":
    run(main)
