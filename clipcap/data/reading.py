"""Files of strangers, read so that nothing later stumbles over what they hold: text, JSON, captions, names of files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from clipcap.errors import UserError, first_line
from clipcap.text import json_parts

MOST_CAPTION = 1_000_000  # characters; a small file can hold gigabytes, once or in each of its rows
MOST_PARTS = 20_000_000  # lists and objects in one JSON text; COCO's have 2 million


def read_text(file: Path) -> str:
    """The content of a text file, without a byte-order mark. Raises UserError if it is not UTF-8 or cannot be read."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{str(file)!r} cannot be read ({error.strerror}); check the file") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # as in most UTF-16
        raise UserError(f"{str(file)!r} is not UTF-8 text; save it as UTF-8")
    return text


def parse_json(text: str | bytes, where: str) -> Any:
    """What a JSON text holds. Raises UserError, which begins with `where`, for anything that cannot be read."""
    try:
        text = text if isinstance(text, str) else text.decode(json.detect_encoding(text))
        if json_parts(text) > MOST_PARTS:
            raise ValueError(f"it holds more than {MOST_PARTS:,} lists and objects")
        return _JSON.decode(text)
    except RecursionError:
        reason = "it is nested too deeply"
    except json.JSONDecodeError as error:
        reason = error.msg
    except ValueError as error:  # bytes that are no text, an integer of too many digits, a key that comes twice
        reason = first_line(error).split(": value has")[0]
    raise UserError(f"{where} is not JSON that can be read ({reason})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"it has the key {short(repeated(name for name, _ in pairs))} twice")
    return content


def repeated(names: Iterable[str]) -> str | None:
    """The first name that comes a second time; None if none does."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


_JSON = json.JSONDecoder(object_pairs_hook=_object)  # `json.loads` would make one for each row


def read_captions(value: Any, where: str) -> tuple[str, ...]:
    """The captions of one field: a text, a number, nothing (None, or NaN as pandas writes it), or a list of these.

    Halves of emoji that were cut in two, and NUL, are left out: no file could hold them.

    Raises:
        UserError: it is something else. The message begins with `where`.
    """
    return tuple(_caption(one, where) for one in (value if isinstance(value, list | tuple) else [value]))


def _caption(value: Any, where: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value, f"{where}: the caption")
    text = needed_text(value, f"{where}: the caption") if value != "" else ""
    if len(text) > MOST_CAPTION:
        raise UserError(f"{where}: the caption has {len(text):,} characters, and at most {MOST_CAPTION:,} are read")
    try:
        text.encode()
    except UnicodeEncodeError:  # through UTF-16, in which two halves that belong together become one emoji
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    return text.replace("\0", "")


def number(value: float, what: str) -> str:
    """A number as text. Raises UserError for an integer so long that Python refuses to write it out."""
    try:
        return str(value)
    except ValueError:
        raise UserError(f"{what} must be a text, not an integer of thousands of digits") from None


def needed_text(value: Any, what: str) -> str:
    """`value` if it is a text that is not empty, else a UserError that begins with `what`."""
    if not isinstance(value, str) or not value:
        kinds = {dict: "an object", list: "a list", type(None): "null", str: "an empty one", bool: "true or false"}
        raise UserError(f"{what} must be a text, not {kinds.get(type(value), type(value).__name__)}")
    return value


def short(name: object) -> str:
    """A name out of a stranger's file for a message: quoted, printable, and not longer than a line."""
    text = str(name)
    return repr(text if len(text) <= 100 else f"{text[:100]}...")


def legible(name: str) -> str:
    r"""A name with `\udcff` in place of what UTF-8 cannot hold, such as the bytes of a name that is not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


class Home:
    """The folder of a source, which neither a name in its files nor a link in it may leave unless the user allows it.

    A link counts like a name, since it comes with an unpacked archive just as a table does; one that stays inside is
    as good as a file.
    """

    def __init__(self, *folders: Path, allow_outside: bool = False) -> None:
        self.folders = [os.path.realpath(folder) for folder in folders]
        self.allow_outside = allow_outside
        self._real_folder = cache(os.path.realpath)  # one look at each folder, not one for each of its files

    def holds(self, file: Path) -> bool:
        """Whether a file is inside after links are followed, or may be outside."""
        if self.allow_outside:
            return True
        place, name = os.path.split(file)
        try:
            linked = name == ".." or os.path.islink(file)
            real = os.path.realpath(file) if linked else os.path.join(self._real_folder(place), name)
        except ValueError:  # NUL or half an emoji in the name: no file can have it
            return True
        return any(os.path.join(real, "").startswith(os.path.join(folder, "")) for folder in self.folders)

    def check(self, file: Path, where: str) -> Path:
        """The file itself. Raises UserError, which begins with `where`, if it is outside."""
        if not self.holds(file):
            folder = self.folders[0]
            raise UserError(
                f"{where} leads outside {folder!r}; give --allow-outside if you trust it to read files there"
            )
        return file
