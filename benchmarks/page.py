"""The page that shows what was measured: what a user gains first, then why. Every figure comes from the results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.results import Results, json_of
from benchmarks.timing import Measurement
from clipcap.devices import precision_of

STAGE = "stage: "  # begins the name of a contender that does one stage of a folder alone
STRATEGIES = "strategies"  # the comparison of our own strategies with each other
AMONG_OURS = {STRATEGIES: "Strategies of fine-tuning", "precisions": "A folder in each precision, greedy, 20 tokens"}
COMPARED = {  # title of a comparison: the task in words
    "folder": "captioning a folder, greedy, 20 tokens",
    "folder fp32": "captioning a folder, greedy, 20 tokens, fp32",
    "folder 67 tokens": "captioning a folder, greedy, 67 tokens",
    "folder beam 5": "captioning a folder, 5 beams, 20 tokens",
    "folder nucleus": "captioning a folder, nucleus, 20 tokens",
    "folder of 16": "captioning only 16 photos, greedy, 20 tokens",
    "single photo": "captioning one photo at a time, greedy, 20 tokens",
    "embedding": "embedding a folder",
    "full fine-tuning": "full fine-tuning",
}
REFERENCES = {  # contender that ours is compared with, strongest first: what it is called on the page
    "alternative": "open_clip + `generate`",
    "published with CLIP": "published loop",
    "published": "published loop",
}


def write(results: Results, page: Path) -> None:
    """Write the results as JSON and, beside them, the page."""
    json_of(page).write_text(results.as_json(), encoding="utf-8")
    write_page(results, page)


def write_page(results: Results, page: Path) -> None:
    """Write the page alone, from results that were measured earlier."""
    page.write_text("\n".join(_page(results)), encoding="utf-8")


def figure(value: float) -> str:
    """Three significant digits, without an exponent: 0.522, 10.0, 1,630."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:#.3g}"


def _page(results: Results) -> Iterator[str]:
    processors = ", ".join(results.machine[name] for name in ("CPU", "GPU") if name in results.machine)
    yield "# Speed and memory\n"
    yield (
        f"Measured on {processors}, with {results.models}. Ours computes in {_precision(results)}, which it chooses "
        "for this device. The weights are random and no caption ends early: speed does not depend on what the weights "
        "have learnt, and all contenders do the same work.\n"
    )
    yield from _compared(results)
    yield from _among_ours(results)
    yield from _stages(results)
    yield from _shares(results)
    yield from _memory(results)
    yield from _explained(results)
    yield from _machine(results)


def _precision(results: Results) -> str:
    """That of ours in most comparisons; a row with another one says so."""
    used = [precision_of(work.dtype) for found in results.measurements.values() for work in found.work.values()]
    return max(dict.fromkeys(used), key=used.count, default="the precision")


def _compared(results: Results) -> Iterator[str]:
    found = [results.measurements[title] for title in COMPARED if title in results.measurements]
    if not found:
        return
    yield "## Ours beside what one would use instead\n"
    header = ("per second", "ours", REFERENCES["alternative"], "ratio", REFERENCES["published"], "ratio")
    yield from _table(header, [row for measurement in found for row in _rows(results, measurement)])
    yield "\nA dash stands where nothing was measured. The end of this page says what the columns are.\n"
    notes = [f"- {COMPARED[measurement.title]}: {note}." for measurement in found for note in measurement.notes]
    if notes:
        yield from [*notes, ""]


def _rows(results: Results, found: Measurement) -> Iterator[list[str]]:
    """One row, or two where the published loop was run in two ways."""
    row = [f"{COMPARED[found.title]}, {found.unit}", f"**{figure(found.rate('ours'))}**"]
    row += _against(found, "alternative")
    if "alternative" in found.rates:
        row[2] += f" (batch {min(results.batches['alternative'], found.items['alternative'])})"
    if "published with CLIP" not in found.rates:
        yield row + _against(found, "published")
        return
    for name, how in (("published with CLIP", "CLIP in each step"), ("published", "stored embeddings")):
        beside = _against(found, name)
        yield [*row, f"{beside[0]} ({how})", beside[1]]


def _against(found: Measurement, name: str) -> list[str]:
    """The rate of a contender, and how many times faster ours is."""
    if name not in found.rates:
        return ["–", "–"]
    return [figure(found.rate(name)), f"**{figure(found.ratio('ours', name))}x**"]


def _among_ours(results: Results) -> Iterator[str]:
    for title, heading in AMONG_OURS.items():
        found = results.measurements.get(title)
        if found is None:
            continue
        first = next(iter(found.rates))
        yield f"## {heading}\n"
        rows = [[n, figure(found.rate(n)), f"{figure(found.ratio(n, first))}x"] for n in found.rates]
        yield from _table(("", found.unit, f"against {first}"), rows)
        yield ""


def _stages(results: Results) -> Iterator[str]:
    shown = {*COMPARED, *AMONG_OURS}
    alone = [found for title, found in results.measurements.items() if title not in shown]
    folders = [found for found in results.measurements.values() if any(name.startswith(STAGE) for name in found.rates)]
    if not alone and not folders:
        return
    yield "## Stages\n"
    for folder in folders:
        times = {name.removeprefix(STAGE): 1000 / folder.rate(name) for name in folder.rates if name.startswith(STAGE)}
        yield f"{COMPARED.get(folder.title, folder.title).capitalize()}: each stage alone, then all together.\n"
        rows = [[name, figure(time)] for name, time in times.items()]
        rows += [["sum of the stages", figure(sum(times.values()))]]
        yield from _table(("", "ms per image"), [*rows, ["end to end", figure(1000 / folder.rate("ours"))]])
        yield ""
    if alone:
        header = ("per second", "ours", REFERENCES["alternative"], "ratio")
        rows = [[f"{m.title}, {m.unit}", f"**{figure(m.rate('ours'))}**", *_against(m, "alternative")] for m in alone]
        yield from _table(header, rows)
        yield ""


def _shares(results: Results) -> Iterator[str]:
    rows = []
    for found in results.measurements.values():
        for name, work in found.work.items():
            limit, rate, products = results.limit(found, name), found.rate(name), found.products.get(name)
            title = COMPARED.get(found.title, found.title) + ("" if name == "ours" else f": {name}")
            rows.append(
                [f"{title}, {found.unit}", precision_of(work.dtype), figure(rate), figure(limit) if limit else "–"]
                + [f"{rate / limit:.0%}" if limit else "–", f"{products:.0%}" if products else "–"]
            )
    if rows:
        yield "## Share of what the machine allows\n"
        header = ("per second", "precision", "ours", "limit", "share of the limit", "time in products with weights")
        yield from _table(header, rows)
        yield (
            "\nThe limit is what the products with weights alone would take at the machine's peak, measured below, or "
            "what reading the weights takes where that is longer. The time that ours spends in these products is read "
            "from the profile of a further turn; the rest is photos, attention, choosing tokens, the optimizer, and "
            "so on.\n"
        )


def _memory(results: Results) -> Iterator[str]:
    if not results.memory and not results.predict_memory:
        return
    yield "## Peak memory\n"
    if results.memory:
        kind = "allocated on the GPU" if results.device == "cuda" else "resident while it works, libraries included"
        yield f"Each in a process of its own; {kind}.\n"
        yield from _table(("", "GiB"), [[task, f"{size / 2**30:.2f}"] for task, size in results.memory.items()])
        yield ""
    if sizes := results.predict_memory:
        few, many = min(sizes), max(sizes)
        rows = [[f"{count:,} photos", f"{size / 2**20:,.0f}"] for count, size in sizes.items()]
        yield from _table(("`predict.py` with its workers, tiny weights", "MiB"), rows)
        yield f"\nFrom {few:,} to {many:,} photos the peak changes by {sizes[many] / sizes[few] - 1:+.1%}.\n"


def _explained(results: Results) -> Iterator[str]:
    batches = ", ".join(f"{REFERENCES.get(what, what)} {count}" for what, count in results.batches.items())
    run = "one run" if results.runs == 1 else f"{results.runs} runs (--add) on the same machine"
    yield "## How it was measured\n"
    yield (
        f"- **{REFERENCES['alternative']}** is what one would assemble instead, from open_clip and Hugging Face "
        "`generate`, in batches and in the same precision as ours (`alternative.py`)."
    )
    yield (
        f"- **{REFERENCES['published']}** is the published algorithm (`published.py`): fp32, one image at a time, no "
        "key-value cache; training pads captions to 77 tokens."
    )
    yield f"- **Batch sizes**, where a row names no other: {batches}."
    yield (
        "- **Rounds**: the contenders took turns in one process. A rate is the median of "
        f"{results.rounds} rounds, and a ratio is the median of each round's ratio. A slow contender did fewer items "
        "in a round."
    )
    yield (
        f"- **Source**: `python -m benchmarks{' --quick' if results.quick else ''}` measured this in {run}. The .json "
        "file beside this page holds every round; `python -m benchmarks --page` writes the page from it again.\n"
    )


def _machine(results: Results) -> Iterator[str]:
    peaks = ", ".join(
        f"{precision_of(dtype)} {rate / 1e12:.2f} Tflop/s" for dtype, rate in results.limits.operations.items()
    )
    measured = {
        "matrix products, measured": peaks,
        "memory, measured": f"{results.limits.bandwidth / 1e9:.1f} GB/s",
        "photos": results.photos,
    }
    yield "## Machine\n"
    yield from _table(("", ""), [[name, value] for name, value in (results.machine | measured).items()])
    yield ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table; numbers stand on the right."""
    numbers = "---:|" * (len(header) - 1) if any(header) else "---|"
    yield f"| {' | '.join(header)} |"
    yield f"|---|{numbers}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
