"""Places that name many files: a folder, a pattern such as `data/*.tar`, or braces as webdataset writes them."""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipcap.data.changes import Mark, mark_of
from clipcap.data.folders import existing
from clipcap.data.reading import Home, short
from clipcap.errors import UserError, first_line

MOST_FILES = 1_000_000  # that braces may name: LAION-5B, in shards of 10,000, has 585,000


@dataclass(frozen=True)
class SourceFile:
    """One of the files of a source.

    Attributes:
        name: within the source, such as `data/00000.tar`.
        path: where it is.
        mark: its size and time when the source was opened.
    """

    name: str
    path: Path
    mark: Mark

    def check(self) -> None:
        """Raise a UserError unless the file is still the one that was found: a source is gone through several times."""
        if mark_of(self.path) != self.mark:
            raise UserError(
                f"{str(self.path)!r} changed or went away while its source was read; run the same command again when "
                "it is complete"
            )


def find_shards(path: str, ending: str, allow_outside: bool = False) -> tuple[Path, list[SourceFile]]:
    """The files that a place names: one file, those of a folder with this ending, or those that a pattern matches.

    Returns:
        The place without links, and the files, sorted by their names.

    Raises:
        UserError: there is no such place, nothing in it has the ending, a part of a pattern names nothing, or a file is
            a link to outside and `allow_outside` is not set.
    """
    is_pattern = re.search(r"[*?\[{]", path) and not os.path.lexists(path)
    place, pattern = _divide(path) if is_pattern else (existing(path), "")
    folder = place.parent if place.is_file() else place
    home = Home(place, allow_outside=allow_outside)
    try:
        files = _matching(place, pattern, ending) if is_pattern else _inside(place, ending)
    except (OSError, RecursionError) as error:
        raise UserError(f"{path!r} cannot be searched for {ending} files ({first_line(error)})") from None
    if not files:
        raise UserError(f"{path!r} has no {ending} files")
    shards = [
        SourceFile(file.relative_to(folder).as_posix(), home.check(file, repr(str(file))), mark_of(file))
        for file in sorted(dict.fromkeys(files))
    ]
    return place / pattern, shards


def _divide(path: str) -> tuple[Path, str]:
    """The folder that a pattern begins with, and the rest of it. Raises UserError if there is no such folder."""
    parts = Path(path).parts
    fixed = [*itertools.takewhile(lambda part: not re.search(r"[*?\[{]", part), parts)]
    return existing(os.path.join(*fixed) if fixed else ".", folder=True), os.path.join(*parts[len(fixed) :])


def _inside(place: Path, ending: str) -> list[Path]:
    if place.is_file():
        return [place]
    return [file for file in place.rglob(f"*{ending}") if not file.name.startswith(".") and not file.is_dir()]


def _matching(folder: Path, pattern: str, ending: str) -> list[Path]:
    files: list[Path] = []
    for one in expand_braces(pattern):
        if glob.has_magic(one):
            matched = [folder / name for name in glob.glob(one, root_dir=folder, recursive=True)]
            inside = (file for place in matched for file in (_inside(place, ending) if place.is_dir() else [place]))
            found = [file for file in inside if file.name.endswith(ending)]
        else:
            found = _inside(folder / one, ending) if os.path.lexists(folder / one) else []
        if not found:
            told = f"matches no {ending} files" if glob.has_magic(one) else f"is not there, or has no {ending} files"
            raise UserError(f"{str(folder / one)!r} {told}; check the path")
        files += found
    return files


def expand_braces(pattern: str) -> Iterable[str]:
    """`{a,b}` and `{00..10}` written out: "x{1..2}.tar" -> "x1.tar", "x2.tar".

    As in a shell, numbers have as many digits as the longer bound if one of them begins with 0. Braces inside braces
    stay as they are. Raises UserError for more than MOST_FILES.
    """
    pieces = re.split(r"\{([^{}]*)\}", pattern)  # every second one was in braces
    choices: list[Sequence[str]] = []
    for number, piece in enumerate(pieces):
        choices.append(_choices(piece) if number % 2 else [piece])
        _check_count(math.prod(map(len, choices)), pattern)
    return map("".join, itertools.product(*choices))


def _choices(inside: str) -> Sequence[str]:
    if bounds := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inside, re.ASCII):
        first, last = map(int, bounds.groups())
        step = 1 if first <= last else -1
        numbers = range(first, last + step, step)
        _check_count(len(numbers), inside)
        padded = any(re.match(r"0\d", bound) for bound in bounds.groups())
        width = max(map(len, bounds.groups())) if padded else 0
        return [f"{number:0{width}d}" for number in numbers]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]


def _check_count(files: int, pattern: str) -> None:
    if files > MOST_FILES:
        raise UserError(f"{short(pattern)} names more than {MOST_FILES:,} files; give a folder, or fewer of them")
