"""The one exception that users see, and the two sentences that many of them share."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend. The message is one sentence: what was wrong, what was given, what to do."""


def first_line(error: BaseException) -> str:
    """What a library's exception says, in one line: its first, or the name of its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()


def at_least(least: int, *, option: bool = False, **values: float | None) -> None:
    """Raise a UserError for the first value below `least`; None stands for a value that was not given.

    Args:
        least: the smallest allowed value.
        option: spell the names as the command line does, `--batch-size` for batch_size.
        values: by name.
    """
    for name, value in values.items():
        if value is not None and not value >= least:  # so that nan is refused too
            spelled = f"--{name.replace('_', '-')}" if option else name
            raise UserError(f"{spelled} must be at least {least}, not {value}")
