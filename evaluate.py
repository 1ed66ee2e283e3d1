"""Compare models on pictures that none of them has seen: a table, and a page with every caption beside its picture.

    python evaluate.py --data instagram_data --split test runs/*/*_weights.pt coco --output report/

Prints the table and writes report.md, report.json and report.html. On that page people can rate the captions blind and
save ratings.json; `python evaluate.py --ratings anna.json ben.json --output report/` puts the ratings of all of these
into the report, in the place of earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipcap.captioning.options import DecodingArguments, check_sizes, chosen
from clipcap.cli.options import OnOff, arg, parse
from clipcap.cli.processes import Ended, Processes, together
from clipcap.cli.status import run
from clipcap.decoding.options import SEQUENCES
from clipcap.devices import CAPTIONING, pick_device, pick_dtype
from clipcap.errors import UserError, at_least, check_text, first_line
from clipcap.files import make_folder
from clipcap.world.shipped import EVALUATE


@dataclass
class EvaluationArguments:
    """Which data the models are compared on, and how."""

    _argument_group_name = "evaluation"

    data: str | None = arg(None, "dataset folder that load_data.py wrote", metavar="DIR")
    split: str = arg("test", "the split to caption")
    output: str = arg("report", "folder for report.md, report.json and report.html", metavar="DIR")
    limit: int | None = arg(None, "use only the first N images")
    pictures: int = arg(200, "images in the page's picture book")
    metrics: list[str] = arg([], "also these, which need Java and pycocoevalcap", choices=["meteor", "spice"])
    protocol: str = arg(
        "instagram",
        "words of BLEU, CIDEr, ...: with emoji and hashtags, or as in COCO's tables",
        choices=["instagram", "coco"],
    )
    clip_prompt: str = arg("A photo depicts", "what CLIPScore puts before a caption", metavar="TEXT")
    base: str | None = arg(None, "what the LoRA weights among them were trained on, if it has moved", metavar="FILE")
    normalize: bool | None = arg(None, "of published weights: divide CLIP's embeddings by their norm", action=OnOff)
    ratings: list[str] = arg([], "all files ratings.json: put them into the report in --output", metavar="FILE")
    batch_size: int | None = arg(None, f"images captioned together (default: {SEQUENCES}, fewer with beams)")
    device: str = arg("auto", "cpu, cuda, ...")
    precision: str = arg("auto", "of captioning; the loss is computed in fp32", choices=list(CAPTIONING))
    no_fast: bool = arg(False, "leave out clipcap/fast: slower, for comparison; only what is sampled differs")
    demo: bool = arg(False, "set the defaults to the demo world shipped with the project")


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the models that the command line names, or add ratings; returns 1 if a model failed, else 0."""
    args, decoding_args, positional = parse(
        argv,
        *(EvaluationArguments, DecodingArguments),
        description="Compare models on one split: a table, and a page with every caption beside its picture.",
        example="python evaluate.py --data instagram_data runs/*/*_weights.pt coco --output report/",
        positional=("models", {"nargs": "*", "help": "weights: files, coco, coco-transformer, hf:owner/name, ..."}),
        demo=EVALUATE,
    )
    from clipcap.evaluation.report import text_table

    folder = Path(args.output)
    with together(args, decoding_args, positional) as processes:
        if args.ratings and processes.main:
            report = rate(args, decoding_args, positional.models, folder)
        elif not args.ratings:
            report = compare(args, decoding_args, positional.models, processes)
    if not processes.main:
        return 0
    print(text_table(report))
    print(*(folder / name for name in ("report.md", "report.json", "report.html")), sep="\n")
    return 1 if report["failed"] and not args.ratings else 0


def rate(
    args: EvaluationArguments, decoding_args: DecodingArguments, models: Sequence[str], folder: Path
) -> dict[str, Any]:
    """Add people's ratings to an existing report. Raises UserError."""
    from clipcap.evaluation.ratings import rate_report

    already = f"--ratings go into the report that is already in {folder}"
    if models:
        raise UserError(f"{already}: leave the models out")
    for name in given_options(args, decoding_args):
        if name not in ("ratings", "output", "demo"):
            raise UserError(f"{already}: leave --{name.replace('_', '-')} out")
    return rate_report(folder, args.ratings)


def given_options(args: EvaluationArguments, decoding_args: DecodingArguments) -> Iterator[str]:
    """The names of the options whose value is not their default."""
    defaults = asdict(EvaluationArguments()) | asdict(DecodingArguments()) | (EVALUATE if args.demo else {})
    return (name for name, value in (asdict(args) | asdict(decoding_args)).items() if value != defaults[name])


def compare(
    args: EvaluationArguments, decoding_args: DecodingArguments, models: Sequence[str], processes: Processes
) -> dict[str, Any]:
    """Evaluate every model and write the report after each, so that an interruption costs one model and not all.

    Several processes share the pictures out, and the main one writes the report.

    Raises:
        UserError: the arguments cannot be used, or no model could be evaluated.
    """
    if not models:
        raise UserError("no models given: name files of weights, or published ones such as coco")
    if args.data is None:
        raise UserError("no data given: say --data FOLDER, a dataset written by load_data.py, or --demo")
    at_least(1, option=True, limit=args.limit)
    at_least(0, option=True, pictures=args.pictures)
    check_sizes(args.batch_size)
    check_text(**{"--clip-prompt": args.clip_prompt})
    decoding, _ = chosen(decoding_args)
    from clipcap.data.store import EmbeddingStore
    from clipcap.evaluation.held_out import HeldOut, make_judge
    from clipcap.evaluation.java_metrics import java_scorer
    from clipcap.evaluation.scores import evaluate_model, new_report
    from clipcap.evaluation.writer import report_writer
    from clipcap.weights.places import check_base, short_names

    device, folder = pick_device(args.device), Path(args.output)
    pick_dtype(args.precision, device, not args.no_fast)  # refuses what no model could be computed in
    processes.load(lambda: check_base(models, args.base))
    if processes.main:
        make_folder(folder)
    store = EmbeddingStore.open(args.data)
    processes.agree(store.identity, "data")
    held_out = HeldOut(store, args.split, args.limit, device, not args.no_fast, args.protocol, processes)
    shown = held_out.pictures(args.pictures if processes.main else 0)
    more = {name: java_scorer(name) for name in args.metrics if processes.main}
    judge = make_judge(held_out, args.clip_prompt) if processes.main else None
    report = new_report(held_out, decoding, judge)
    settled = (held_out, decoding, judge, args.precision, args.batch_size, more)
    named = list(short_names(models))
    with report_writer(folder, len(named), shown, processes.main) as write:
        for name, weights in named:
            processes.note(f"{name}: {weights}")
            try:
                report["models"].append({"name": name, **evaluate_model(weights, *settled, args.base, args.normalize)})
            except Ended:
                raise
            except Exception as error:  # whatever is wrong with one file, the others get their scores
                report["failed"][name] = first_line(error)
                processes.note(f"error: {name} is left out: {report['failed'][name]}")
            if report["models"]:
                write(report)
    if not report["models"] and processes.main:
        raise UserError(f"none of the {len(named)} models could be evaluated: see above")
    return report


if __name__ == "__main__":
    run(main)
