"""Where images and captions come from: the registry of sources, and the sources that are not plain folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from clipcap.cli.options import arg
from clipcap.data.archives import instagram_archive
from clipcap.data.coco import coco
from clipcap.data.conceptual import conceptual
from clipcap.data.examples import Example, Source, check_fractions
from clipcap.data.folders import folder
from clipcap.data.hub import from_hub
from clipcap.data.parquet import parquet
from clipcap.data.pickles import clipcap
from clipcap.data.reading import short
from clipcap.data.tars import tar
from clipcap.errors import UserError, at_least

INSTAGRAM = "kkcosmos/instagram-images-with-captions"
PLANNED = ("limit", "val_fraction", "test_fraction", "seed", "allow_outside")  # options that a dataset's plan holds


@dataclass
class SourceArguments:
    """Options of load_data.py: the source, and how its images are divided into splits."""

    _argument_group_name = "where images and captions come from"

    source: list[str] | None = arg(None, "a source and where it is: see the list above", metavar=("NAME", "WHERE"))
    limit: int | None = arg(None, "use the first N images of every split")
    val_fraction: float = arg(0.05, "share of the training images set aside where the source has no validation split")
    test_fraction: float = arg(0.05, "the same for a test split")
    seed: int = arg(0, "decides which images are set aside")
    image_column: str = arg("image", "column of a hub data set, or of parquet files")
    caption_column: str = arg("caption", "column of a hub data set, or of parquet files")
    allow_outside: bool = arg(False, "names and links in the source may lead to files outside its folder")
    demo: bool = arg(False, "make the demo world's dataset: sets --source, --clip and --output")

    def __post_init__(self) -> None:
        at_least(1, option=True, limit=self.limit)
        check_fractions({"validation": self.val_fraction, "test": self.test_fraction})


def open_source(words: Sequence[str], options: SourceArguments | None = None, clip: str | None = None) -> Source:
    """The source that the command line names, with its examples listed.

    Args:
        words: the source's name and, for most sources, where it is.
        options: the columns of a hub data set; defaults when None.
        clip: the CLIP model that the user asked for; a source that brings embeddings checks it.

    Raises:
        UserError: the name is unknown, or the place is missing, empty, broken or out of reach.
    """
    name, *where = words
    if name not in SOURCES:
        raise UserError(f"unknown source {name!r}; choose one of {', '.join(SOURCES)}")
    kind = SOURCES[name]
    possible, needed = bool(kind.where), bool(kind.where) and not kind.where.startswith("[")
    if not needed <= len(where) <= possible:
        quoted = "; put a pattern into quotes" if len(where) > 1 else ""
        given = short(" ".join(words))[1:-1]
        raise UserError(f"--source {given} cannot be read; write --source {f'{name} {kind.where}'.strip()}{quoted}")
    return kind.open(where[0] if where else None, options or SourceArguments(), clip)


def instagram(path: str | None, options: SourceArguments, *_: Any) -> Source:
    """The Instagram data set from the hub (28,360 posts for training, and a test split), or saved in a folder."""
    return from_hub("instagram", path or INSTAGRAM, "image", "caption", options.allow_outside, id_column="item_id")


def hub(path: str, options: SourceArguments, *_: Any) -> Source:
    """A data set of the hub, or a folder as `datasets` saves it, with a column of images and one of captions."""
    return from_hub("hub", path, options.image_column, options.caption_column, options.allow_outside)


def demo(posts: str | None, *_: Any) -> Source:
    """The demo world's pictures with their Instagram-style captions, or "varied" ones, of any length."""
    from clipcap.world.scenes import SPLITS, Scene, scenes

    if posts not in (None, "varied"):
        raise UserError(f"--source demo has no posts {posts!r}; write --source demo, or --source demo varied")
    write = Scene.varied_post if posts else Scene.post
    examples = [
        Example(scene.image_id, (write(scene),), scene.draw, split) for split in SPLITS for scene in scenes(split)
    ]
    return Source({"name": "demo"} | ({"posts": posts} if posts else {}), examples, clip="demo")


@dataclass(frozen=True)
class Kind:
    """A kind of source.

    Attributes:
        open: (where, options, clip) -> Source.
        where: what the user writes after the name; in brackets where it may be left out.
        help: one line for the list of sources.
    """

    open: Callable[..., Source]
    where: str
    help: str


SOURCES = {
    "instagram": Kind(instagram, "[FOLDER]", f"{INSTAGRAM} from the hub, or saved in FOLDER"),
    "instagram-archive": Kind(
        lambda path, options, _: instagram_archive(path, options.allow_outside),
        "EXPORT.ZIP",
        "your own posts: the export that Instagram makes, as JSON",
    ),
    "hub": Kind(hub, "DATASET", "another image-caption data set of the hub, or saved in a folder"),
    "folder": Kind(
        lambda path, options, _: folder(path, options.allow_outside),
        "PATH",
        "images with metadata.jsonl, captions.csv, or a .txt beside each",
    ),
    "clipcap": Kind(lambda path, _, clip: clipcap(path, clip), "FILE.PKL", "embeddings in ClipCap's own format"),
    "coco": Kind(
        lambda path, options, _: coco(path, options.allow_outside),
        "PATH",
        "COCO's folder, or its captions_*.json, dataset_coco.json or train_caption.json",
    ),
    "conceptual": Kind(
        lambda path, options, _: conceptual(path, options.allow_outside),
        "PATH",
        "Conceptual Captions: a .tsv of captions and addresses, and the images",
    ),
    "tar": Kind(
        lambda path, options, _: tar(path, options.allow_outside),
        "PATH",
        "tar shards: KEY.jpg with KEY.txt or KEY.json; a pattern too: '{00000..00331}.tar'",
    ),
    "parquet": Kind(
        lambda path, options, _: parquet(path, options.image_column, options.caption_column, options.allow_outside),
        "PATH",
        "parquet files with images inside; of the hub too, read over the network: hf:owner/name",
    ),
    "demo": Kind(demo, "[varied]", "the demo world's drawn scenes; varied: with posts of any length"),
}
