"""Images with captions -> a dataset on disk, with cleaned captions and with CLIP embeddings that are computed once.

    python load_data.py --source instagram --output instagram_data
    python load_data.py --source folder my_photos --output my_data

An interrupted run continues where it stopped when the same command is given again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcap.captioning.options import check_sizes
from clipcap.cli.options import arg, parse
from clipcap.cli.processes import Processes, together
from clipcap.cli.status import run
from clipcap.clip.names import ClipIdentity, model_and_weights, pretrained_of
from clipcap.clip.workers import MOST_WORKERS
from clipcap.data.canaries import MOST_CANARIES, plant
from clipcap.data.cleaning import Cleaning
from clipcap.data.embed import write_shards
from clipcap.data.examples import Source
from clipcap.data.selection import select
from clipcap.data.shards import IMAGES_PER_SHARD, Shards
from clipcap.data.sources import PLANNED, SOURCES, SourceArguments, open_source
from clipcap.data.store import EmbeddingStore
from clipcap.data.writer import LIST, DatasetWriter, claim_folder
from clipcap.devices import PRECISIONS, pick_device, pick_dtype
from clipcap.errors import UserError, at_least
from clipcap.files import only_writer
from clipcap.world.shipped import LOAD_DATA

if TYPE_CHECKING:
    from clipcap.clip.encoder import ClipEncoder


@dataclass
class DatasetArguments:
    """Where the dataset is written, and how its images are embedded."""

    _argument_group_name = "the dataset and its embeddings"

    output: str | None = arg(None, "folder to write: new, empty, or begun by the same command", metavar="DIR")
    clip: str | None = arg(
        None, "CLIP model: an open_clip or OpenAI name, or a folder (default: the source's, or ViT-B/32)"
    )
    pretrained: str | None = arg(None, "which weights of that CLIP model (default: openai)")
    device: str = arg("auto", "where CLIP runs: cpu, cuda, ...")
    precision: str = arg("auto", "of CLIP's weights; auto: bf16 or fp16 where it is fast", choices=list(PRECISIONS))
    batch_size: int = arg(128, "images in one pass of CLIP")
    workers: int | None = arg(None, f"processes that decode images (default: one per CPU core, at most {MOST_WORKERS})")
    decode_on_device: bool = arg(False, "let a GPU decode JPEGs, as predict.py's option does: no GPU has tried it yet")
    no_fast: bool = arg(False, "leave out clipcap/fast: slower, for comparison; the embeddings are the same")
    keep_shards: bool = arg(False, "leave the dataset in shards: no second copy of it on the disk at the end")
    canaries: int = arg(0, "plant N sentences with a secret each: evaluate.py then says what a model has memorised")

    def check(self, folder: Path) -> None:
        """Raise a UserError for what cannot work, before anything that takes long."""
        check_sizes(self.batch_size, self.workers)
        at_least(0, option=True, canaries=self.canaries)
        if self.canaries > MOST_CANARIES:
            raise UserError(f"--canaries must be at most {MOST_CANARIES}, not {self.canaries}")
        pick_device(self.device)
        claim_folder(folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the dataset that the command line describes."""
    source_args, cleaning, out = parse(
        argv,
        *(SourceArguments, Cleaning, DatasetArguments),
        description="Turn images and captions into a dataset with CLIP embeddings.\n\nsources:\n"
        + "\n".join(f"  {f'{name} {kind.where}':30}{kind.help}" for name, kind in SOURCES.items()),
        example="python load_data.py --source instagram --output instagram_data",
        demo=LOAD_DATA,
    )
    if not source_args.source or not out.output:
        raise UserError("say where the data comes from and goes: --source NAME [WHERE] --output DIR, or --demo")
    folder = Path(out.output)
    out.check(folder)
    with together(source_args, cleaning, out) as processes:
        with only_writer(folder) if processes.main else nullcontext():
            make(folder, source_args, cleaning, out, processes)
        if processes.main:
            print(summary(EmbeddingStore.open(folder)))


def make(
    folder: Path, source_args: SourceArguments, cleaning: Cleaning, out: DatasetArguments, processes: Processes
) -> None:
    """Make the dataset in `folder`, or go on with it, or see that it is complete."""
    source = open_source(source_args.source or (), source_args, out.clip)
    selected, cleaned = select(source.examples, cleaning, source_args)
    examples, canaries = plant(selected, out.canaries, source_args.seed)
    encoder, clip = processes.load(lambda: load_clip(source, out))
    shards = Shards(examples, IMAGES_PER_SHARD)
    plan = {
        "source": source.info,
        "clip": clip,
        "precision": str(encoder.dtype) if encoder else None,
        "JPEG decoder": "device" if out.decode_on_device else None,
        "cleaning": asdict(cleaning),
        "number of canaries": len(canaries),
        **{name: getattr(source_args, name) for name in PLANNED},
        LIST: shards.fingerprint,
    }
    for name, value in plan.items():
        processes.agree(value, name)
    writer = DatasetWriter(folder, plan, shards)
    if processes.main:
        writer.begin()
    missing = processes.gather(writer.missing() if processes.main and not writer.complete else None)[0]
    if missing is not None:
        write_shards(writer, missing, encoder, clip["dim"], out.batch_size, out.workers, processes)
        if processes.main:
            info = {"source": source.info, "clip": clip, "cleaning": cleaned, "canaries": [*map(asdict, canaries)]}
            writer.finish(info, out.keep_shards)
    elif processes.main:
        print(f"{folder} is complete already; {writer.next_step}", file=sys.stderr)


def load_clip(source: Source, out: DatasetArguments) -> tuple[ClipEncoder | None, dict[str, Any]]:
    """The CLIP that embeds the images (None if the source brings embeddings), and what the dataset records about it."""
    if (given := next(iter(source.examples)).clip_embedding) is not None:
        if out.decode_on_device:
            raise UserError("--decode-on-device has no effect: this source brings its embeddings; leave it out")
        name = source.clip or ""
        model, pretrained = model_and_weights(name, pretrained_of(name, out.pretrained))
        return None, {"model": model, "pretrained": pretrained or None, "dim": len(given)}
    from clipcap.clip.encoder import ClipEncoder

    name, device = out.clip or source.clip or "ViT-B/32", pick_device(out.device)
    pretrained, dtype = pretrained_of(name, out.pretrained), pick_dtype(out.precision, device)
    encoder = ClipEncoder.load(name, pretrained, device, dtype, not out.no_fast, decode_on_device=out.decode_on_device)
    return encoder, encoder.identity


def summary(store: EmbeddingStore) -> str:
    """What the dataset holds, in a few lines."""
    info = store.info
    lines = [
        f"{store.path}: {', '.join(f'{split} {rows}' for split, rows in info['splits'].items())} captions",
        f"CLIP: {ClipIdentity(**store.clip)}",
        f"cleaning: {', '.join(f'{step} {count}' for step, count in info['cleaning'].items()) or 'none'}",
        f"canaries: {len(store.canaries) or 'none'}",
        f"images that could not be read: {info['skipped']}",
    ]
    if info["skipped"]:
        lines[-1] += f", listed in {store.path / 'skipped.jsonl'}"
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
