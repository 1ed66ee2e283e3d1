"""The exceptions whose messages users see, and two helpers that word such messages."""

from __future__ import annotations

import signal

NO_MEMORY = ("can't allocate memory", "out of memory", "_STATUS_ALLOC_FAILED")  # of a CPU, of CUDA, of its libraries


class UserError(Exception):
    """Something that the user can correct. The message is one sentence: what was wrong, what was given, what to do."""


class Interrupted(KeyboardInterrupt):
    """A signal has asked the program to end. The message says what is kept and how to go on.

    Attributes:
        number: that of the signal.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or the name of its class if it has no message.

    TorchScript puts its own traceback in front of the message, which is the last line there.
    """
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return lines[-1 if "TorchScript interpreter" in lines[0] else 0].strip()


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether this, or what it followed, says that the memory of a device, or of the machine, does not suffice.

    CUDA and its libraries have names of their own for it, and what cleans up after it may raise another error.
    """
    while error is not None:
        named = type(error).__name__ == "OutOfMemoryError"  # torch's, which is not imported here
        if named or isinstance(error, MemoryError) or any(sign in str(error) for sign in NO_MEMORY):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def at_least(least: int, *, option: bool = False, **values: float | None) -> None:
    """Raise a UserError for the first value below `least`.

    Args:
        least: the smallest allowed value.
        option: spell the names as on the command line, `--batch-size` for batch_size.
        **values: by name; None stands for a value that was not given.
    """
    for name, value in values.items():
        if value is not None and not value >= least:  # written so that it refuses nan too
            spelled = f"--{name.replace('_', '-')}" if option else name
            raise UserError(f"{spelled} must be at least {least}, not {shown(value)}")


def shown(value: object, most: int = 40) -> str:
    """A value for a message, in at most about `most` characters and without any that a terminal would obey.

    It may come from a stranger's file: lists and dictionaries are named only, since one that holds itself many times
    over would take for ever to write out.
    """
    if isinstance(value, str):
        return repr(value[:most])
    if isinstance(value, int) and abs(value) >= 10**most:
        return f"a number of more than {most} digits"
    return repr(value) if isinstance(value, int | float | None) else f"a {type(value).__name__}"


def check_text(**texts: str) -> None:
    """Raise a UserError for the first text that is no UTF-8: an argument from a shell can hold any bytes."""
    for name, text in texts.items():
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{name} {text!r} is not UTF-8 text")
