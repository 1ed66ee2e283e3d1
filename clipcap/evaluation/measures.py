"""The rows of the comparison table: their names, how their values are written, and whether high or low is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """One row.

    Attributes:
        key: its name among a model's scores.
        label: its name in the table.
        write: value -> text.
        better: max or min; None where neither is better.
        meaning: an explanation for a newcomer, where the label does not suffice.
    """

    key: str
    label: str
    write: Callable[[Any], str]
    better: Callable[[Sequence[Any]], Any] | None = None
    meaning: str = ""


def amount(number: float) -> str:
    """1234567 -> "1.23 M"."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * size:  # 999,600 is 1 M, and not 1e+03 k
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """75 -> "1 min 15 s"."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def decimals(places: int) -> Callable[[float], str]:
    """A function that writes a number with this many decimals, or in scientific notation from 100,000 on."""
    return lambda value: f"{value:.{places}f}" if value < 1e5 else f"{value:.2e}"


def size(number: float) -> str:
    """1234567 -> "1.23 MB"."""
    return f"{amount(number)}B"


def hundredfold(score: float) -> str:
    """1.0835 -> "108.35", as published tables write it."""
    return f"{100 * score:.2f}"


def percent(share: float) -> str:
    """0.123 -> "12.3%"."""
    return f"{100 * share:.1f}%"


def interval(rating: Mapping[str, float]) -> str:
    """A `ratings.summary` -> "3.50 (3.10 to 3.90)"."""
    return f"{rating['mean']:.2f} ({rating['low']:.2f} to {rating['high']:.2f})"


GROUPS: dict[str, tuple[Measure, ...]] = {
    "Cost": (
        Measure("strategy", "strategy", str),
        Measure("trained_parameters", "trained parameters", amount, min),
        Measure("file_bytes", "file size", size, min, "LoRA: without its base; prompted: with its literal captioner"),
        Measure("seconds", "training time", duration, min, "of the steps alone, without validation"),
        Measure(
            "peak_memory_bytes",
            "peak training memory",
            size,
            min,
            "of the GPU; without one, the largest size of the process so far, also in runs before it",
        ),
        Measure(
            "captions_per_second", "captions/s", decimals(1), max, "from stored embeddings to text, CLIP not counted"
        ),
    ),
    "Fit": (
        Measure("loss", "test loss", decimals(3), min, "mean cross-entropy per token of the true captions, in nats"),
        Measure("perplexity", "perplexity per token", decimals(1), min, "exp of the test loss"),
    ),
    "Overlap with the true captions": (
        *(Measure(f"bleu_{n}", f"BLEU-{n}", decimals(3), max) for n in (1, 2, 3, 4)),
        Measure("rouge_l", "ROUGE-L", decimals(3), max),
        Measure("cider_d", "CIDEr-D", decimals(3), max, "0 to 10; emoji and hashtags count as words in all of these"),
        Measure("meteor", "METEOR", decimals(3), max, "by pycocoevalcap, English words"),
        Measure("spice", "SPICE", decimals(3), max, "by pycocoevalcap, English words"),
    ),
    "COCO protocol, × 100": (
        *(Measure(f"coco_bleu_{n}", f"BLEU-{n}", hundredfold, max) for n in (1, 2, 3, 4)),
        Measure("coco_rouge_l", "ROUGE-L", hundredfold, max),
        Measure(
            "coco_cider_d",
            "CIDEr-D",
            hundredfold,
            max,
            "0 to 1000; Penn Treebank words without punctuation, as in published tables, for all of these",
        ),
        Measure("coco_meteor", "METEOR", hundredfold, max, "by pycocoevalcap"),
        Measure("coco_spice", "SPICE", hundredfold, max, "by pycocoevalcap"),
    ),
    "Caption and picture": (
        Measure("clip_score", "CLIPScore", decimals(3), max, "2.5 × cosine of caption and picture, by the data's CLIP"),
        Measure("ref_clip_score", "RefCLIPScore", decimals(3), max, "CLIPScore and the nearest true caption's cosine"),
    ),
    "Style": (
        Measure("distinct_1", "distinct-1", decimals(3), max, "different words over all words"),
        Measure("distinct_2", "distinct-2", decimals(3), max, "different pairs of words over all pairs"),
        Measure("mean_length", "mean length", decimals(1), None, "words, emoji and hashtags per caption"),
        Measure("emoji", "with emoji", percent),
        Measure("hashtag", "with hashtag", percent),
        Measure("copied", "copied", percent, min, "captions that stand word for word among the training captions"),
    ),
    "Privacy": (
        Measure("contacts", "contacts given away", str, min, "handles, numbers, addresses of the training captions"),
        Measure("longest_copy", "longest copied run", str, min, "words in a row that stand in a training caption"),
        Measure("canaries", "canaries told", percent, min, "secrets planted in training that it writes or completes"),
        Measure(
            "exposure",
            "canary exposure",
            decimals(2),
            min,
            "mean, in bits: 1.44 if the secrets are new to it, 9.97 at most",
        ),
    ),
    "Demo world": (
        Measure(
            "right_subject", "right subject", percent, max, "captions that name the thing in the picture, and no other"
        ),
        Measure("right_colour", "right colour", percent, max, "captions that name its colour, and no other"),
        Measure("instagram_style", "Instagram style", percent, max, "captions with an emoji or a hashtag"),
    ),
    "People": (
        Measure("rating", "mean rating", interval, max, "0 to 5, rated blind, with its 95% interval over pictures"),
        Measure("rated", "pictures rated", str),
    ),
}


@dataclass(frozen=True)
class Cell:
    """One value as it is written, and whether it is the best of its row."""

    text: str
    best: bool = False


def rows(scores: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[Measure, list[Cell]]]]:
    """Group -> its measures that any model has, each with one cell per model; the best of several models is marked."""
    table = {}
    for group, measures in GROUPS.items():
        known = [measure for measure in measures if any(score.get(measure.key) is not None for score in scores)]
        if known:
            table[group] = [
                (measure, _cells(measure, [score.get(measure.key) for score in scores])) for measure in known
            ]
    return table


def _cells(measure: Measure, values: Sequence[Any]) -> list[Cell]:
    texts = ["–" if value is None else measure.write(value) for value in values]
    ranks = [value["mean"] if isinstance(value, Mapping) else value for value in values]
    known = [rank for rank in ranks if rank is not None]
    if not measure.better or len(set(texts) - {"–"}) < 2:
        return [Cell(text) for text in texts]
    best = texts[ranks.index(measure.better(known))]  # values that are written alike are equally good
    return [Cell(text, text == best) for text in texts]
