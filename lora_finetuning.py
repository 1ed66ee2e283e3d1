"""LoRA fine-tuning: low-rank adapters and the mapping network train, the weights of the language model stay.

It trains one model per rank and writes lora_{rank}_weights.pt, a small file that names the weights it was trained on:

    python lora_finetuning.py --data instagram_data --init coco --rank 4 16 64
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipcap.cli.options import arg, parse
from clipcap.cli.status import run
from clipcap.errors import UserError
from clipcap.model.clipcap import ClipCap
from clipcap.training.arguments import DataArguments, LoopArguments, StartArguments
from clipcap.training.experiment import Experiment
from clipcap.weights.checkpoint import save_checkpoint
from clipcap.weights.lora import ALL_LINEAR, inject, merged, save_adapters
from clipcap.weights.peft_folder import claim_exports, export_peft
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


def build(experiment: Experiment, args: StrategyArguments, rank: int) -> dict[str, Any]:
    """Put in adapters of this rank; they and the mapping network train. Returns what `save_adapters` needs."""
    if wrong := [rank for rank in args.rank if not 1 <= rank <= experiment.model.config.width]:
        raise UserError(f"--rank must be from 1 to {experiment.model.config.width}, the model's width, not {wrong[0]}")
    settings = inject(experiment.model, rank, args.alpha, args.dropout, args.target)
    experiment.model.train_only(lambda n: ".lora_" in n or (not args.freeze_mapping and n.startswith("clip_project.")))
    return {"base": Base.of(experiment.start_args.init or ""), "settings": settings}


def train_rank(
    args: StrategyArguments, rank: int, data_args: DataArguments, start_args: StartArguments, loop_args: LoopArguments
) -> None:
    """Train the model of one rank: a run that can be resumed alone, of several with an output folder of its own."""
    output, several = loop_args.output_dir, len(set(args.rank)) > 1
    loop_args = replace(loop_args, output_dir=f"{Path(output)}_{rank}" if output and several else output)
    experiment = Experiment.prepare(f"lora_{rank}", data_args, start_args, loop_args, replace(args, rank=[rank]))
    adapters, kinds = build(experiment, args, rank), ["weights", *["merged_weights"] * args.merged]
    stem = str(experiment.loop_args.output_dir).removesuffix(str(rank) if several else "")
    files = [Path(f"{stem}{each if several else ''}", f"lora_{each}_{kind}.pt") for each in args.rank for kind in kinds]
    exports = claim_exports(args.export_peft, args.rank)

    def save(model: ClipCap, path: Path) -> None:
        save_adapters(model, path, **adapters)
        if args.merged:
            save_checkpoint(merged(model), path.with_name(f"lora_{rank}_merged_weights.pt"))
        if exports:
            export_peft(model, adapters["settings"], exports[rank])

    folders, again = ([Path(args.export_peft)], True) if args.export_peft else ([], args.merged)
    experiment.train(f"LoRA {rank}", f"lora_{rank}_weights.pt", None, save, folders, save_again=again, files=files)


def main(argv: Sequence[str] | None = None) -> None:
    """Train with the options of a command line, this process's own when None. Raises UserError."""
    strategy_args, *arguments = parse(
        argv,
        *(StrategyArguments, DataArguments, StartArguments, LoRALoopArguments),
        description="LoRA fine-tuning of ClipCap on captions people wrote.",
        example="python lora_finetuning.py --data instagram_data --init coco --rank 4 16 64",
        demo=FINE_TUNING | {"mapping_learning_rate": None},
    )
    if strategy_args.freeze_mapping and arguments[2].mapping_learning_rate == LoRALoopArguments.mapping_learning_rate:
        arguments[2].mapping_learning_rate = None
    if not arguments[1].init:
        raise UserError("LoRA adapts trained weights: give them with --init (coco, conceptual, or a file)")
    for rank in dict.fromkeys(strategy_args.rank):  # each once
        train_rank(strategy_args, rank, *arguments)


if __name__ == "__main__":
    run(main)
