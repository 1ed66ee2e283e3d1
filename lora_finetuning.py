"""LoRA fine-tuning: low-rank adapters and the mapping network train, the weights of the language model stay.

    python lora_finetuning.py --data instagram_data --init coco --rank 4 16 64

It trains one model per rank and writes lora_{rank}_weights.pt, a small file that names the weights it was trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clipcap.cli.options import arg, parse
from clipcap.cli.status import run
from clipcap.errors import UserError
from clipcap.model.clipcap import ClipCap
from clipcap.training.arguments import DataArguments, LoopArguments, StartArguments
from clipcap.training.experiment import Experiment, Save
from clipcap.weights.checkpoint import save_checkpoint
from clipcap.weights.lora import ALL_LINEAR, files_of_ranks, inject, merged, save_adapters
from clipcap.weights.peft_folder import claim_exports, export_of, export_peft
from clipcap.weights.places import Base
from clipcap.world.shipped import FINE_TUNING


@dataclass
class StrategyArguments:
    """What the adapters are like, and what is written besides them."""

    _argument_group_name = "LoRA"
    rank: list[int] = arg([4], "one model is trained per rank; of several, each in a folder DIR_RANK (default: 4)")
    alpha: float = arg(16.0, "adapters are scaled by alpha / rank")
    dropout: float = arg(0.1, "dropout in front of the adapters")
    target: list[str] = arg([ALL_LINEAR], f"layers to adapt, by the last part of their names (default: {ALL_LINEAR})")
    freeze_mapping: bool = arg(False, "leave the mapping network as it is: better with 500 captions or fewer")
    merged: bool = arg(False, "also write a file that needs no base")
    export_peft: str | None = arg(None, "also write a folder that peft loads", metavar="DIR")


@dataclass
class LoRALoopArguments(LoopArguments):
    """The same, with a higher learning rate for adapters, since they start at zero, and what suits few captions."""

    min_steps: int = arg(250, "a small data set is repeated within each epoch until the run has this many steps")
    patience: int | None = arg(4, "end after this many evaluations without a better validation loss")
    learning_rate: float = arg(5e-4, "highest learning rate; warms up to it, then falls to 0")
    mapping_learning_rate: float | None = arg(2e-5, "that of the mapping network, which is trained already")


def build(model: ClipCap, base: Base, args: StrategyArguments, rank: int) -> Save:
    """Put in adapters of this rank; they and the mapping network train. Returns what writes all that was asked for."""
    width = model.config.width
    if wrong := [each for each in args.rank if not 1 <= each <= width]:
        raise UserError(f"--rank must be from 1 to {width}, the model's width, not {wrong[0]}")
    settings = inject(model, rank, args.alpha, args.dropout, args.target)
    model.train_only(lambda name: ".lora_" in name or (not args.freeze_mapping and name.startswith("clip_project.")))

    def save(model: ClipCap, path: Path) -> None:
        save_adapters(model, path, base, settings)
        if args.merged:
            save_checkpoint(merged(model), path.with_name(f"lora_{rank}_merged_weights.pt"))
        if args.export_peft:
            export_peft(model, settings, export_of(args.export_peft, rank, args.rank))

    return save


def train(args: StrategyArguments, rank: int, data: DataArguments, start: StartArguments, loop: LoopArguments) -> None:
    """Train the model of one rank: a run that can be resumed alone, of several with an output folder of its own."""
    if loop.output_dir and len(args.rank) > 1:
        loop = replace(loop, output_dir=f"{Path(loop.output_dir)}_{rank}")
    experiment = Experiment.prepare(f"lora_{rank}", data, start, loop, replace(args, rank=[rank]))
    assert experiment.base is not None  # `main` refuses to start without --init
    save = build(experiment.model, experiment.base, args, rank)
    peft = [Path(args.export_peft)] if args.export_peft else []
    files = files_of_ranks(args.rank, args.merged, rank, str(experiment.loop_args.output_dir))
    more = args.merged or bool(peft)
    experiment.train(f"LoRA {rank}", f"lora_{rank}_weights.pt", save=save, folders=peft, save_again=more, files=files)


def main(argv: Sequence[str] | None = None) -> None:
    """Train with the options of a command line, this process's own when None. Raises UserError."""
    args, data_args, start_args, loop_args = parse(
        argv,
        *(StrategyArguments, DataArguments, StartArguments, LoRALoopArguments),
        description="LoRA fine-tuning of ClipCap on captions people wrote.",
        example="python lora_finetuning.py --data instagram_data --init coco --rank 4 16 64",
        demo=FINE_TUNING | {"mapping_learning_rate": None},
    )
    if args.freeze_mapping and loop_args.mapping_learning_rate == LoRALoopArguments.mapping_learning_rate:
        loop_args.mapping_learning_rate = None
    if not start_args.init:
        raise UserError("LoRA adapts trained weights: give them with --init (coco, conceptual, or a file)")
    args.rank, args.target = list(dict.fromkeys(args.rank)), sorted(set(args.target))  # each once, layers in any order
    claim_exports(export_of(args.export_peft, rank, args.rank) for rank in args.rank if args.export_peft)
    for rank in args.rank:
        train(args, rank, data_args, start_args, loop_args)


if __name__ == "__main__":
    run(main)
