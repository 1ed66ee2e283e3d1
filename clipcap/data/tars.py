"""Tar shards as webdataset packs them. Members are listed and read where they are, and nothing is ever unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from clipcap.clip.images import EXTENSIONS
from clipcap.data.examples import Deferred, Example, Listing, Source, split_of
from clipcap.data.folders import CAPTION_COLUMNS, values_of
from clipcap.data.patterns import SourceFile, find_shards
from clipcap.data.reading import legible, parse_json, read_captions, short
from clipcap.errors import UserError, first_line

Members = dict[str, tarfile.TarInfo]  # of one sample, by their endings
READ = EXTENSIONS | {".txt", ".json"}


def tar(path: str, allow_outside: bool = False) -> Source:
    """Tar shards: KEY.jpg with KEY.txt or KEY.json ("caption"). The members of one shard at a time are in memory.

    Args:
        path: a file, a folder, or a pattern: see `clipcap.data.patterns`.
        allow_outside: shards may be links to outside.

    Raises:
        UserError: there is no such place, or it has no shard with images that can be read. Listing the examples
            raises it too, for the first shard that cannot be read.
    """
    place, shards = find_shards(path, ".tar", allow_outside)
    examples = Listing(lambda: (example for shard in shards for example in _from_tar(shard)))
    if next(iter(examples), None) is None:
        raise UserError(f"{path!r} has no image in its tar files")
    return Source({"name": "tar", "path": str(place)}, examples)


def _from_tar(shard: SourceFile) -> Iterator[Example]:
    """List a shard without reading its images: each remembers where in the file its bytes are."""
    path = shard.path
    shard.check()
    try:
        if not path.is_file():
            raise tarfile.ReadError("it is not a file")  # opening a pipe would block
        with tarfile.open(path, "r:") as archive:
            for key, members in _samples(archive, path).items():
                if image := _pick(members, EXTENSIONS, path):
                    read = Deferred(partial(_read_part, path, image.offset_data, image.size))
                    captions = _captions(archive, members, path)
                    yield Example(legible(f"{shard.name}/{key}"), captions, read, split_of(shard.name), origin=path)
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is not a tar shard of images and captions ({first_line(error)})") from None


def _samples(archive: tarfile.TarFile, shard: Path) -> dict[str, Members]:
    """The regular members by key, whether those of a sample lie together or not. Raises UserError."""
    samples: dict[str, Members] = {}
    for member in archive:
        if member.size < 0:
            raise tarfile.ReadError("a member of negative size")  # tarfile would read the same header for ever
        if not member.isreg() or member.issparse():  # no links, no devices, no terabyte of zeros in a kilobyte
            continue
        if member.name.rpartition("/")[2].startswith("."):  # `._a.jpg` is what a Mac packs beside `a.jpg`
            continue
        key, ending = _key(member.name)
        if samples.setdefault(key, {}).setdefault(ending, member) is not member and _last(ending) in READ:
            raise UserError(f"{str(shard)!r} holds {short(member.name)} twice; leave one for each picture")
    with shard.open("rb") as file:
        file.seek(archive.offset)
        rest = file.read(1 << 20)  # zeros, if it is whole: tarfile takes a broken header, and a cut, for the end
        if not rest or rest.strip(b"\0"):
            raise UserError(f"{str(shard)!r} is damaged or cut off after {archive.offset} bytes; get it again")
    return samples


def _key(name: str) -> tuple[str, str]:
    """The key of a sample as webdataset defines it, the path up to the first dot of the file name, and the rest."""
    parent, _, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    return f"{parent}/{stem}".lstrip("/"), (dot + ending).lower()


def _last(ending: str) -> str:
    """The last part of an ending: that of `.seg.png` is `.png`."""
    return ending[ending.rfind(".") :]


def _pick(members: Members, endings: Collection[str], shard: Path) -> tarfile.TarInfo | None:
    """The member with one of these endings; KEY.png before KEY.seg.png. Raises UserError where it cannot be told."""
    plain = [member for ending, member in members.items() if ending in endings]
    found = plain or [member for ending, member in members.items() if _last(ending) in endings]
    if len(found) > 1:
        names = " and ".join(short(member.name) for member in found[:2])
        raise UserError(
            f"{str(shard)!r} holds {names} under one key, which ends at the first dot; leave one for each picture"
        )
    return found[0] if found else None


def _captions(archive: tarfile.TarFile, members: Members, shard: Path) -> tuple[str, ...]:
    """Those of KEY.txt, or else of KEY.json, also where the text is blank. Raises UserError."""
    captions: tuple[str, ...] = ()
    if text_file := _pick(members, (".txt",), shard):
        where, content = _content(archive, text_file, shard)
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise UserError(f"{where} is not UTF-8 text; pack it as UTF-8") from None
        captions = read_captions(text, where)
    if not any(map(str.strip, captions)):
        try:
            captions = _of_json(archive, members, shard) or captions
        except UserError:
            if not text_file:
                raise
            # Else the captions are in texts, one of which is blank, and the JSON is about something else.
    return captions


def _of_json(archive: tarfile.TarFile, members: Members, shard: Path) -> tuple[str, ...]:
    """The captions of KEY.json; none without it. Raises UserError."""
    if not (json_file := _pick(members, (".json",), shard)):
        return ()
    where, content = _content(archive, json_file, shard)
    fields = parse_json(content, where)
    if not isinstance(fields, dict):
        raise UserError(f"{where} is not a JSON object")
    return read_captions(next(iter(values_of(fields, CAPTION_COLUMNS)), ()), where)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> tuple[str, bytes]:
    """Where a member is, for messages, and its bytes."""
    file = archive.extractfile(member)
    assert file is not None  # only members that are files come here
    return f"{str(shard)!r}, member {short(member.name)}", file.read()


def _read_part(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)
