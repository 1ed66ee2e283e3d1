"""Tar shards as webdataset packs them. Members are listed and read where they are, and nothing is ever unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from clipcap.clip.images import EXTENSIONS
from clipcap.data.examples import Deferred, Example, Source, split_name
from clipcap.data.folders import CAPTION_COLUMNS, existing
from clipcap.data.reading import Home, legible, parse_json, read_captions, short
from clipcap.errors import UserError, first_line

Members = dict[str, tarfile.TarInfo]  # of one sample, by their endings
READ = EXTENSIONS | {".txt", ".json"}


def tar(path: str, allow_outside: bool = False) -> Source:
    """Tar shards, one file or a folder: KEY.jpg with KEY.txt or KEY.json ("caption").

    Raises:
        UserError: there is no such path, it has no shard with images that can be read, or a shard is a link to outside
            and `allow_outside` is not set.
    """
    root = existing(path)
    home = Home(root, allow_outside=allow_outside)
    try:
        shards = [root] if root.is_file() else sorted(file for file in root.rglob("*.tar") if not file.is_dir())
    except (OSError, RecursionError) as error:
        raise UserError(f"{path!r} cannot be searched for .tar files ({first_line(error)})") from None
    if not shards:
        raise UserError(f"{path!r} has no .tar files")
    examples: list[Example] = []
    for shard in shards:
        name = shard.name if shard == root else shard.relative_to(root).as_posix()
        examples += _from_tar(home.check(shard, repr(str(shard))), name)
    if not examples:
        raise UserError(f"{path!r} has no image in its tar files")
    return Source({"name": "tar", "path": str(root)}, examples)


def _from_tar(shard: Path, name: str) -> Iterator[Example]:
    """List a shard without reading its images: each remembers where in the file its bytes are."""
    try:
        if not shard.is_file():
            raise tarfile.ReadError("it is not a file")  # opening a pipe would block
        with tarfile.open(shard, "r:") as archive:
            for key, members in _samples(archive, shard).items():
                if image := _pick(members, EXTENSIONS, shard):
                    read = Deferred(partial(_read_part, shard, image.offset_data, image.size))
                    captions = _captions(archive, members, shard)
                    yield Example(legible(f"{name}/{key}"), captions, read, split_name(shard.name), origin=shard)
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{str(shard)!r} is not a tar shard of images and captions ({first_line(error)})") from None


def _samples(archive: tarfile.TarFile, shard: Path) -> dict[str, Members]:
    """The regular members by key, whether those of a sample lie together or not. Raises UserError."""
    samples: dict[str, Members] = {}
    for member in archive:
        if member.size < 0:
            raise tarfile.ReadError("a member of negative size")  # tarfile would read the same header for ever
        if not member.isreg() or member.issparse():  # no links, no devices, no terabyte of zeros in a kilobyte
            continue
        key, ending = _key(member.name)
        if samples.setdefault(key, {}).setdefault(ending, member) is not member and _last(ending) in READ:
            raise UserError(f"{str(shard)!r} holds {short(member.name)} twice; leave one for each picture")
    with shard.open("rb") as file:
        file.seek(archive.offset)
        if file.read(1 << 20).strip(b"\0"):  # tarfile takes a broken header in the middle for the end
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
    others = [member for ending, member in members.items() if _last(ending) in endings]
    if not plain and len(others) > 1:
        names = " and ".join(short(member.name) for member in others[:2])
        raise UserError(f"{str(shard)!r} holds {names} under one key; leave one for each picture")
    return next(iter(plain or others), None)


def _captions(archive: tarfile.TarFile, members: Members, shard: Path) -> tuple[str, ...]:
    if text_file := _pick(members, (".txt",), shard):
        where, content = _content(archive, text_file, shard)
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise UserError(f"{where} is not UTF-8 text; pack it as UTF-8") from None
        return read_captions(text, where)
    if json_file := _pick(members, (".json",), shard):
        where, content = _content(archive, json_file, shard)
        fields = parse_json(content, where)
        if not isinstance(fields, dict):
            raise UserError(f"{where} is not a JSON object")
        return read_captions(next((fields[column] for column in CAPTION_COLUMNS if column in fields), ()), where)
    return ()


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> tuple[str, bytes]:
    """Where a member is, for messages, and its bytes."""
    file = archive.extractfile(member)
    assert file is not None  # only members that are files come here
    return f"{str(shard)!r}, member {short(member.name)}", file.read()


def _read_part(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)
