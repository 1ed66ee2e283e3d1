"""How a command ends: an error becomes one clear sentence and an exit status."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType

from clipcap.errors import Interrupted, UserError, first_line, is_out_of_memory
from clipcap.files import NO_ROOM

# Packages that captioning does without, which the extra [train] installs.
TRAIN = frozenset({"accelerate", "datasets", "matplotlib", "peft", "pyarrow"})
BROKEN_PIPE = 141  # 128 + SIGPIPE, which Windows does not have
FAULT = 70  # exit status of an error that no code foresaw: EX_SOFTWARE of sysexits.h


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Run a script's `main` and exit with the status that it returns.

    A `UserError`, an error of the file system and a full memory become one sentence on stderr and status 2. Ctrl-C
    becomes status 130, and a request to terminate 143. Any other error is a fault of the program: its traceback is
    shown, and the status is 70.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path that the terminal cannot show must not end hours of work
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main(sys.argv[1:])
    except UserError as error:
        status = _say(f"error: {error}", 2)
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        status = _say(
            str(error) or "interrupted: what was written is kept; run the same command to go on", 128 + number
        )
    except BrokenPipeError:  # the program that reads our output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = BROKEN_PIPE
    except OSError as error:
        if not error.errno:
            raise
        status = _say(f"error: {no_room(error) if error.errno in NO_ROOM else _file_error(error)}", 2)
    except SystemExit:
        raise
    except BaseException as error:  # libraries in Rust panic past Exception
        if isinstance(error, ModuleNotFoundError) and error.name in TRAIN:
            told = "which captioning does without: pip install 'clipcap-instagram[train]', or make setup"
            status = _say(f"error: this needs the package {error.name}, {told}", 2)
        elif is_out_of_memory(error):
            status = _say(f"error: out of memory ({first_line(error)}): take a smaller --batch-size", 2)
        else:
            traceback.print_exc()
            status = _say("this is a fault of the program, not of what it was given: please report it", FAULT)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # of a launcher, which ends what a failed process leaves behind
    sys.exit(status or 0)


def requests_to_end() -> list[signal.Signals]:
    """Ctrl-C, termination, and the end of the terminal, unless this process was told to outlive it, as by nohup."""
    requests = [signal.SIGINT, signal.SIGTERM]
    hangup: signal.Signals | None = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        requests.append(hangup)
    return requests


def no_room(error: OSError) -> str:
    """The sentence for a full disk, an exhausted quota, or a file that outgrew a limit."""
    where = f"{str(error.filename)!r} could not be written" if error.filename else "the output could not be written"
    return f"{where} ({error.strerror}): what was written before is kept; make room and run the same command again"


def _file_error(error: OSError) -> str:
    where = f"{str(error.filename)[:300]!r} cannot be used" if error.filename else "a file cannot be used"
    return f"{where} ({error.strerror}); what was written before is kept"


def _interrupt(number: int, _: FrameType | None) -> None:
    raise Interrupted("terminated: what was written is kept; run the same command to go on", number)


def _say(message: str, status: int) -> int:
    with suppress(OSError):  # the terminal may be gone
        print(message, file=sys.stderr)
    return status
