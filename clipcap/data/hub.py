"""Data sets of the Hugging Face hub, through `datasets`: downloaded whole, or saved in a folder in either's layout."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcap.clip.images import UnreadableImage
from clipcap.data.examples import Deferred, Example, Listing, Source, split_name
from clipcap.data.reading import Home, legible, parse_json, read_captions, read_text, short
from clipcap.data.tables import map_table
from clipcap.errors import UserError, first_line

if TYPE_CHECKING:
    from datasets import Dataset

STATE, SPLITS = "state.json", "dataset_dict.json"  # what `save_to_disk` writes for a Dataset, and for a DatasetDict
README, DESCRIPTION = "README.md", ".huggingface.yaml"  # both may name files
OF_HUB = re.compile(r"hf://datasets/[^@]+@[^/]+/")  # what the names of a data set's files begin with


def from_hub(
    name: str, path: str, image_column: str, caption_column: str, allow_outside: bool, id_column: str | None = None
) -> Source:
    """A data set of the hub, which is downloaded whole, or a folder: in the layout of the hub, or of `save_to_disk`.

    Captions are read a thousand at a time, and an image's bytes when its turn comes.

    Raises:
        UserError: it cannot be had or read, or lacks one of these columns. Listing the examples raises it too.
    """
    parts = _load(path, allow_outside)
    home = _home(path, allow_outside)
    texts = [column for column in (caption_column, id_column) if column]
    images = {}
    for part, rows in parts.items():
        missing = [column for column in (image_column, *texts) if column not in rows.features]
        if missing:
            has = ", ".join(short(column)[1:-1] for column in rows.column_names)
            raise UserError(f"data set {path!r} has no column {missing[0]!r}; it has {has}")
        images[part] = _undecoded(rows, image_column, path)

    def examples() -> Iterator[Example]:
        for part, rows in parts.items():
            origin = Path(rows.cache_files[0]["filename"]) if rows.cache_files else None
            split = split_name(part, part) if len(parts) > 1 else "train"  # a lone split is to train on, named anyhow
            for number, (caption, *ids) in enumerate(_texts(rows, texts, path)):
                captions = read_captions(caption, f"data set {path!r}, {part}, row {number}")
                image = Deferred(partial(_image, images[part], number, home))
                image_id = legible(str(ids[0] if ids else f"{part}/{number}"))
                yield Example(image_id, captions, image, split, origin=origin)

    place = os.path.realpath(path) if os.path.isdir(path) else path
    info = {"name": name, "path": place} | ({} if image_column == "image" else {"image column": image_column})
    return Source(info, Listing(examples))


def _load(path: str, allow_outside: bool) -> dict[str, Dataset]:
    from datasets import load_dataset, load_dataset_builder
    from datasets.exceptions import DatasetNotFoundError
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as FORMATS
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # without its five warnings about retries: the message below says it all
    is_folder = os.path.isdir(path)
    if not is_folder and path in FORMATS:  # of which `datasets` would read whatever is in the current folder
        raise UserError(f"there is no folder {path!r}, and no data set of this name; check the path")
    place = os.path.abspath(path) if is_folder else path  # never a format, however the folder is called
    try:
        if is_folder and any(os.path.isfile(os.path.join(place, name)) for name in (STATE, SPLITS)):
            return _saved(path, Path(place), allow_outside)
        commit, descriptions = (None, _beside(Path(place))) if is_folder else _at_hub(path)
        if not allow_outside:
            _check_names(path, _named(descriptions))  # before `datasets` looks for them, also in the network
            files = load_dataset_builder(place, revision=commit).config.data_files or {}
            _check_names(path, (OF_HUB.sub("", str(file)) for part in files.values() for file in part))
        return load_dataset(place, revision=commit)
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


def _saved(path: str, folder: Path, allow_outside: bool) -> dict[str, Dataset]:
    """What `save_to_disk` wrote into a folder: names in it and Arrow files are checked before `datasets` reads them."""
    from datasets import Dataset

    def checked(*names: str) -> Path:
        name = os.path.join(*names)
        if not allow_outside:
            _check_names(path, [name])
        if not os.path.isfile(folder / name):  # opening a pipe would block
            raise UserError(f"data set {path!r} has no file {short(name)}; save it again")
        return folder / name

    def read(*names: str) -> Any:
        return parse_json(read_text(checked(*names)), f"data set {path!r}, {short(os.path.join(*names))},")

    lone = (folder / STATE).is_file()
    saved = {}
    for split in [""] if lone else read(SPLITS)["splits"]:
        if not lone and not re.fullmatch(r"\w[\w-]*(\.[\w-]+)*", split):  # a folder is called so
            raise UserError(
                f"data set {path!r} has a split called {short(split)}, but only letters, digits, _, - and dots between "
                "them are allowed; rename it"
            )
        checked(split, "dataset_info.json")
        for file in read(split, STATE)["_data_files"]:
            map_table(checked(split, file["filename"]), "save the data set again")
        saved[split or "train"] = Dataset.load_from_disk(str(folder / split)).with_format(None)
    if not saved:
        raise UserError(f"data set {path!r} has no splits; save it again")
    return saved


def _beside(folder: Path) -> list[Path]:
    """The descriptions in a folder. Raises UserError for a pipe, for which `datasets` would wait."""
    description = folder / DESCRIPTION
    if description.exists() and not description.is_file():
        raise UserError(f"{str(description)!r} is not a file; remove it")
    return [file for file in (folder / README, description) if file.is_file()]


def _at_hub(path: str) -> tuple[str | None, list[Path]]:
    """The commit of a data set, and the descriptions in it; none where the hub cannot be asked, as `load_dataset` says.

    Raises HfHubHTTPError if the hub keeps one of them back.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        commit = HfApi().dataset_info(path).sha
    except Exception:  # each layer below has its own exceptions for "no network"
        return None, []
    found = []
    for name in (README, DESCRIPTION):
        with suppress(EntryNotFoundError):
            found.append(Path(hf_hub_download(path, name, repo_type="dataset", revision=commit)))
    return commit, found


def _named(descriptions: Iterable[Path]) -> Iterator[str]:
    """The files and folders of data that a README.md or a .huggingface.yaml names, in all its configurations."""
    import yaml
    from huggingface_hub import DatasetCard

    for file in descriptions:
        if file.name == README:
            configs = DatasetCard.load(file).data.to_dict().get("configs") or ()
        else:
            configs = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("configs") or ()
        for config in configs:
            yield from _strings([config.get("data_files"), config.get("data_dir")])


def _strings(value: Any) -> Iterator[str]:
    """All the texts inside lists and dictionaries."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _check_names(path: str, names: Iterable[str]) -> None:
    """Raise a UserError for data files that are not in the folder: elsewhere on this computer, or in the network."""
    home = Home(Path(path))
    for name in dict.fromkeys(names):
        if "://" in name or "::" in name or ".." in Path(name).parts or not home.holds(Path(path, name)):
            raise UserError(
                f"data set {path!r} names {short(name)}, which is outside of it; give --allow-outside if you trust it "
                "to read that"
            )


def _texts(rows: Dataset, columns: Sequence[str], path: str) -> Iterator[tuple[Any, ...]]:
    """What each row has in these columns."""
    try:
        for batch in rows.select_columns([*columns]).iter(batch_size=1000):
            yield from zip(*(batch[column] for column in columns), strict=True)
    except (ValueError, OSError) as error:  # a text that is not UTF-8, a cache that went away
        named = " and ".join(map(repr, columns))
        raise UserError(f"column {named} of data set {path!r} could not be read ({first_line(error)})") from None


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


def _image(rows: Dataset, number: int, home: Home) -> bytes | Path:
    (cell,) = rows[number].values()
    return image_of(cell, home)


def image_of(cell: dict[str, Any] | None, home: Home) -> bytes | Path:
    """An image as `datasets` keeps it: its bytes, or else its file. Raises UnreadableImage if that is outside."""
    cell = cell or {"bytes": b"", "path": None}
    if cell["bytes"] is not None or not cell["path"]:
        return cell["bytes"] or b""
    if not home.holds(Path(cell["path"])):
        raise UnreadableImage(f"{cell['path']} is outside the data set; --allow-outside would read it")
    return Path(cell["path"])
