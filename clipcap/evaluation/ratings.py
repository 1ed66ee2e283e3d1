"""What people think of the captions: the `ratings.json` files that the report's blind mode saves, and their summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipcap.data.reading import parse_json
from clipcap.errors import UserError, first_line
from clipcap.evaluation.report import read_report, rewrite_tables
from clipcap.files import only_writer


def rate_report(folder: Path, paths: Sequence[str | Path]) -> dict[str, Any]:
    """Add ratings to the report in a folder; returns it. Raises UserError."""
    report = read_report(folder)
    with only_writer(folder):
        try:
            add_ratings(report, paths)
            rewrite_tables(report, folder)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{folder} holds no report as evaluate.py writes it ({first_line(error)})") from None
    return report


def add_ratings(report: dict[str, Any], paths: Sequence[str | Path]) -> None:
    """Put each model's mean rating and 95% interval into its scores. Several files are the ratings of several people.

    Raises:
        UserError: a file holds no ratings, or ratings of another report's captions.
    """
    by_image: dict[str, dict[str, list[int]]] = {model["name"]: {} for model in report["models"]}
    for path in paths:
        for image, ratings in _read(path, report).items():
            for name, rating in ratings.items():
                by_image[name].setdefault(image, []).append(rating)
    for model in report["models"]:
        rated = list(by_image[model["name"]].values())
        model["scores"].update(rating=summary(rated) if rated else None, rated=len(rated))


def summary(by_image: Sequence[Sequence[int]]) -> dict[str, float]:
    """Mean rating over pictures (for each its ratings), with a 95% bootstrap interval as "low" and "high".

    Pictures are resampled, not ratings, since the pictures are a sample of all pictures.
    """
    means = np.array([np.mean(ratings) for ratings in by_image])
    draws = np.random.default_rng(0).integers(len(means), size=(2000, len(means)))
    low, high = np.quantile(means[draws].mean(1), [0.025, 0.975])
    return {"mean": float(means.mean()), "low": float(low), "high": float(high)}


def _read(path: str | Path, report: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Image -> model -> rating. Raises UserError."""
    try:
        saved = parse_json(Path(path).read_text(encoding="utf-8-sig"), f"ratings {path}")
        kind, ratings = saved["report"], saved["ratings"]
        flat = [(str(i), str(name), rating) for i, models in ratings.items() for name, rating in models.items()]
    except OSError as error:
        raise UserError(f"cannot read ratings {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is not a ratings.json as the report's blind mode saves it") from None
    if kind != report["id"]:
        raise UserError(
            f"{path} rates another report's captions ({kind}, not {report['id']}): set --output to that report"
        )
    images, names = {image["id"] for image in report["images"]}, {model["name"] for model in report["models"]}
    for image, name, rating in flat:
        if image not in images or name not in names:
            raise UserError(f"{path} rates image {image!r} by model {name!r}, which this report does not hold")
        if type(rating) is not int or rating not in range(6):
            raise UserError(f"{path} rates image {image!r} {rating!r}: ratings are whole numbers from 0 to 5")
    return ratings
