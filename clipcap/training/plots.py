"""Loss curves as PNG or SVG.

A run is given as the rows of a `metrics.jsonl`: `{"step", "epoch", "train_loss"}` and `{"step", "epoch", "val_loss"}`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from clipcap.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito (2008): colours that colour-blind readers can tell apart. Black and yellow are left out, since they vanish
# on a dark or on a light background.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK = "#5a5f66"  # of axes and text; in SVG it is replaced by the page's text colour

Rows = Sequence[Mapping[str, Any]]


def plot_losses(runs: Mapping[str, Rows], path: str | Path, title: str) -> None:
    """Write a PNG with the training loss (thin, smoothed) and validation loss (points) of each run. Raises OSError.

    Args:
        runs: name -> rows, which may be empty; the loss is the mean cross-entropy per caption token, in nats.
        path: the file to write.
        title: above the axes.
    """
    buffer = io.BytesIO()
    _save(runs, title, buffer, format="png", dpi=180)
    write_whole(Path(path), buffer.getvalue())


def losses_svg(runs: Mapping[str, Rows], title: str) -> str:
    """The same figure as an `<svg>` element that takes the text colour of the page around it."""
    buffer = io.StringIO()
    _save(runs, title, buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)  # the page decides its size


def _save(runs: Mapping[str, Rows], title: str, target: io.BytesIO | io.StringIO, **options: Any) -> None:
    """Draw and save; `**options` go to `Figure.savefig`."""
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "clipcap", "text.parse_math": False}):
        _loss_figure(runs, title).savefig(target, **options)


def _loss_figure(runs: Mapping[str, Rows], title: str) -> Figure:
    from matplotlib.figure import Figure  # not pyplot: this needs no display and keeps no global state

    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, rows) in enumerate(runs.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        label = "training" if len(runs) == 1 else None
        axes.plot(*_smoothed(*_series(rows, "train_loss")), color=colour, linewidth=0.9, alpha=0.55, label=label)
        label = "validation" if len(runs) == 1 else name
        axes.plot(*_series(rows, "val_loss"), color=colour, marker=marker, linewidth=1.8, markersize=5, label=label)
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("mean cross-entropy per caption token", color=INK)
    axes.set_title(title, color=INK, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK)
    axes.grid(axis="y", color=INK, alpha=0.18, linewidth=0.6)
    axes.locator_params(axis="x", integer=True)
    if len(runs) > 1:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=INK)
        axes.text(1, 1, "points: validation\nthin: training", transform=axes.transAxes, ha="right", va="top", color=INK)
    elif runs:
        axes.legend(frameon=False, labelcolor=INK)
    return figure


def _series(rows: Rows, key: str) -> tuple[list[int], list[float]]:
    """Steps and losses of the rows that have this loss."""
    found = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return [step for step, _ in found], [loss for _, loss in found]


def _smoothed(steps: Sequence[int], losses: Sequence[float]) -> tuple[list[int], list[float]]:
    """Mean over the last twentieth of the run before each point, at about 400 points: a line cannot show more."""
    window, stride = max(1, len(losses) // 20), max(1, len(losses) // 400)
    kept = range(0, len(losses), stride)
    return [steps[i] for i in kept], [fmean(losses[max(0, i - window + 1) : i + 1]) for i in kept]
