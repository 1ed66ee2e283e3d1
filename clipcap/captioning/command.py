"""The command `clipcap`, which is `predict.py` too: files and folders of pictures -> a caption for each.

    clipcap --weights coco photos/ --output captions.jsonl

A second run captions only the pictures that the output has no caption of yet. Exit status: 0 if all pictures have
captions, 1 if some failed (each is listed), 2 if nothing could be done, 70 for a fault of the program, 130 or 143 if it
was interrupted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from clipcap.captioning.console import write_out
from clipcap.captioning.options import CaptionArguments, DecodingArguments, check_sizes, chosen
from clipcap.captioning.rows import Writer
from clipcap.captioning.sidecars import EXISTING, TEXT, XMP, Sidecars
from clipcap.captioning.writers import open_writer
from clipcap.cli.options import OnOff, arg, parse
from clipcap.clip.images import find_images
from clipcap.clip.workers import MOST_WORKERS
from clipcap.decoding.options import SEQUENCES
from clipcap.devices import CAPTIONING
from clipcap.errors import UserError
from clipcap.world.shipped import PREDICT

LONG = 60  # seconds after which a run says how the next could take less


@dataclass
class OutputArguments:
    """Where captions are written to."""

    _argument_group_name = "where captions go"

    output: str | None = arg(None, "file to write, by its ending: .jsonl, .csv, .html (picture book)", metavar="FILE")
    sidecar: bool = arg(False, "write a .txt beside each picture: a.txt, or a.jpg.txt and a.png.txt if both exist")
    xmp: bool = arg(False, "write an .xmp beside each picture, named likewise, with the caption as its description")
    existing: str = arg("skip", f"an older text: {', '.join(EXISTING)}", choices=list(EXISTING), metavar="HOW")
    show_literal: bool = arg(False, "also give the literal caption that a prompted model starts from")


@dataclass
class ModelArguments:
    """What captions the pictures, and how it runs."""

    _argument_group_name = "model"

    weights: str | None = arg(None, "a file, coco, conceptual, coco-transformer, hf:owner/name, ...", metavar="WEIGHTS")
    clip: str | None = arg(None, "NAME, NAME:PRETRAINED, file or folder, in place of the CLIP that the weights name")
    base: str | None = arg(None, "what LoRA weights were trained on, if it has moved", metavar="FILE")
    normalize: bool | None = arg(None, "of published weights: divide CLIP's embeddings by their norm", action=OnOff)
    with_prompt: bool = arg(
        False, "of instagram-prompted: use the prompt of prompt_finetuning.py; its own code has none"
    )
    device: str = arg("auto", "cpu, cuda, ...")
    precision: str = arg("auto", "auto: bf16 where it is fast; int8: rounded, faster on CPUs", choices=list(CAPTIONING))
    batch_size: int | None = arg(
        None, f"pictures captioned together (default: {SEQUENCES}, fewer with beams or several captions)"
    )
    workers: int | None = arg(None, f"processes that read pictures (default: one per CPU core, at most {MOST_WORKERS})")
    no_fast: bool = arg(False, "leave out clipcap/fast: slower, for comparison; only what is sampled differs")
    demo: bool = arg(False, "set the defaults to the demo world shipped with the project")


def main(argv: Sequence[str] | None = None, command: str = "clipcap") -> int:
    """Caption the pictures that the command line names; returns the exit status. `command` is what the user typed."""
    output_args, model_args, decoding_args, caption_args, given = parse(
        argv,
        *(OutputArguments, ModelArguments, DecodingArguments, CaptionArguments),
        description="Caption photos. Prints path<TAB>caption as each caption exists.",
        example=f"{command} --weights coco photos/ --output captions.jsonl",
        positional=("images", {"nargs": "*", "help": "picture files, and folders of them"}),
        demo=PREDICT,
        program=command,
    )
    if not given.images or not model_args.weights:
        raise UserError(f"give weights and pictures, like: {command} --weights coco photos/")
    check_sizes(model_args.batch_size, model_args.workers)
    searched = chosen(decoding_args, caption_args)
    if output_args.existing != "skip" and not (output_args.sidecar or output_args.xmp):
        raise UserError(f"--existing {output_args.existing} has an effect only with --sidecar or --xmp")
    with ExitStack() as stack:
        outputs = [stack.enter_context(closing(output)) for output in open_outputs(output_args)]
        found, todo = count(given.images, outputs)
        if not todo:
            print(f"all {found} pictures are captioned already", file=sys.stderr)
            return 0
        from clipcap.captioning.captioner import Captioner
        from clipcap.fast.int8 import is_faster
        from clipcap.model.prompts import PROMPTS, needs_literal

        captioner = Captioner.load(
            *(model_args.weights, model_args.clip, model_args.device, model_args.precision, not model_args.no_fast),
            base=model_args.base,
            normalize=model_args.normalize,
            prompt=PROMPTS["template"] if model_args.with_prompt else None,
        )
        if output_args.show_literal and not needs_literal(captioner.model.config.prompt):
            print("note: these weights start from no literal caption, so there is none to show", file=sys.stderr)
        rows = captioner.rows(wanted(given.images, outputs), *searched, model_args.batch_size, model_args.workers)
        if not output_args.show_literal:
            rows = (replace(row, literal=None) for row in rows)
        started = time.monotonic()
        status = write_out(rows, todo, outputs, skipped=found - todo)
        untold = model_args.precision == "auto" and not (model_args.no_fast or captioner.model.config.network)
        if untold and time.monotonic() - started > LONG and is_faster(captioner.model.device):
            print("note: on this CPU --precision int8 takes less time, and changes few captions", file=sys.stderr)
        return status


def open_outputs(args: OutputArguments) -> list[Writer | Sidecars]:
    """The outputs that were asked for; perhaps none. Raises UserError for one that cannot be written."""
    outputs: list[Writer | Sidecars] = [open_writer(args.output)] if args.output else []
    kinds = [kind for kind, asked in ((TEXT, args.sidecar), (XMP, args.xmp)) if asked]
    return [*outputs, Sidecars(args.existing, kinds)] if kinds else outputs


def wanted(paths: Sequence[str], outputs: Sequence[Writer | Sidecars]) -> Iterator[Path]:
    """The pictures that at least one output has no caption of yet; all pictures if there are no outputs."""
    return (path for path in find_images(paths) if not outputs or any(output.wants(path) for output in outputs))


def count(paths: Sequence[str], outputs: Sequence[Writer | Sidecars]) -> tuple[int, int]:
    """How many pictures there are, and how many of them are to be captioned. Raises UserError if there are none."""
    found = sum(1 for _ in find_images(paths))
    if not found:
        raise UserError(f"no pictures in {', '.join(map(repr, paths))}")
    return found, sum(1 for _ in wanted(paths, outputs))
