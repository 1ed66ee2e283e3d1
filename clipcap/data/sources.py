"""Where images and captions come from: the registry of sources, and the sources that are not plain folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcap.cli.options import arg
from clipcap.clip.images import UnreadableImage
from clipcap.data.archives import instagram_archive
from clipcap.data.coco import coco
from clipcap.data.conceptual import conceptual
from clipcap.data.examples import Deferred, Example, Source, check_fractions, split_name
from clipcap.data.folders import folder
from clipcap.data.pickles import clipcap
from clipcap.data.reading import Home, legible, read_captions, short
from clipcap.data.tars import tar
from clipcap.errors import UserError, at_least, first_line

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

INSTAGRAM = "kkcosmos/instagram-images-with-captions"


@dataclass
class SourceArguments:
    """Options of load_data.py: the source, and how its images are divided into splits."""

    _argument_group_name = "where images and captions come from"

    source: list[str] | None = arg(None, "a source and where it is: see the list above", metavar=("NAME", "WHERE"))
    limit: int | None = arg(None, "use the first N images of every split")
    val_fraction: float = arg(0.05, "share of the training images set aside where the source has no validation split")
    test_fraction: float = arg(0.05, "the same for a test split")
    seed: int = arg(0, "decides which images are set aside")
    image_column: str = arg("image", "column of a hub data set")
    caption_column: str = arg("caption", "column of a hub data set")
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
        raise UserError(f"--source {' '.join(words)} cannot be read; write --source {f'{name} {kind.where}'.strip()}")
    return kind.open(where[0] if where else None, options or SourceArguments(), clip)


def instagram(path: str | None, options: SourceArguments, *_: Any) -> Source:
    """The Instagram data set from the hub (28,360 posts for training, and a test split), or saved in a folder."""
    return _from_hub("instagram", path or INSTAGRAM, "image", "caption", options.allow_outside, id_column="item_id")


def hub(path: str, options: SourceArguments, *_: Any) -> Source:
    """A data set of the Hugging Face hub, or a folder in its layout, with a column of images and one of captions."""
    return _from_hub("hub", path, options.image_column, options.caption_column, options.allow_outside)


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
    "hub": Kind(hub, "DATASET", "another image-caption data set of the hub"),
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
        "tar shards: KEY.jpg with KEY.txt or KEY.json",
    ),
    "demo": Kind(demo, "[varied]", "the demo world's drawn scenes; varied: with posts of any length"),
}


def _from_hub(
    name: str, path: str, image_column: str, caption_column: str, allow_outside: bool, id_column: str | None = None
) -> Source:
    """List a hub data set; an image's bytes are read when its turn comes."""
    examples = []
    parts = _load(path, allow_outside)
    home = _home(path, allow_outside)
    for part, rows in parts.items():
        missing = [
            column for column in (image_column, caption_column, id_column) if column and column not in rows.features
        ]
        if missing:
            has = ", ".join(short(column)[1:-1] for column in rows.column_names)
            raise UserError(f"data set {path!r} has no column {missing[0]!r}; it has {has}")
        ids = _column(rows, id_column, path) if id_column else (f"{part}/{number}" for number in range(len(rows)))
        images = _undecoded(rows, image_column, path)
        origin = Path(rows.cache_files[0]["filename"]) if rows.cache_files else None
        split = split_name(part, part) if len(parts) > 1 else "train"  # a lone split is to train on, whatever its name
        for number, (image_id, caption) in enumerate(zip(ids, _column(rows, caption_column, path), strict=True)):
            captions = read_captions(caption, f"data set {path!r}, {part}, row {number}")
            image = Deferred(partial(_hub_image, images, number, home))
            examples.append(Example(legible(str(image_id)), captions, image, split, origin=origin))
    return Source({"name": name, "path": path}, examples)


def _load(path: str, allow_outside: bool) -> DatasetDict:
    from datasets import load_dataset, load_dataset_builder
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # without its five warnings about retries: the message below says it all
    try:
        if Path(path).is_dir() and not allow_outside:
            _check_files(path, load_dataset_builder(path).config.data_files or {})
        return load_dataset(path)
    except UserError:
        raise
    except DatasetNotFoundError:
        raise UserError(
            f"there is no data set {path!r}, neither on the hub nor as a folder, that you may read"
        ) from None
    except ConnectionError as error:
        raise UserError(
            f"data set {path!r} could not be downloaded ({error}); go online once, or give a folder it was saved in"
        ) from None
    except Exception as error:  # builders raise anything over files that they cannot read
        raise UserError(f"data set {path!r} could not be read ({first_line(error)})") from error


def _check_files(path: str, files: Mapping[str, Sequence[str]]) -> None:
    """Raise a UserError if the README.md of a folder sends the reader out of it, to other files or to the network."""
    home = Home(Path(path))
    for file in dict.fromkeys(str(file) for part in files.values() for file in part):
        if "://" in file:
            raise UserError(f"data set {path!r} names {short(file)}; give --allow-outside if you trust it to read that")
        home.check(Path(file), f"data set {path!r}: {short(file)}")


def _column(rows: Dataset, column: str, path: str) -> list[Any]:
    try:
        return list(rows[column])
    except (ValueError, OSError) as error:  # a text that is not UTF-8, a cache that went away
        raise UserError(f"column {column!r} of data set {path!r} could not be read ({first_line(error)})") from None


def _home(path: str, allow_outside: bool) -> Home:
    """Where a data set's image files may be: in its own folder, or in the caches of what comes from the hub."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = [path] if Path(path).is_dir() else []
    return Home(*map(Path, (*folders, config.HF_DATASETS_CACHE, HF_HUB_CACHE)), allow_outside=allow_outside)


def _undecoded(rows: Dataset, column: str, path: str) -> Dataset:
    """Only the image column, as the bytes of the files, so that a broken image does not end the iteration."""
    from datasets import Image

    try:
        return rows.select_columns([column]).cast_column(column, Image(decode=False))
    except (ValueError, TypeError, NotImplementedError):  # as pyarrow says that there is no way from one to the other
        raise UserError(
            f"column {column!r} of data set {path!r} holds no images; name another --image-column"
        ) from None


def _hub_image(rows: Dataset, number: int, home: Home) -> bytes | Path:
    """One image: its bytes where the data set holds them, else its file. Raises UnreadableImage if that is outside."""
    (cell,) = rows[number].values()
    cell = cell or {"bytes": b"", "path": None}
    if cell["bytes"] is not None or not cell["path"]:
        return cell["bytes"] or b""
    if not home.holds(Path(cell["path"])):
        raise UnreadableImage(f"{cell['path']} is outside the data set; --allow-outside would read it")
    return Path(cell["path"])
