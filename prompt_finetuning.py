"""Prompted fine-tuning: between image and caption stands a text, which may hold the caption of a literal captioner.

    python prompt_finetuning.py --data instagram_data --init coco

It writes prompted_weights.pt, which holds the literal captioner too. The prompt is data, and the loss ignores it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipcap.cli.options import arg, parse
from clipcap.cli.status import run
from clipcap.errors import UserError
from clipcap.model.clipcap import ClipCap
from clipcap.model.controls import OPTIONS, find_bounds
from clipcap.model.prompts import PROMPTS, check_template, needs_literal, prompts_for
from clipcap.training.arguments import DataArguments, LoopArguments, StartArguments
from clipcap.training.experiment import Experiment
from clipcap.training.literals import load_literal_captioner, stored_literal_captions
from clipcap.weights.checkpoint import save_checkpoint
from clipcap.world.shipped import FINE_TUNING


@dataclass
class StrategyArguments:
    """The text between image and caption."""

    _argument_group_name = "prompt"

    prompt: str = arg("template", "the template, the literal caption alone, or nothing", choices=list(PROMPTS))
    template: str | None = arg(None, f"a text of your own (default: '{PROMPTS['template']}')", metavar="TEXT")
    literal_weights: str | None = arg(None, "the literal captioner (default: the --init weights)", metavar="WEIGHTS")
    controls: list[str] = arg([], "what predict.py can ask captions for afterwards", choices=list(OPTIONS))


def build(experiment: Experiment, template: str | None, literal_weights: str | None) -> dict[str, Any]:
    """Let everything train. Returns how to make the prompts of a split, and how to save the literal captioner too."""
    model = experiment.model
    model.train_only(lambda name: True)
    model.config.prompt, model.config.running_text = template, True
    literal = None
    if needs_literal(template):
        if not literal_weights:
            raise UserError("the prompt holds a literal caption: give its captioner with --literal-weights or --init")
        literal, identity = load_literal_captioner(experiment, literal_weights)

    def prompts(split: str, rows: int) -> list[list[int]] | None:
        literals = None
        if literal is not None:
            literals = stored_literal_captions(experiment, split, rows, literal, identity)
        return prompts_for(model, experiment.tokenizer, rows, literals)

    def save(model: ClipCap, path: Path) -> None:
        model.literal_captioner = literal
        save_checkpoint(model, path)
        model.literal_captioner = None

    return {"prompts": prompts, "save": save}


def main(argv: Sequence[str] | None = None) -> None:
    """Train with the options of a command line, this process's own when None. Raises UserError."""
    args, data_args, start_args, loop_args = parse(
        argv,
        *(StrategyArguments, DataArguments, StartArguments, LoopArguments),
        description="Prompted fine-tuning of ClipCap on captions people wrote.",
        example="python prompt_finetuning.py --data instagram_data --init coco",
        demo=FINE_TUNING,
    )
    if args.template is not None and args.prompt != "template":
        raise UserError(f"--template has an effect only with --prompt template, and the prompt is {args.prompt}")
    args.template = PROMPTS[args.prompt] if args.template is None else args.template
    check_template(args.template or "")
    if args.literal_weights and not needs_literal(args.template):
        raise UserError("--literal-weights has an effect only where the prompt holds a literal caption: leave it out")
    args.literal_weights = args.literal_weights or start_args.init
    args.controls = sorted(set(args.controls))  # so that --resume takes them in any order
    experiment = Experiment.prepare("prompted", data_args, start_args, loop_args, args)
    learned = experiment.store.captions("train")[: data_args.limit_train]
    experiment.model.config.controls = find_bounds(args.controls, learned)
    options = build(experiment, args.template, args.literal_weights)
    experiment.train("prompted", "prompted_weights.pt", **options)


if __name__ == "__main__":
    run(main)
