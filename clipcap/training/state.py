"""A run on disk: the state from which it is resumed."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import load, set_seed

from clipcap.cli.processes import Processes
from clipcap.errors import UserError, first_line, is_out_of_memory
from clipcap.files import write_whole
from clipcap.training.record import check_best
from clipcap.training.whole import Whole

RUN = "run.json"  # the file in a state that says what must be the same for a run to be resumed from it
WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch's own switch
ANYTHING = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # its opposite; torch loads nothing where both are set


class State:
    """The folder from which a run is resumed, to reach the same weights as a run that was never interrupted.

    It holds the present weights (not the best ones), the optimizer's moments, the learning-rate schedule, the states of
    the random generators of every process, the progress, and in `run.json` the values that must be the same to resume.

    Args:
        accelerator: has everything registered that belongs to a state.
        processes: those that train together.
        folder: the run's output folder.
        options, facts: the values that must be the same for a run to be resumed, by name: those that the user typed,
            and others.
        whole: checks what was restored.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        processes: Processes,
        folder: Path,
        options: dict[str, Any],
        facts: dict[str, Any],
        whole: Whole,
    ) -> None:
        self.accelerator, self.processes, self.folder, self.whole = accelerator, processes, folder, whole
        self.options, self.facts = options, facts

    def start(self, resume: bool, weights: Path) -> None:
        """Restore the last state, or delete that of an earlier run. A half-written one goes in any case.

        Raises:
            UserError: the state cannot be used, or `weights`, the best ones of its run so far, are gone or not its own;
                or the state to delete is of another strategy, or of LoRA of another rank.
        """
        if not resume:
            self.check(resume=False)
        else:
            self.load()
            self.processes.agree(self.whole.progress.step, f"states in {self.folder}")
            if self.processes.main and self.whole.progress.best < math.inf:
                check_best(weights, self.whole.progress.best)
        if self.processes.main:
            for name in ("state.new",) if resume else ("state", "state.old", "state.new"):
                remove(self.folder / name)
        self.processes.wait()

    def save(self) -> None:
        """Write the state under another name, then let it take the place of the last one.

        A folder cannot be replaced in one step, so the last state is renamed first. Whenever the run is killed, there
        is a complete state named `state` or `state.old`, and `load` looks for them in this order.

        Raises:
            OSError: the disk is full, for example. The last state is still there.
        """
        self.processes.wait()  # the first one writes weights meanwhile, for longer than torch waits by itself
        new, state, old = (self.folder / name for name in ("state.new", "state", "state.old"))
        try:
            self._write(new)
        except OSError:
            remove(new)
            raise
        if self.processes.main:
            if os.path.lexists(state):  # else the old one is all that is whole until the new one has its name
                remove(old)
                state.rename(old)
            new.rename(state)
            remove(old)
        self.processes.wait()

    def _write(self, folder: Path) -> None:
        try:
            self.accelerator.save_state(str(folder), safe_serialization=False)
            if device := self._device():
                torch.save(device.get_rng_state(), folder / f"device_random_{self.processes.rank}.bin")
        except RuntimeError as error:
            # All that torch's own writer says, whatever the reason.
            if "Parent directory" in str(error):
                raise OSError(errno.ENOENT, "the folder has gone", str(folder)) from None
            if "inline_container" not in str(error) and "iostream" not in str(error):
                raise
            raise OSError(errno.ENOSPC, "the disk may be full", str(folder)) from None
        self.processes.wait()
        if self.processes.main:
            write_whole(folder / RUN, json.dumps(self.options | self.facts).encode())
            for file in filter(Path.is_file, folder.rglob("*")):  # on the disk before the last state goes
                with file.open("r+b") as written:  # Windows wants a file that may be written
                    os.fsync(written.fileno())

    def check(self, resume: bool) -> None:
        """Raise a UserError if the last state can neither be resumed nor replaced: what takes long comes later."""
        if not (state := self._last()):
            return
        if resume:
            with _usable(state):
                self._check_same_run(state)
            return
        other, own = None, self.facts["strategy"]
        with suppress(OSError, ValueError, RecursionError, AttributeError):  # what cannot be read is of no strategy
            if (state / RUN).is_file():  # a pipe would be waited for
                other = json.loads((state / RUN).read_text(encoding="utf-8")).get("strategy")
        if other not in (None, own):
            raise UserError(
                f"{self.folder} holds a run of {_shown(other)}, and this one, of {_shown(own)}, would replace its "
                f"state and metrics: choose another --output-dir, or delete {state}"
            )

    def load(self) -> None:
        """Restore the last state; if there is none, say so and leave everything as it is.

        Raises:
            UserError: the state belongs to another run, or it is damaged.
        """
        if not (state := self._last()):
            return self.processes.note(f"no state in {self.folder} yet: starting from the beginning")
        with _usable(state):
            if unsaid := self._check_same_run(state):
                self.processes.note(
                    f"the state in {self.folder} is of an earlier version: make sure that these are as they were then: "
                    f"{', '.join(unsaid)}"
                )
            with tensors_only(), self.processes.watched():
                self.accelerator.load_state(str(state))
            self._restore_random(state)
            self.whole.check()

    def _last(self) -> Path | None:
        return next((state for name in ("state", "state.old") if (state := self.folder / name).is_dir()), None)

    def _restore_random(self, state: Path) -> None:
        """Restore this process's random generators, or seed them by its number and step if it was not there before."""
        before, now = len(list(state.glob("random_states_*.pkl"))), self.processes.world
        if now != before:
            self.processes.note(
                f"the state in {self.folder} was saved with {before} as the number of processes, which is {now} now: "
                "from here on dropout draws other numbers, and all else is the same up to rounding"
            )
        if 0 < before <= self.processes.rank:
            set_seed((self.options["seed"] + self.processes.rank + self.whole.progress.step) % 2**32)
            return
        # accelerate passes over a random state that it cannot read, and the run would go on otherwise.
        random = load(state / f"random_states_{self.processes.rank}.pkl")
        torch.set_rng_state(random["torch_manual_seed"])
        own = state / f"device_random_{self.processes.rank}.bin"
        if own.is_file() and (device := self._device()):  # earlier versions did not write it
            device.set_rng_state(torch.load(own, map_location="cpu", weights_only=True))

    def _device(self) -> Any:
        """Torch's module of the run's device, with its random generator; None for the CPU, which has torch's own.

        accelerate keeps no generator of Apple's GPUs, and those of others by their index, which may be another now.
        """
        device = self.accelerator.device
        return None if device.type == "cpu" else torch.get_device_module(device)

    def _check_same_run(self, state: Path) -> list[str]:
        """The options of which the state says nothing. Raises UserError where it says that they were others."""
        for path in state.rglob("*"):
            if not path.is_file() and not path.is_dir():  # a pipe, for example, would be waited for
                raise ValueError(f"its {path.name} is no file")
        begun = json.loads((state / RUN).read_text(encoding="utf-8"))
        if not isinstance(begun, dict):
            raise ValueError(f"its {RUN} holds a {type(begun).__name__}")
        if begun.get("processes", 1) != 1:
            raise UserError(
                f"the state in {state} is of an earlier version, in which --batch-size counted the captions of each of "
                f"{_shown(begun['processes'])} processes: start anew without --resume"
            )
        unsaid = []
        for name, value in (self.options | self.facts).items():
            spelled = f"--{name.replace('_', '-')}" if name in self.options else name
            if name not in begun:
                unsaid.append(spelled)
            elif begun[name] != value:
                told = "" if name == "trained parameters" else f" ({_shown(begun[name])}, not {_shown(value)})"
                raise UserError(
                    f"the run in {self.folder} was started with other {spelled}{told}: give the same to --resume it, "
                    "or start anew without --resume"
                )
        return unsaid


@contextmanager
def _usable(state: Path) -> Iterator[None]:
    """Inside this context, whatever a reader of a damaged file raises is a UserError about the state."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        raise UserError(
            f"the state in {state} is damaged or of another model ({first_line(error)}): start anew without --resume"
        ) from None


def remove(path: Path) -> None:
    """Delete a folder with all that is in it, a file, or a link, which is never followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _shown(value: Any) -> str:
    """A value of `run.json` for a message: on one line, and nobody reads all of a SHA-256."""
    return f"SHA-256 {value[:12]}..." if re.fullmatch("[0-9a-f]{64}", str(value)) else repr(value)[:80]


@contextmanager
def tensors_only() -> Iterator[None]:
    """Inside this context, `torch.load` runs no code of a file, even for those who ask it to, as accelerate does."""
    before = {name: os.environ.pop(name) for name in (WEIGHTS_ONLY, ANYTHING) if name in os.environ}
    os.environ[WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        del os.environ[WEIGHTS_ONLY]
        os.environ.update(before)
