"""The processes that `torchrun`, or `accelerate launch`, started for one command: how they meet and share work."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from clipcap.errors import UserError, first_line
from clipcap.text import visible

MEET = timedelta(minutes=5)  # by then all processes must be there
WORK = timedelta(days=7)  # how long one may wait for the work of another; one that has ended is noticed at once
Result = TypeVar("Result")
OF_EACH = ("device", "workers")  # options that machines may have different ones of
HOW = "start all of them with torchrun --nproc-per-node N, or unset WORLD_SIZE to run one"


class Ended(UserError):
    """Another process of this command has ended, and so must this one.

    Args:
        world: how many processes there were.
        cause: what torch says of it.
        kept: what is kept, and how to go on.
    """

    def __init__(self, world: int, cause: str, kept: str) -> None:
        super().__init__(
            f"another of the {world} processes has ended, and its own message says why, or they cannot work together "
            f"({cause}); {kept}"
        )
        self.world, self.cause = world, cause


@dataclass(frozen=True)
class Processes:
    """This process among those of one command.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        group: torch's group of all of them; None where this one is alone.
    """

    rank: int = 0
    world: int = 1
    group: Any = None

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files, prints results and shows progress."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """What each process gave, by rank, for all of them. It waits until everybody is here.

        Raises:
            Ended: another process has ended.
        """
        if self.world == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.world
        with self.watched():
            distributed.all_gather_object(values, value, self.group)
        return values

    def largest(self, value: int) -> int:
        """The largest number that a process gave, for all of them: an agreement that costs next to nothing."""
        if self.world == 1:
            return value
        import torch
        from torch import distributed

        number = torch.tensor(value)
        with self.watched():
            distributed.all_reduce(number, distributed.ReduceOp.MAX, self.group)
        return int(number)

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.largest(0)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside this context, what torch says of a process that has ended is one sentence, a UserError."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not _is_closed(error):
                raise
            kept = "what was written is kept: run the same command to go on, with --resume where it trains"
            raise Ended(self.world, _cause(error), kept) from None

    def attempt(self, work: Callable[[], Any]) -> list[Any]:
        """What `work` gives in each process, by rank, for all of them; where it fails in one, it fails in all.

        Raises:
            Exception: what `work` has raised, or a UserError with the message of another process.
        """
        value, failure = None, None
        try:
            value = work()
        except Exception as error:
            failure = error
        outcomes = self.gather((value, failure and first_line(failure)))
        if failure is not None:
            raise failure
        if message := next((message for _, message in outcomes if message is not None), None):
            raise UserError(message)
        return [value for value, _ in outcomes]

    def load(self, work: Callable[[], Result]) -> Result:
        """What `work` gives in this process; one process of each machine is first, and may download for the others.

        Where it fails in one, it fails in all, as in `attempt`.
        """
        first = on_this_machine()[0] == 0
        loaded: list[Result] = []
        self.attempt(lambda: loaded.append(work()) if first else None)
        self.attempt(lambda: None if first else loaded.append(work()))
        return loaded[0]

    def note(self, text: str) -> None:
        """Print a line on stderr, once and not in every process."""
        if self.main:
            print(visible(text), file=sys.stderr)

    def agree(self, value: Any, what: str) -> None:
        """Raise a UserError in every process unless all of them see the same."""
        values = self.gather(value)
        if other := next((rank for rank in range(self.world) if values[rank] != values[0]), None):
            raise UserError(
                f"the {self.world} processes see different {what} (process 0: {values[0]}, process {other}: "
                f"{values[other]}); give all of them the same files and options"
            )


ALONE = Processes()


def launched() -> tuple[int, int]:
    """The rank of this process and how many there are, as the launcher says in the environment; (0, 1) without one.

    Raises:
        UserError: there are several, and the environment does not say how they meet.
    """
    world = _number("WORLD_SIZE", 1, 1)
    if world == 1:
        return 0, 1
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise UserError(f"WORLD_SIZE is {world} in the environment, but {name} is not there: {HOW}")
    rank = _number("RANK", 0)
    if rank >= world:
        raise UserError(f"RANK is {rank} in the environment, and must be below WORLD_SIZE, which is {world}: {HOW}")
    return rank, world


def on_this_machine() -> tuple[int, int]:
    """The number of this process among those on this machine, and how many there are."""
    return (_number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1, 1)) if launched()[1] > 1 else (0, 1)


@contextmanager
def together(*options: object) -> Iterator[Processes]:
    """Meet the other processes of this command, if a launcher started several, and part from them at the end.

    Args:
        *options: objects whose attributes are the options of the command.

    Raises:
        UserError: they cannot meet, or were given different options.
    """
    processes = meet(_with_gloo)
    try:
        for name, value in (item for group in options for item in vars(group).items()):
            if name not in OF_EACH:
                processes.agree(value, name.replace("_", " "))
        yield processes
    finally:
        if processes.world > 1:
            from torch import distributed

            distributed.destroy_process_group()


def meet(begin: Callable[[], Any]) -> Processes:
    """Meet the other processes of this command, for as long as it runs; `begin` makes torch's default group.

    Raises:
        UserError: they cannot meet.
    """
    rank, world = launched()
    if world == 1:
        return ALONE
    from torch import distributed

    place = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        socket.getaddrinfo(*place)  # torch would try again and again to find a name that does not exist
        begin()
        group = distributed.new_group(timeout=WORK, backend="gloo")
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the {world} processes could not meet at {':'.join(place)} ({first_line(error)}): {HOW}"
        ) from None
    return Processes(rank, world, group)


def _with_gloo() -> None:
    from torch import distributed

    distributed.init_process_group("gloo", timeout=MEET)


def _is_closed(error: RuntimeError) -> bool:
    """Whether gloo or NCCL says this: as a rule that another process has closed the connection."""
    from torch import distributed

    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower()


def _cause(error: RuntimeError) -> str:
    """What torch says first, or NCCL at its end, behind the file of PyTorch that noticed it."""
    return (str(error).rpartition("Last error:")[2].strip() or first_line(error)).splitlines()[0]


def _number(name: str, default: int, least: int = 0) -> int:
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and least <= int(text) < 2**31):
        raise UserError(f"{name} is {text!r} in the environment, and must be a number from {least}: {HOW}")
    return int(text)
