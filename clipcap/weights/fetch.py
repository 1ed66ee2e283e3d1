"""Download everything that captioning needs, for a machine or a moment without a network.

python -m clipcap.weights.fetch coco
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clipcap.cli.options import arg, parse
from clipcap.cli.status import run
from clipcap.errors import UserError


@dataclass
class FetchArguments:
    """What the weights do not say themselves."""

    _argument_group_name = "weights"

    base: str | None = arg(None, "what the LoRA weights among them were trained on, if it has moved", metavar="FILE")


def main(argv: Sequence[str] | None = None) -> None:
    """Download weights, their CLIP and their tokenizer, make sure that they open, and print where they lie."""
    args, given = parse(
        argv,
        FetchArguments,
        description="Download weights, their CLIP and their tokenizer, so that captioning needs no network.",
        example="python -m clipcap.weights.fetch coco",
        positional=("weights", {"nargs": "*", "help": "coco, conceptual, hf:owner/name, a file, ..."}),
        program="python -m clipcap.weights.fetch",
    )
    if not given.weights:
        raise UserError("give the names of weights, like: python -m clipcap.weights.fetch coco")
    from huggingface_hub.constants import HF_HUB_CACHE

    from clipcap.clip.loading import load_parts, load_text_tokenizer
    from clipcap.model.language_model import tokenizer_of
    from clipcap.weights.checkpoint import load_checkpoint
    from clipcap.weights.places import base_among, check_base, check_clip_place
    from clipcap.weights.published import resolve_weights
    from clipcap.world.shipped import CLIP

    check_base(given.weights, args.base)
    for name in given.weights:
        file = resolve_weights(name)
        config = load_checkpoint(file, base=base_among(file, args.base)).config
        tokenizer_of(config)
        print(f"{name}\t{file}")
        if not config.clip_model:
            raise UserError(f"{name} does not say which CLIP it was trained on, so that one is not downloaded")
        check_clip_place(config, file, "give that CLIP with --clip when you caption (clip= in Python)")
        clip, pretrained, parts = load_parts(config.clip_model, config.clip_pretrained or "openai")
        load_text_tokenizer(clip, parts.make_tokenizer)  # for --rank clip
        print(f"CLIP {clip} {pretrained}".rstrip() + f"\t{CLIP if clip == 'demo' else HF_HUB_CACHE}")


if __name__ == "__main__":
    run(main)
