"""COCO's captions, in the three files they are published in.

- `captions_*.json` is COCO's own: "images" and "annotations".
- `dataset_coco.json` is Karpathy's (cs.stanford.edu/people/karpathy/deepimagesent): images with a split and sentences.
  His `dataset_flickr8k.json` and `dataset_flickr30k.json` are alike.
- `train_caption.json` is a list of captions with an image_id each, which ClipCap trained on; its `parse_coco.py`
  (github.com/rmokady/CLIP_prefix_caption) says where the images are.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clipcap.data.examples import Example, Source, split_of
from clipcap.data.folders import existing
from clipcap.data.reading import Home, legible, needed_text, parse_json, read_captions, read_text, short
from clipcap.errors import UserError

MOST_BYTES = 1 << 30  # of a caption file: the largest of those above has 0.15 GB
KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}


def coco(path: str, allow_outside: bool = False) -> Source:
    """COCO as it is unpacked: a folder with a caption file (also in annotations/) and the images, or the file itself.

    Images are in the folders that the captions name, in `images/`, or in the folder itself. One that is not there is
    listed in the dataset's skipped.jsonl.

    Raises:
        UserError: there is no such path, it has no caption file that can be read or several to choose from, none of its
            images is there, or an image is outside and `allow_outside` is not set.
    """
    root = existing(path)
    files, folder = (_caption_files(root, path), root) if root.is_dir() else ([root], _image_folder(root))
    home = Home(folder, allow_outside=allow_outside)
    examples = [example for file in files for example in _list(home, folder, file)]
    if not examples:
        raise UserError(f"{path!r} has no captions in its {files[0].name}")
    image_id, times = Counter(example.image_id for example in examples).most_common(1)[0]
    if times > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{path!r} has the image {short(image_id)} twice among {names}: give one of them")
    images = [example.image for example in examples if isinstance(example.image, Path)]
    if not any(map(os.path.isfile, images)):
        first = short(os.path.relpath(images[0], folder))
        raise UserError(
            f"none of the {len(images)} images of {path!r} is there, not even {first}: "
            f"unpack COCO's images in {str(folder)!r}, or put links there and give --allow-outside"
        )
    return Source({"name": "coco", "path": str(root)}, examples)


def _image_folder(file: Path) -> Path:
    """The folder that a caption file's images are in: where it lies, or above, as with COCO's own annotations/."""
    for folder in (file.parent, file.parent.parent):
        if any((folder / part).is_dir() for part in ("train2014", "val2014", "train2017", "val2017", "images")):
            return folder
    return file.parent.parent if file.parent.name == "annotations" else file.parent


def _caption_files(root: Path, path: str) -> list[Path]:
    """The caption files of a folder, of one kind. Raises UserError if there are none, or several kinds."""

    def found(pattern: str) -> list[Path]:
        return sorted(root.glob(pattern)) or sorted(root.glob(f"annotations/{pattern}"))

    # Karpathy's files hold all splits of a data set; the others hold one split each.
    whole = [[file] for pattern in ("dataset_coco.json", "dataset_flickr*.json") for file in found(pattern)]
    kinds = [*whole, *filter(None, map(found, ("captions_*.json", "*_caption.json")))]
    if not kinds:
        raise UserError(
            f"{path!r} has no captions_*.json, dataset_coco.json or train_caption.json, nor has its folder "
            "annotations; give COCO's folder"
        )
    if len(kinds) > 1:
        raise UserError(
            f"{path!r} has {kinds[0][0].name} and {kinds[1][0].name}, whose splits differ: give the file to read, "
            f"such as --source coco {kinds[0][0]}"
        )
    return kinds[0]


def _list(home: Home, folder: Path, file: Path) -> Iterator[Example]:
    """The examples of a caption file, whichever of the three it is. Raises UserError if it is none."""
    home.check(file, repr(str(file)))
    if not file.is_file() or file.stat().st_size > MOST_BYTES:  # opening a pipe would block
        raise UserError(f"{str(file)!r} is not a COCO caption file: it is no file of at most {MOST_BYTES >> 30} GiB")
    content = parse_json(read_text(file), repr(str(file)))
    images = content.get("images") if isinstance(content, dict) else None
    if isinstance(images, list) and isinstance(content.get("annotations"), list):
        yield from _from_coco(home, folder, file, content)
    elif isinstance(images, list) and images and "annotations" not in content:
        yield from _from_karpathy(home, folder, file, images)
    elif isinstance(content, list) and content:
        yield from _from_clipcap(home, folder, file, content)
    else:
        raise UserError(
            f"{str(file)!r} is not a COCO caption file: it has neither the lists 'images' and 'annotations', nor "
            "'images' with sentences (dataset_coco.json), nor is it a list of captions (train_caption.json)"
        )


def _from_coco(home: Home, folder: Path, file: Path, content: dict[str, Any]) -> Iterator[Example]:
    names = {
        key: (name, where) for key, name, where in _entries(content["images"], "images", ("id", "file_name"), file)
    }
    captions: dict[str, list[str]] = {}
    for key, caption, where in _entries(content["annotations"], "annotations", ("image_id", "caption"), file):
        if key not in names:
            raise UserError(f"{where} belongs to image {short(key)}, which is not among its images")
        captions.setdefault(key, []).extend(read_captions(caption, where))
    part = file.stem.removeprefix("captions_")  # "train2017"
    places = [folder / part, folder / "images" / part, folder / "images", folder]
    images = _place(places, [names[key][0] for key in captions])
    for key, texts in captions.items():
        name, where = names[key]
        image = home.check(images / name, f"{where}: {short(name)}")
        yield Example(key, tuple(texts), image, split_of(part))


def _from_karpathy(home: Home, folder: Path, file: Path, entries: list[Any]) -> Iterator[Example]:
    seen: set[str] = set()
    listed: list[tuple[str, tuple[str, ...], str, str, str]] = []
    for number, entry in enumerate(entries):
        where = f"{str(file)!r}, 'images', entry {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("sentences"), list):
            raise UserError(f"{where} has no list of sentences, as in Karpathy's dataset_coco.json")
        name = needed_text(entry.get("filename"), f"{where}: filename")
        if entry.get("filepath"):  # Flickr's have none
            name = f"{needed_text(entry['filepath'], f'{where}: filepath')}/{name}"
        if (split := KARPATHY_SPLITS.get(str(entry.get("split")))) is None:
            raise UserError(f"{where} has the split {short(entry.get('split'))}: none of {', '.join(KARPATHY_SPLITS)}")
        image_id = _image_id(entry.get("cocoid", name), where)
        if image_id in seen:
            raise UserError(f"{where}: the image {short(image_id)} comes twice")
        seen.add(image_id)
        raw = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in entry["sentences"]]
        listed.append((image_id, read_captions(raw, where), split, name, where))
    images = _place([folder, folder / "images"], [name for *_, name, _ in listed])
    for image_id, captions, split, name, where in listed:
        yield Example(image_id, captions, home.check(images / name, f"{where}: {short(name)}"), split)


def _from_clipcap(home: Home, folder: Path, file: Path, entries: list[Any]) -> Iterator[Example]:
    """One example for each image, wherever in the file its captions stand."""
    captions: dict[int, list[str]] = {}
    for key, caption, where in _entries(entries, "caption", ("image_id", "caption"), file):
        if not re.fullmatch(r"\d{1,12}", key, re.ASCII):
            raise UserError(f"{where}: image_id {short(key)} is no number of a COCO image")
        captions.setdefault(int(key), []).extend(read_captions(caption, where))
    for number, texts in captions.items():
        names = [f"{part}/COCO_{part}_{number:012d}.jpg" for part in ("train2014", "val2014")]
        image = _place([folder / name for name in names])
        yield Example(str(number), tuple(texts), home.check(image, short(image)), split_of(file.stem))


def _place(places: Sequence[Path], names: Sequence[str] = ("",)) -> Path:
    """The place of the first of these files that is in any of these places, or else the first place."""
    return next((place for name in names for place in places if os.path.isfile(place / name)), places[0])


def _entries(entries: list[Any], part: str, fields: tuple[str, str], file: Path) -> Iterator[tuple[str, Any, str]]:
    """The id of the image as a text, the other field of each entry in a part, and where it is. Raises UserError."""
    seen = set()
    for number, entry in enumerate(entries):
        where = f"{str(file)!r}, {part!r}, entry {number}"
        missing = [field for field in fields if not isinstance(entry, dict) or field not in entry]
        if missing:
            raise UserError(f"{where} has no {missing[0]}")
        key, value = _image_id(entry[fields[0]], where, fields[0]), entry[fields[1]]
        if part == "images":
            needed_text(value, f"{where}: file_name")
            if key in seen:
                raise UserError(f"{where}: the id {short(key)} comes twice")
            seen.add(key)
        yield key, value, where


def _image_id(value: Any, where: str, field: str = "id") -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{where} has an {field} that is neither a number nor a text")
    return legible(str(value))
