"""Prompted fine-tuning: between the image and the caption stands a text, which may hold what a literal captioner says.

    python prompt_finetuning.py --data instagram_data --init coco

Writes prompted_weights.pt, which holds the literal captioner too. The prompt is data: the loss never looks at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipcap.arguments import DataArguments, LoopArguments, ModelArguments
from clipcap.checkpoint import load_checkpoint, save_checkpoint, sha256
from clipcap.cli import arg, parse, run
from clipcap.embeddings import check_clip
from clipcap.errors import UserError
from clipcap.experiment import Experiment
from clipcap.literal import literal_captions
from clipcap.model import ClipCap
from clipcap.prompts import PROMPTS, check_template, encode_prompts, needs_literal
from clipcap.published import resolve_weights


@dataclass
class StrategyArguments:
    """The text between image and caption."""

    _argument_group_name = "prompt"

    prompt: str = arg("template", "the template, the literal caption alone, or nothing", choices=list(PROMPTS))
    template: str | None = arg(None, f"a text of your own (default: '{PROMPTS['template']}')", metavar="TEXT")
    literal_weights: str | None = arg(None, "the literal captioner (default: the --init weights)", metavar="WEIGHTS")


def build(experiment: Experiment, template: str | None, literal_weights: str | None) -> dict:
    """Everything trains. Returns how to make the prompts of a split, and how to save the literal captioner too."""
    model = experiment.model
    model.train_only(lambda name: True)
    model.config.prompt = template
    literal = None
    if needs_literal(template):
        if not literal_weights:
            raise UserError("the prompt holds a literal caption: say who writes it with --literal-weights or --init")
        literal = load_checkpoint(literal_weights).requires_grad_(False)
        check_clip(experiment.store, literal.config)
        identity = sha256(resolve_weights(literal_weights))

    def prompts(split: str) -> list[list[int]] | None:
        if template is None:
            return None
        rows = experiment.store.info["splits"][split]
        captions = literal_captions(experiment.store, split, literal, identity) if literal else [""] * rows
        return encode_prompts(experiment.tokenizer, template, captions)

    def save(model: ClipCap, path: Path) -> None:
        model.literal_captioner = literal
        save_checkpoint(model, path)
        model.literal_captioner = None

    return {"prompts": prompts, "save": save}


def main(argv: Sequence[str] | None = None) -> None:
    strategy_args, *arguments = parse(
        argv,
        *(StrategyArguments, DataArguments, ModelArguments, LoopArguments),
        description="Prompted fine-tuning of ClipCap on captions people wrote.",
        example="python prompt_finetuning.py --data instagram_data --init coco",
    )
    template = strategy_args.template if strategy_args.template is not None else PROMPTS[strategy_args.prompt]
    check_template(template or "")
    experiment = Experiment.prepare("prompted", *arguments)
    options = build(experiment, template, strategy_args.literal_weights or experiment.model_args.init)
    experiment.train("prompted", "prompted_weights.pt", **options)


if __name__ == "__main__":
    run(main)
