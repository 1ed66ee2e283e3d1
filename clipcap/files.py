"""Writing files and folders, whole or not at all and by one writer at a time; and reading a stranger's small files."""

from __future__ import annotations

import errno
import io
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from clipcap.errors import UserError, first_line
from clipcap.text import json_parts

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NO_MODES = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP})
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
MOST_PARTS = 5_000_000  # lists and objects in a config
MOST_TEXT = 200_000_000  # bytes of a config or a tokenizer; the largest tokenizers have 35 million
HOLDER = re.compile(r"process \d+ on .* since [\d: -]{19}")  # what `only_writer` writes into a lock


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write bytes to. It gets its name only when all of it is on the disk.

    After an error inside, or if the process ends, the file that had the name before is still there. Raises OSError,
    also where the library that wrote to the file raised an error of its own in its place, and where another writer has
    begun the same file meanwhile: then the other one goes on.
    """
    if path.is_dir():  # "." and "/" have no name beside which there could be another
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    unfinished, own = _beside(path, "unfinished"), None
    try:
        unfinished.unlink(missing_ok=True)  # of a run that was killed; or a link, which would lead elsewhere
        disk = _Disk(unfinished, "xb")
        own = os.fstat(disk.fileno())
        try:
            with io.BufferedWriter(disk) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if not _is_still(unfinished, own):
                    raise OSError(errno.ESTALE, "another run is writing it too")
        except Exception as error:
            raise disk.error or error from None
        finally:
            disk.error = None  # its traceback holds this frame, and so the disk
        if path.is_file():
            _copy_mode(path, unfinished)
        unfinished.replace(path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        if own and _is_still(unfinished, own):
            unfinished.unlink(missing_ok=True)


def _is_still(place: Path, own: os.stat_result) -> bool:
    """Whether a place still holds the file of this status, and not that of another writer."""
    try:
        return os.path.samestat(place.lstat(), own)
    except FileNotFoundError:
        return False


def _copy_mode(path: Path, unfinished: Path) -> None:
    """Let a private file stay private, on drives that know modes: many network drives and USB sticks do not."""
    try:
        shutil.copymode(path, unfinished)
    except OSError as error:
        if error.errno not in NO_MODES:
            raise


class _Disk(io.FileIO):
    """A file that remembers why it could not be written: torch's writer of zip files does not pass that on."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to a file, whole or not at all. Raises OSError."""
    with whole_file(path) as file:
        file.write(content)


def append_whole(file: io.FileIO, data: bytes) -> None:
    """Append all of `data` or nothing, also where the disk fills up or a signal comes. Raises OSError.

    `file` is opened for appending, without a buffer. What is not a regular file keeps what it took.
    """
    end = os.fstat(file.fileno()).st_size
    try:
        while data:
            data = data[file.write(data) :]
    except BaseException:
        with suppress(OSError):
            file.truncate(end)
        raise


@contextmanager
def temporary_room(folder: str, purpose: str) -> Iterator[None]:
    """Say where else there may be room, in a UserError, if there is none for what is written inside to a folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise UserError(
            f"{folder!r}, for {purpose}, could not be written ({error.strerror}): make room there, or set TMPDIR to "
            "another folder"
        ) from None


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold an output for this process alone, so that two runs cannot mix what they write.

    Args:
        path: an existing folder, or a file (existing or not) in an existing folder.

    Raises:
        UserError: another process holds it, or a file of somebody else's has the name of the lock.
        OSError: nothing can be written there.
    """
    file = path / ".lock" if path.is_dir() else _beside(path, "lock")
    holder = _holder(file)
    lock = FileLock(file, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{str(path)!r} is being written by {holder or 'another process'}: wait for it, or choose another output"
        ) from None
    except PermissionError:
        if not file.is_file():
            raise
        raise UserError(f"{str(file)!r}, left by {holder or 'another user'}, may not be opened: delete it") from None
    except OSError as error:  # a file system without locks, such as some network drives
        if error.errno not in NO_LOCKS:
            raise
    try:
        if lock.is_locked:
            _holder(file)  # again, since it may have come in between
            since = f"{platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
            with suppress(OSError):
                file.write_text(f"process {os.getpid()} on {since}")
        try:
            yield
        finally:
            with suppress(OSError):
                file.unlink(missing_ok=True)  # while it is still held, so that nobody else can be holding it
    finally:
        lock.release()


def _holder(lock: Path) -> str:
    """Who holds a lock, or held it until killed; "" if it does not say. Raises UserError for a file that is no lock."""
    text = ""
    with suppress(OSError):  # Windows lets nobody read a locked file, nor even its holder write to it
        text = lock.read_text(errors="replace").strip() if lock.is_file() else ""
    if text and not HOLDER.fullmatch(text):
        raise UserError(f"{str(lock)!r} holds something else than this project's lock: move it away")
    return text


def _beside(path: Path, ending: str) -> Path:
    """A hidden file beside another. A name that would become too long for a folder is replaced by its hash."""
    name = os.fsencode(path.name)
    return path.with_name(f".{path.name if len(name) < 240 else sha256(name).hexdigest()}.{ending}")


def probe_folder(folder: Path) -> None:
    """Create a folder and a file in it, so that an error of the disk shows before hours of work. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe-{os.getpid()}"
    probe.touch()
    probe.unlink(missing_ok=True)  # a process of another machine may have the same number


def contents(folder: Path) -> list[Path]:
    """What is in a folder, without what this module leaves there for a while. Raises OSError."""
    own = re.compile(r"\.lock|\.probe-.*|\..*\.unfinished", re.DOTALL)
    return [entry for entry in folder.iterdir() if not own.fullmatch(entry.name)]


def make_folder(folder: str | Path) -> None:
    """Create an output folder and make sure that files can be written there. Raises UserError."""
    try:
        probe_folder(Path(folder))
    except OSError as error:
        raise UserError(f"the output folder {folder} cannot be written ({error.strerror}): choose another") from None


def read_text(file: Path) -> str:
    """A config or a tokenizer of a stranger. Raises UserError, also for one that is too large."""
    try:
        if file.stat().st_size > MOST_TEXT or not (file.is_file() or file.is_dir()):  # a pipe would be waited for
            raise UserError(f"{file} is no file of at most {MOST_TEXT // 1_000_000} MB; get it again")
        return file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"{file} cannot be read ({reason}); get it again") from None


def read_json(file: Path) -> Any:
    """What a JSON file of a stranger holds. Raises UserError, also for one that would fill the memory."""
    text = read_text(file)
    if json_parts(text) > MOST_PARTS:
        raise UserError(f"{file} holds more than {MOST_PARTS:,} lists and objects; get it again")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)[:200]}); get it again") from None
