"""Write weights as the published code has them, for its notebooks.

    python -m clipcap.weights.export runs/base/base_weights.pt published.pt

The result is the bare state dict that https://github.com/rmokady/CLIP_prefix_caption and
https://github.com/olafbrah/cs182proj load with `load_state_dict(..., strict=False)`. What it does not hold, the reader
must know: their notebooks end a caption at the first ".", while weights trained here end it with GPT-2's end-of-text.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from clipcap.cli.options import arg, parse
from clipcap.cli.status import run
from clipcap.errors import UserError
from clipcap.model.clipcap import LITERAL_CAPTIONER, ClipCap
from clipcap.weights.checkpoint import load_checkpoint
from clipcap.weights.convert import STOP
from clipcap.weights.format import write
from clipcap.weights.places import written_over

OWN_HEAD = "model.gpt.lm_head.weight = nn.Parameter(model.gpt.lm_head.weight.detach().clone())"


@dataclass
class ExportArguments:
    """What is exported."""

    _argument_group_name = "weights"

    base: str | None = arg(None, "what LoRA weights were trained on, if it has moved", metavar="FILE")


def main(argv: Sequence[str] | None = None) -> None:
    """Export the weights that the command line names."""
    args, given = parse(
        argv,
        ExportArguments,
        description="Write weights as the published code has them. LoRA weights are merged into their base.",
        example="python -m clipcap.weights.export runs/base/base_weights.pt published.pt",
        positional=("what", {"nargs": "*", "help": "a file or name of weights, then the file to write"}),
        program="python -m clipcap.weights.export",
    )
    if len(given.what) != 2:
        raise UserError("give weights and a file to write, like: python -m clipcap.weights.export coco published.pt")
    weights, output = given.what
    if Path(output).is_dir():
        raise UserError(f"{output!r} is a folder: give a file to write")
    model = load_checkpoint(weights, base=args.base)
    if model.config.network:
        kind = model.config.network["model_type"]
        raise UserError(f"{weights} write with {kind}, and the published code knows GPT-2 alone: give other weights")
    if written_over(weights, args.base, [Path(output)]):
        raise UserError(
            f"{output} is one of the files that {weights} is loaded from, and would be lost: give another file to write"
        )
    write(published_tensors(model), Path(output))
    print(output)
    if model.config.stop_token != STOP:
        told = 'published notebooks end a caption at ".", and these weights end it with GPT-2\'s end-of-text'
        print(f"note: {told}: let them stop at token {model.config.stop_token}", file=sys.stderr)
    if model.config.normalize:
        print("note: they must divide CLIP's embedding by its norm, as the transformer's does", file=sys.stderr)
    if not model.config.tied_head:
        told = "these weights have a head of its own, and theirs is the token embedding: before `load_state_dict` write"
        print(f"note: {told} {OWN_HEAD}", file=sys.stderr)
    if model.config.prompt is not None:
        print(f"note: between picture and caption they must write {model.config.prompt!r}", file=sys.stderr)


def published_tensors(model: ClipCap) -> dict[str, Tensor]:
    """The state dict under the published names, a literal captioner as `original_model`; float32, on the CPU."""
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return {re.sub(f"^{LITERAL_CAPTIONER}", "original_model.", name): tensor for name, tensor in tensors.items()}


if __name__ == "__main__":
    run(main)
