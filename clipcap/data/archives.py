"""The archive of their own posts that Instagram gives every user, read where it is: nothing is ever unpacked.

It is asked for in Instagram's Accounts Center, as JSON. Its layout is documented nowhere and has changed over the
years. Here is what published readers of it agree on, such as PersonalDataPipeline/pdpl-cli on GitHub and, for
`media.json`, ryanmonro/instagram-data-download-json-tool:

    your_instagram_activity/media/posts_1.json     since 2024; content/ in place of media/ in 2023
    content/posts_1.json                           until 2022
    media.json                                     until 2020: {"photos": [{"path", "caption", "taken_at"}]}

`posts_N.json` lists posts, {"media": [{"uri", "title"}], "title"}. A picture that was posted alone has its caption in
`media`, several in one post have it in the post. Stories, reels, archived and deleted posts have files of their own,
which are not read. Neither is `posts.json` without a number: it repeats the posts, with labels in the user's language.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from clipcap.clip.images import UnreadableImage
from clipcap.data.examples import Deferred, Example, Source
from clipcap.data.folders import existing
from clipcap.data.reading import Home, legible, needed_text, parse_json, read_captions, short
from clipcap.errors import UserError, first_line

LISTS = re.compile(  # of posts; the whole may lie in one more folder
    r"(?:[^/]+/)?(?:(?:your_instagram_activity/)?(?:media|content)/posts_(?P<posts>\d{1,9})|media(?:_(?P<media>\d{1,9}))?)\.json"
)
VIDEOS = (".mp4", ".mov", ".m4v", ".webm")
MOST_LIST = 200_000_000  # bytes of a list of posts; a compressed one could be endless
MOST_PICTURE = 200_000_000
HOW = "Accounts Center > Your information and permissions > Export your information, with posts, in the format JSON"
OTHERS = {  # what the exports of other networks hold
    r"(?:.*/)?data/(?:tweets?|tweets-part\d+|manifest)\.js": "X (Twitter)",
    r"(?:[^/]+/)?(?:your_facebook_activity/.*|posts/your_posts.*)": "Facebook",
    r"(?:.*/)?user_data(?:_tiktok)?\.json|(?:[^/]+/)?TikTok/.*": "TikTok",
    r"Takeout/.*": "Google",
    r"(?:.*/)?memories_history\.(?:json|html)": "Snapchat",
}


@dataclass(frozen=True)
class Member:
    """A file in a zip archive that stays open."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def read(self, most: int) -> bytes:
        """Its content. Raises UnreadableImage if that is damaged or has more than `most` bytes."""
        if self.info.file_size > most:
            raise UnreadableImage(f"larger than {most // 1_000_000} MB")
        if self.info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnreadableImage("compressed in a way that Instagram does not use")
        try:
            with self.archive.open(self.info) as file:
                return file.read(self.info.file_size)  # `ZipFile.read` unfolds whatever there is, and then cuts it
        except (*BROKEN, RuntimeError) as error:
            raise UnreadableImage(f"damaged in the archive ({first_line(error)})") from None


BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, NotImplementedError)
File = Path | Member


def instagram_archive(path: str, allow_outside: bool = False) -> Source:
    """The posts of an Instagram export: its ZIP, the folder that it unpacks to, or a folder with the ZIPs of its parts.

    A post with several pictures gives its caption to each of them, so that it counts once for each, and all its
    pictures go into the same split. Videos are left out, and what is left out is told on stderr. A picture that is not
    in the archive is listed in the dataset's skipped.jsonl.

    Raises:
        UserError: there is no such path, it is no Instagram export in JSON, it is encrypted or damaged, it has no
            picture, or a picture is a link to outside and `allow_outside` is not set.
    """
    root = existing(path)
    home = Home(root, allow_outside=allow_outside)
    files = _files(root, path, home)
    lists = sorted((found for found in map(_list_of, files) if found), key=lambda found: found[:2])
    if not lists:
        raise UserError(_what_it_is(path, [name for name, _ in files]))
    pictures: dict[str, File] = {}
    for name, file in files:  # a name stands for itself, and without the folder that everything may lie in
        pictures.setdefault(name, file)
    for name, file in files:
        pictures.setdefault(name.partition("/")[2], file)
    posts = [post for _, name, file in lists for post in _posts(home, name, file, path)]
    examples, videos = _examples(posts, pictures, home)
    if not examples:
        raise UserError(
            f"{path!r} lists {len(posts)} posts with {videos} videos and no picture: there is none to learn"
        )
    there = sum(not isinstance(e.image, Deferred) or e.origin is not None for e in examples)
    if not there:
        raise UserError(
            f"{path!r} lists {len(posts)} posts with {len(examples)} pictures and {videos} videos, and holds none of "
            "the pictures: if the export came in several parts, put all of their ZIPs into one folder and give that"
        )
    bare = sum(not any(captions) for captions, _ in posts)
    print(
        f"{path}: {len(posts)} posts with {len(examples)} pictures, of which {len(examples) - there} are not there; "
        f"{bare} posts have no caption; {videos} videos are left out",
        file=sys.stderr,
    )
    return Source({"name": "instagram-archive", "path": str(root)}, examples)


Post = tuple[tuple[str, ...], list[str]]  # its captions, at most one, and the names of its media


def repaired(text: str) -> str:
    """A text of the archive as it was typed: Instagram writes the bytes of its UTF-8 as if each were a character.

    Text that cannot have come about that way is left as it is.
    """
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _files(root: Path, path: str, home: Home) -> list[tuple[str, File]]:
    """Every file of the archive by its name in there, which is no path on this machine."""
    if not root.is_dir():
        return _members(root, path)
    found: list[tuple[str, File]] = []
    for folder, _, names in sorted(os.walk(root)):
        place = Path(folder)
        found += [((place / name).relative_to(root).as_posix(), place / name) for name in sorted(names)]
    if not any(map(_list_of, found)):
        parts = [file for name, file in found if "/" not in name and name.lower().endswith(".zip")]
        found += [
            member for part in parts if isinstance(part, Path) for member in _members(home.check(part, path), str(part))
        ]
    return found


def _members(file: Path, path: str) -> list[tuple[str, File]]:
    try:
        if not file.is_file():
            raise zipfile.BadZipFile("it is not a file")  # opening a pipe would block
        archive = zipfile.ZipFile(file)
    except BROKEN as error:
        raise UserError(
            f"{path!r} is not a ZIP that can be read ({first_line(error)}); give Instagram's export as it was "
            "downloaded, or the folder that it unpacks to"
        ) from None
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if any(info.flag_bits & 1 for info in infos):
        raise UserError(f"{path!r} is protected by a password; unpack it, and give the folder")
    return [(info.filename, Member(archive, info)) for info in infos]


def _list_of(found: tuple[str, File]) -> tuple[int, str, File] | None:
    """The number of a list of posts, its name and the file; None for any other file."""
    match = LISTS.fullmatch(found[0])
    return (int(match["posts"] or match["media"] or 0), *found) if match else None


def _what_it_is(path: str, names: list[str]) -> str:
    """The sentence about an archive in which there is no list of posts."""
    if any(re.search(r"(?:^|/)posts_\d+\.html$", name) for name in names):
        return f"{path!r} is an Instagram export as HTML, which cannot be read; ask for another one: {HOW}"
    for pattern, network in OTHERS.items():
        if found := next((name for name in names if re.fullmatch(pattern, name)), None):
            return f"{path!r} is an export of {network} (it holds {short(found)}), and not of Instagram"
    return f"{path!r} is no Instagram export with posts: it has no posts_1.json and no media.json; ask for one: {HOW}"


def _posts(home: Home, name: str, file: File, path: str) -> Iterator[Post]:
    """The posts of one list. Raises UserError if it is not what Instagram writes."""
    where = f"{path!r}, {short(name)}"
    try:
        content = parse_json(_content(home, file, where), where)
    except UnreadableImage as error:
        raise UserError(f"{where} cannot be read ({error.reason}); download the export again") from None
    if isinstance(content, dict) and "photos" in content:
        content = _grouped([*_listed(content["photos"], where), *_listed(content.get("videos", []), where)])
    for number, post in enumerate(_listed([content] if isinstance(content, dict) else content, where), 1):
        media = _listed(post.get("media") or [], f"{where}, post {number}")
        names = [needed_text(one.get("uri"), f"{where}, post {number}: uri") for one in media]
        title = post.get("title") or next((one["title"] for one in media if one.get("title")), None)
        captions = read_captions(title, f"{where}, post {number}")
        yield tuple(map(repaired, captions)), [legible(name) for name in names]


def _content(home: Home, file: File, where: str) -> bytes:
    if isinstance(file, Member):
        return file.read(MOST_LIST)
    try:
        if not home.check(file, where).is_file() or file.stat().st_size > MOST_LIST:
            raise UnreadableImage(f"not a file of at most {MOST_LIST // 1_000_000} MB")
        return file.read_bytes()
    except OSError as error:
        raise UnreadableImage(first_line(error)) from None


def _listed(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise UserError(f"{where} is not a list of posts as Instagram writes it; download the export again")
    return value


def _grouped(media: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of a `media.json` as posts: those with the same time and caption were posted together."""
    posts: dict[str, dict[str, Any]] = {}
    for one in media:
        key = repr((one.get("taken_at") or one.get("path"), one.get("caption")))
        posts.setdefault(key, {"title": one.get("caption"), "media": []})["media"].append({"uri": one.get("path")})
    return list(posts.values())


def _examples(posts: list[Post], files: dict[str, File], home: Home) -> tuple[list[Example], int]:
    """One example for each picture, with all captions that it was posted with, and how many videos there are."""
    told: dict[str, dict[str, None]] = {}  # the captions of each picture, in order
    groups: dict[str, str] = {}
    videos = 0
    for captions, names in posts:
        pictures = [name for name in names if not name.lower().endswith(VIDEOS)]
        videos += len(names) - len(pictures)
        group = next((groups[name] for name in pictures if name in groups), next(iter(pictures), ""))
        for name in pictures:
            told.setdefault(name, {}).update(dict.fromkeys(captions))
            groups[name] = group
    images = {name: _image(files.get(name), home, name) for name in told}
    return [Example(n, tuple(told[n]), i, origin=origin, group=groups[n]) for n, (i, origin) in images.items()], videos


def _image(file: File | None, home: Home, name: str) -> tuple[Path | Deferred, Path | None]:
    """Where a picture is, and the archive that it is in."""
    if isinstance(file, Path):
        return home.check(file, short(name)), None
    if file is None:
        return Deferred(_gone), None
    return Deferred(partial(file.read, MOST_PICTURE)), Path(str(file.archive.filename))


def _gone() -> bytes:
    raise UnreadableImage("not in the archive")
