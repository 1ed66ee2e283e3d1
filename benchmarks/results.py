"""What was measured, with every single round, and the JSON file that keeps it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.machine import Limits, Work
from benchmarks.timing import Measurement
from clipcap.errors import UserError


@dataclass
class Results:
    """One run.

    Attributes:
        device: "cpu" or "cuda".
        models: their name.
        machine: see `machine.describe`.
        limits: measured peaks.
        rounds: of every comparison.
        quick: whether little was measured.
        batches: what is computed together, in words, and how many of it.
        photos: how many different ones, and how large, in words.
        measurements: by title.
        memory: task -> peak bytes.
        predict_memory: number of photos -> peak bytes of predict.py.
        runs: of the command that measured all of it, on the same machine.
    """

    device: str
    models: str
    machine: dict[str, str]
    limits: Limits
    rounds: int
    quick: bool
    batches: dict[str, int]
    photos: str = ""
    measurements: dict[str, Measurement] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    predict_memory: dict[int, int] = field(default_factory=dict)
    runs: int = 1

    def limit(self, measurement: Measurement, name: str) -> float | None:
        """Items per second that the machine allows a contender; None where its work is not known."""
        work = measurement.work.get(name)
        return 1 / self.limits.seconds(work) if work else None

    def as_json(self) -> str:
        """The text of the file, which `read` understands."""
        values = asdict(self)
        rates = {str(dtype).removeprefix("torch."): rate for dtype, rate in self.limits.operations.items()}
        values["limits"] = {"operations_per_second": rates, "bytes_per_second": self.limits.bandwidth}
        return json.dumps(values, indent=1, default=str) + "\n"


def json_of(page: Path) -> Path:
    """The file beside a page that holds what the page shows."""
    return page.with_suffix(".json")


def read(file: Path) -> Results:
    """What an earlier run measured.

    Raises:
        UserError: the file is not one that `Results.as_json` wrote.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        operations = {_dtype(name): rate for name, rate in values["limits"]["operations_per_second"].items()}
        values["limits"] = Limits(operations, values["limits"]["bytes_per_second"])
        values["measurements"] = {title: _measurement(found) for title, found in values["measurements"].items()}
        values["predict_memory"] = {int(count): size for count, size in values["predict_memory"].items()}
        return Results(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} does not hold what a benchmark measured ({error!r}): measure again") from None


def add_to(page: Path, new: Results) -> Results:
    """What an earlier run wrote, for a new one to go on with.

    Raises:
        UserError: there is nothing, or it was measured otherwise or on another machine.
    """
    file = json_of(page)
    if not file.is_file():
        raise UserError(f"there is no {file} to add to: leave out --add")
    old = read(file)
    for name in ("device", "models", "machine", "photos", "rounds", "quick", "batches"):
        if getattr(old, name) != getattr(new, name):
            raise UserError(f"{file} was measured with other {name}: leave out --add to begin anew")
    old.limits = old.limits.best(new.limits)
    old.runs += 1
    return old


def _measurement(values: dict) -> Measurement:
    works = {name: Work(**(work | {"dtype": _dtype(work["dtype"])})) for name, work in values["work"].items()}
    return Measurement(**(values | {"work": works}))


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name.removeprefix("torch."))
