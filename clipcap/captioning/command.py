"""The command `clipcap`, which is `predict.py` too: files and folders of pictures -> a caption for each.

    clipcap --weights coco photos/ --output captions.jsonl

With `torchrun` several processes share the pictures out, and the first one writes what a single process would.

A second run captions only the pictures that the output has no caption of yet. Exit status: 0 if all pictures have
captions, 1 if some failed (each is listed), 2 if nothing could be done, 70 for a fault of the program, 130 or 143 if it
was interrupted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipcap.captioning.console import write_out
from clipcap.captioning.options import CaptionArguments, DecodingArguments, batch_sizes, check_sizes, chosen
from clipcap.captioning.rows import Writer
from clipcap.captioning.sidecars import EXISTING, TEXT, XMP, Sidecars
from clipcap.captioning.turns import Pictures, Turns
from clipcap.captioning.writers import open_writer
from clipcap.cli.options import OnOff, arg, parse
from clipcap.cli.processes import together
from clipcap.clip.workers import MOST_WORKERS
from clipcap.decoding.options import SEQUENCES
from clipcap.devices import CAPTIONING
from clipcap.errors import UserError
from clipcap.world.shipped import PREDICT

if TYPE_CHECKING:
    from clipcap.captioning.captioner import Captioner

LONG = 60  # seconds after which a run says how the next could take less


@dataclass
class OutputArguments:
    """Where captions are written to."""

    _argument_group_name = "where captions go"

    output: str | None = arg(None, "file to write, by its ending: .jsonl, .csv, .html (picture book)", metavar="FILE")
    sidecar: bool = arg(False, "write a .txt beside each picture: a.txt, or a.jpg.txt and a.png.txt if both exist")
    xmp: bool = arg(False, "write an .xmp likewise, with the caption as its description, unless the picture holds one")
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
    precision: str = arg(
        "auto", "fp32, bf16, fp16, int8 (on CPUs); auto: a fast float", choices=CAPTIONING, metavar="NAME"
    )
    batch_size: int | None = arg(
        None, f"pictures captioned together (default: {SEQUENCES}, fewer with beams or several captions)"
    )
    workers: int | None = arg(None, f"processes that read pictures (default: one per CPU core, at most {MOST_WORKERS})")
    decode_on_device: bool = arg(False, "let a GPU decode JPEGs: see docs/troubleshooting.md, no GPU has tried it yet")
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
    with together(output_args, model_args, decoding_args, caption_args) as processes, ExitStack() as stack:
        outputs = open_outputs(output_args, given.images) if processes.main else []
        for output in outputs:
            stack.enter_context(closing(output))
        found = Pictures.find(given.images, lambda path: processes.main and wanted(path, outputs))
        processes.agree(f"{found.found} with the fingerprint {found.identity}", "pictures")
        pictures = processes.gather(found)[0]
        notes = [text for output in outputs if isinstance(output, Sidecars) for text in output.notes]
        for text in notes:
            processes.note(text)
        if not pictures.todo:
            done = "captioned or described" if output_args.xmp else "captioned"
            processes.note(f"all {pictures.found} pictures are {done} already{', but for those noted' * bool(notes)}")
            return 0
        from clipcap.model.prompts import needs_literal  # here, since torch takes seconds to import
        from clipcap.weights.format import sha256
        from clipcap.weights.published import resolve_weights

        captioner = processes.load(lambda: load_captioner(model_args))
        if processes.world > 1:
            processes.agree(sha256(resolve_weights(model_args.weights))[:8], "weights")
        if output_args.show_literal and not needs_literal(captioner.model.config.prompt):
            processes.note("note: these weights start from no literal caption, so there is none to show")
        turns = Turns(processes, pictures.todo, *batch_sizes(*searched, model_args.batch_size))
        own = captioner.rows(turns.own(pictures), *searched, model_args.batch_size, model_args.workers)
        if not output_args.show_literal:
            own = (replace(row, literal=None) for row in own)
        started = time.monotonic()
        if not processes.main:
            deque(turns.joined(own), 0)
            return 0
        status = write_out(turns.joined(own), pictures.todo, outputs, skipped=pictures.found - pictures.todo)
        if time.monotonic() - started > LONG and int8_is_worth_a_try(model_args, captioner):
            processes.note("note: on this CPU --precision int8 takes less time, and changes few captions")
        return status


def load_captioner(args: ModelArguments) -> Captioner:
    """The captioner that the options ask for. Raises UserError."""
    from clipcap.captioning.captioner import Captioner
    from clipcap.model.prompts import PROMPTS

    return Captioner.load(
        args.weights or "",
        clip=args.clip,
        device=args.device,
        precision=args.precision,
        fast=not args.no_fast,
        decode_on_device=args.decode_on_device,
        base=args.base,
        normalize=args.normalize,
        prompt=PROMPTS["template"] if args.with_prompt else None,
    )


def int8_is_worth_a_try(args: ModelArguments, captioner: Captioner) -> bool:
    """Whether int8 is faster on this CPU, and the user has not chosen otherwise."""
    from clipcap.fast.int8 import is_faster

    is_gpt2 = not captioner.model.config.network
    return args.precision == "auto" and not args.no_fast and is_gpt2 and is_faster(captioner.model.device)


def open_outputs(args: OutputArguments, named: Sequence[str]) -> list[Writer | Sidecars]:
    """The outputs that were asked for, of pictures in what the user named; perhaps none.

    Raises UserError for one that cannot be written.
    """
    outputs: list[Writer | Sidecars] = [open_writer(args.output, args.show_literal)] if args.output else []
    kinds = [kind for kind, asked in ((TEXT, args.sidecar), (XMP, args.xmp)) if asked]
    return [*outputs, Sidecars(args.existing, kinds, named)] if kinds else outputs


def wanted(path: Path, outputs: Sequence[Writer | Sidecars]) -> bool:
    """Whether at least one output has no caption of a picture yet; always if there are no outputs.

    All outputs are asked, since a folder that another run holds is to be noticed before CLIP is loaded.
    """
    return not outputs or any([output.wants(path) for output in outputs])
