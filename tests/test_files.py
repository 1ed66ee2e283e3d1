"""Outputs appear whole or not at all, have one writer at a time, and a full disk is one sentence."""

from __future__ import annotations

import errno
import gc
import os
import resource
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from clipcap.cli.options import arg, parse
from clipcap.cli.status import FAULT, run
from clipcap.errors import Interrupted, UserError
from clipcap.files import only_writer, whole_file, write_whole


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: writing further fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_leaves_the_old_file_and_no_partial_one(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    write_whole(file, b"the last good one")
    with file_size_limit(10_000), pytest.raises(OSError) as caught, whole_file(file) as out:
        torch.save({"tensor": torch.zeros(100_000)}, out)  # torch raises a RuntimeError of its own here
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(file))
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("weights.pt", b"the last good one")]


def test_other_errors_pass_and_leave_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_whole(file, b"old")
    with pytest.raises(ZeroDivisionError), whole_file(file) as out:
        out.write(b"new")
        1 / 0  # noqa: B018
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("a.txt", b"old")]


def test_link_in_the_place_of_an_unfinished_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / ".out.txt.unfinished").symlink_to("victim")
    (tmp_path / "out.txt").symlink_to("victim")
    write_whole(tmp_path / "out.txt", b"new")
    assert (tmp_path / "victim").read_bytes() == b"mine" and not (tmp_path / "out.txt").is_symlink()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.txt", "victim"]


def test_of_two_writers_of_one_file_the_later_one_goes_on(tmp_path: Path) -> None:
    """The first moved into place what the second had written so far, or deleted it on its way out of an error."""
    file = tmp_path / "a"
    (tmp_path / ".a.unfinished").write_bytes(b"of a run that was killed")
    for error in (None, ZeroDivisionError()):
        write_whole(file, b"old")
        first, second = whole_file(file), whole_file(file)
        first.__enter__().write(b"first")
        out = second.__enter__()
        out.write(b"half")
        out.flush()
        if error:
            assert not first.__exit__(type(error), error, None)
        else:
            with pytest.raises(OSError, match="another run is writing it too") as caught:
                first.__exit__(None, None, None)
            assert caught.value.filename == str(file)
        assert file.read_bytes() == b"old"
        out.write(b" and half")
        second.__exit__(None, None, None)
        assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("a", b"half and half")]


def test_what_a_full_disk_interrupted_is_let_go_at_once(tmp_path: Path) -> None:
    """A reference cycle kept what the frames of the writer held, such as a model, until the next collection."""

    def write() -> weakref.ref[torch.Tensor]:
        large = torch.zeros(100_000)
        known = weakref.ref(large)
        try:
            with whole_file(tmp_path / "a") as file:
                file.write(large.numpy().tobytes())
        except OSError:
            return known
        raise AssertionError("it was written")

    gc.disable()
    try:
        with file_size_limit(10_000):
            assert write()() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("place", [".", "/", "", "folder"])
def test_a_folder_is_no_file_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Guards against a ValueError of pathlib's, and a refusal only once all is written."""
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IsADirectoryError), whole_file(Path(place)):
        raise AssertionError("it was begun")


def test_whole_file_takes_the_longest_name_that_a_folder_takes(tmp_path: Path) -> None:
    for name in ("n" * 255, "é" * 127):
        write_whole(tmp_path / name, b"whole")
        assert (tmp_path / name).read_bytes() == b"whole"


HOLD = """
import sys
from pathlib import Path
from clipcap.files import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_second_writer_is_told_who_holds_the_output_and_leaves(tmp_path: Path, kind: str) -> None:
    output = tmp_path / ("captions.jsonl" if kind == "file" else "")
    command = [sys.executable, "-c", HOLD, str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        for _ in range(2):  # a refused attempt does not take the name of the holder away
            with pytest.raises(UserError, match=f"process {other.pid} on .* since"), only_writer(output):
                raise AssertionError("two writers at once")
        other.kill()
    with only_writer(output):  # what a killed process held is free
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_system_that_lets_nobody_touch_a_locked_file_has_one_writer_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows neither the holder of a lock nor another process may read or write the file: no output was written."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    (tmp_path / ".a.lock").touch()  # of a run that was killed
    with only_writer(tmp_path / "a"), pytest.raises(UserError, match="by another process"), only_writer(tmp_path / "a"):
        raise AssertionError("two writers at once")


def test_a_private_file_stays_private_when_it_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o600)
    write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_a_drive_without_modes_takes_a_file_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On network drives and USB sticks that belong to another user no output could be continued."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, "chmod", refuse)
    for number in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
        write_whole(tmp_path / "a", str(number).encode())
        assert (tmp_path / "a").read_bytes() == str(number).encode()
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        write_whole(tmp_path / "a", b"new")


def test_a_lock_that_may_not_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a shared folder the killed run of another user leaves one: the output itself was said to be refused."""

    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / ".a.lock").write_text("process 7 on elsewhere since 2026-01-31 12:00:00")
    monkeypatch.setattr(FileLock, "acquire", refuse)
    with (
        pytest.raises(UserError, match=r"\.a\.lock', left by process 7 on elsewhere since .*, may .* delete it"),
        only_writer(tmp_path / "a"),
    ):
        raise AssertionError("it was not held")


@pytest.mark.parametrize("content", [b"user content\n", b"process these\n", bytes(9), b"\xff" * 5000])
@pytest.mark.parametrize("late", [False, True])
def test_a_file_of_the_user_with_the_name_of_a_lock_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, late: bool
) -> None:
    """It was written over and deleted."""
    lock, acquire = tmp_path / ".lock", FileLock.acquire
    if late:  # it appears at the very last moment
        monkeypatch.setattr(FileLock, "acquire", lambda self: (acquire(self), lock.write_bytes(content))[0])
    else:
        lock.write_bytes(content)
    for _ in range(2):
        with pytest.raises(UserError, match=r"\.lock' holds something else .* move it away"), only_writer(tmp_path):
            raise AssertionError("it was held")
    assert lock.read_bytes() == content
    monkeypatch.undo()
    for left in ("process 1 on a node since 2026-01-31 12:00:00", ""):  # of a run that was killed
        lock.write_text(left)
        with only_writer(tmp_path):
            assert f"process {os.getpid()} on" in lock.read_text()
        assert not lock.exists()


def test_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), only_writer(tmp_path / "a"):
        1 / 0  # noqa: B018
    with only_writer(tmp_path / "a"):
        pass


@dataclass
class Options:
    """Some options."""

    _argument_group_name = "options"

    output: str | None = arg(None, "a file")
    text: str = arg("a", "a text, which may be empty")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--outptu", "x"], "'--outptu' is no option"),
        (["stray"], "'stray' is no option"),
        (["--text", "b", "--", "stray"], "'--' is no option"),
        (["--output", ""], "--output is empty"),
    ],
)
def test_misspelled_or_empty_option_is_one_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words, Options, description="", example="")
    assert ended.value.code == 2 and said in capsys.readouterr().err
    assert parse(["--text", ""], Options, description="", example="")[0].text == ""


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (["a", "--text", "b", "c"], ["a", "c"]),
        (["--text", "b", "a", "--output=x", "c", "d"], ["a", "c", "d"]),
        (["--text", "b", "--", "-a", "--output"], ["-a", "--output"]),
        (["a", "--text", "b", "--", "--output", "--"], ["a", "--output", "--"]),
        (["--te", "b"], []),
    ],
)
def test_files_stand_anywhere_among_the_options(words: list[str], files: list[str]) -> None:
    """Guards against a second picture behind an option, or one behind `--`, that "is no option of this script"."""
    options, given = parse(words, Options, description="", example="", positional=("files", {"nargs": "*"}))
    assert given.files == files and options.text == "b" and options.output in (None, "x")


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("--rank must be at least 1, not 0"), 2, "error: --rank must be at least 1, not 0"),
        (OSError(errno.ENOSPC, "No space left on device", "a.pt"), 2, "'a.pt' could not be written (No space left"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 2, "the output could not be written (Disk quota"),
        (MemoryError(), 2, "error: out of memory (MemoryError): take a smaller --batch-size"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "error: out of memory (CUDA out of memory)"),
        (KeyboardInterrupt(), 130, "interrupted: what was written is kept"),
        (Interrupted("interrupted at step 3", signal.SIGTERM), 143, "interrupted at step 3"),
        (ZeroDivisionError("division by zero"), FAULT, "ZeroDivisionError: division by zero"),
        (PermissionError(errno.EACCES, "Permission denied", "b"), 2, "error: 'b' cannot be used (Permission denied)"),
        (BaseException("a panic in Rust"), FAULT, "a panic in Rust"),
    ],
)
def test_every_end_has_its_exit_status(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        run(lambda _: _raise(error))
    signal.signal(signal.SIGTERM, before)
    shown = capsys.readouterr().err
    assert ended.value.code == status and said in shown
    assert ("Traceback" in shown) == (status == FAULT)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_a_script_with_a_sentence(number: int, status: int) -> None:
    code = (
        "from time import *; from clipcap.cli.status import run; run(lambda _: (print('ready', flush=True), sleep(60)))"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as script:
        assert script.stdout and script.stdout.readline() == "ready\n"
        os.kill(script.pid, number)
        said = script.communicate()[1]
    assert script.returncode == status
    assert said.endswith("what was written is kept; run the same command to go on\n") and said.count("\n") == 1


def test_terminal_that_shows_ascii_only_ends_no_work() -> None:
    code = "from clipcap.cli.status import run; run(lambda _: print(chr(0xe9) + chr(0xdcff)))"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "\\xe9\\udcff\n")


def test_reader_that_ends_early_is_no_error_of_ours() -> None:
    code = "from clipcap.cli.status import run; run(lambda _: [print(i, flush=True) for i in range(100_000)] and None)"
    command = f'{sys.executable} -c "{code}" | head -1; exit ${{PIPESTATUS[0]}}'
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (141, "0\n", "")
