"""Measure speed and memory beside the published algorithm and beside what a user would pick instead.

    python -m benchmarks [--device cpu|cuda] [--quick] [--only NAME ...] [--add]
    python -m benchmarks --page

The first writes benchmarks/RESULTS.json and RESULTS.md; the second measures nothing and writes RESULTS.md from the
RESULTS.json that is there. On two CPU cores with AVX2 the first takes more than an hour; --only and --add divide it.
Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipcap.cli.options import arg, parse
from clipcap.errors import UserError, at_least

HERE = Path(__file__).resolve().parent
# The comparisons, in the order in which they are measured. The last two are of memory; each of the others is the
# function of this name in `captioning` or in `fine_tuning`.
NAMES = (
    "folder_greedy",
    "folder_long",
    "folder_beam",
    "folder_nucleus",
    "folder_small",
    "single_photo",
    "embedding",
    "clip_batches",
    "mapping_batches",
    "decoding_batches",
    "decoding_methods",
    "against_published",
    "strategies",
    "memory",
    "predict_memory",
)


@dataclass
class Arguments:
    """The command line."""

    _argument_group_name = "what to measure"

    only: list[str] | None = arg(None, f"comparisons to run: {', '.join(NAMES)} (default: all)", metavar="NAME")
    device: str = arg("cpu", "cpu or cuda")
    rounds: int = arg(5, "turns of each contender; the median counts")
    quick: bool = arg(False, "2 rounds, fewer photos and batch sizes, no profiles, no peak memory of each task")
    tiny: bool = arg(False, "tiny models, only to see that the benchmark runs")
    photos: str | None = arg(None, "measure on the photos in this folder (default: noise with their spectrum)")
    add: bool = arg(False, "keep what the page holds already, measured on this machine")
    page: bool = arg(False, "measure nothing; write the page again from the .json file beside it")
    output: str = arg(str(HERE / "RESULTS.md"), "page to write, and a .json beside it (default: RESULTS.md)")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, or write the page of an earlier run again; then print the page."""
    (args,) = parse(argv, Arguments, description="Measure speed and memory.", example="python -m benchmarks --quick")
    unknown = sorted(set(args.only or ()) - set(NAMES))
    if unknown:
        raise UserError(f"--only {unknown[0]} is no comparison; choose from {', '.join(NAMES)}")
    at_least(1, option=True, rounds=args.rounds)
    if Path(args.output).suffix != ".md":
        raise UserError(f"--output {args.output} names the page, and its .json holds what was measured: end it in .md")
    if args.page:
        rewrite(args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(args, Path(folder))
    print(Path(args.output).read_text(encoding="utf-8"))


def rewrite(args: Arguments) -> None:
    """Write the page again from the results beside it.

    Raises:
        UserError: there are none, or the command asks to measure as well.
    """
    from benchmarks.page import write_page
    from benchmarks.results import json_of, read

    if args.only or args.add:
        raise UserError(f"--page measures nothing: leave out {'--only' if args.only else '--add'}")
    file = json_of(Path(args.output))
    if not file.is_file():
        raise UserError(f"there is no {file} to write a page from: leave out --page to measure")
    write_page(read(file), Path(args.output))


def measure(args: Arguments, folder: Path) -> None:
    """Run the comparisons that were asked for; the page is written after each, so that nothing is lost at the end.

    Args:
        folder: an empty one, for photos and weights.
    """
    from benchmarks import captioning, fine_tuning, memory
    from benchmarks.machine import describe, measure_limits
    from benchmarks.page import write
    from benchmarks.plan import Plan
    from benchmarks.results import Results, add_to
    from benchmarks.setting import TINY, Setting, Sizes
    from clipcap.cli.progress import ProgressBar
    from clipcap.devices import pick_device

    device = pick_device(args.device)
    setting = Setting(folder, device, TINY if args.tiny else Sizes(), args.photos)
    rounds = min(args.rounds, 2) if args.quick else args.rounds
    patience = 0.02 if args.tiny else 0.25 if args.quick else 1.0  # to measure the limits, after each comparison again
    results = Results(
        device=device.type,
        models=setting.sizes.name,
        machine=describe(device),
        photos=setting.describe_photos(),
        limits=measure_limits(device, patience),
        rounds=rounds,
        quick=args.quick,
        batches=captioning.BATCHES | fine_tuning.BATCHES,
    )
    if args.add:
        results = add_to(Path(args.output), results)
    chosen = args.only or [name for name in NAMES if not (args.quick and name == "memory")]
    names = [name for name in NAMES if name in chosen]
    with ProgressBar(names, "measuring", unit="comparison") as bar:
        plan = Plan(rounds, args.quick, device, bar.set_postfix_str)
        for name in bar:
            if name == "memory":
                results.memory = {task: memory.peak(task, setting) for task in memory.tasks(setting)}
            elif name == "predict_memory":
                counts = (50, 500) if args.quick else (memory.FEW, memory.MANY)
                results.predict_memory = memory.predict_folders(memory.tiny(setting), *counts)
            else:
                module = captioning if hasattr(captioning, name) else fine_tuning
                for measurement in getattr(module, name)(setting, plan):
                    results.measurements[measurement.title] = measurement
            results.limits = results.limits.best(measure_limits(device, patience))  # others may have run before
            write(results, Path(args.output))
