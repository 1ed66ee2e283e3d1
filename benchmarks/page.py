"""The page that shows what was measured: what a user gains first, then why. Every figure comes from the results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.machine import name_of
from benchmarks.results import Results, json_of
from benchmarks.setting import OURS
from benchmarks.timing import Measurement
from clipcap.captioning.options import FIRST
from clipcap.files import write_whole

STAGE = "stage: "  # begins the name of a contender that does one stage of a folder alone
STRATEGIES = "strategies"  # the comparison of our own strategies with each other
FOLDER = "folder"  # what most people do, beside every contender there is
COMPARED = {  # title of a comparison: the task in words
    FOLDER: "captioning a folder, greedy, 20 tokens",
    "folder 67 tokens": "captioning a folder, greedy, 67 tokens",
    "folder beam 5": "captioning a folder, 5 beams, 20 tokens",
    "folder nucleus": "captioning a folder, nucleus, 20 tokens",
    "folder of 16": "captioning only 16 photos, greedy, 20 tokens",
    "single photo": "captioning one photo at a time, greedy, 20 tokens",
    "embedding": "embedding a folder",
    "full fine-tuning": "full fine-tuning",
}
INT8 = f"{OURS}, int8"
REFERENCES = {  # contender that ours is compared with: what it is called on the page
    "alternative": "open_clip + `generate`",
    "alternative, batch 32": "open_clip + `generate`, batch 32",
    "published with CLIP": "published loop",
    "published": "published loop",
}
ENGINES = ("CTranslate2, int8", "CTranslate2, float32")


def write(results: Results, page: Path) -> None:
    """Write the results as JSON and, beside them, the page."""
    write_whole(json_of(page), results.as_json().encode())
    write_page(results, page)


def write_page(results: Results, page: Path) -> None:
    """Write the page alone, from results that were measured earlier."""
    write_whole(page, "\n".join(_page(results)).encode())


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
    yield from _folder(results)
    yield from _compared(results)
    yield from _strategies(results)
    yield from _stages(results)
    yield from _shares(results)
    yield from _memory(results)
    yield from _explained(results)
    yield from _machine(results)


def _precision(results: Results) -> str:
    """That of ours in most comparisons; a row with another one says so."""
    used = [name_of(work.dtype) for found in results.measurements.values() for work in found.work.values()]
    return max(dict.fromkeys(used), key=used.count, default="the precision")


def _folder(results: Results) -> Iterator[str]:
    """Every contender in the task that most people have, the fastest first."""
    found = results.measurements.get(FOLDER)
    if found is None:
        return
    names = [name for name in found.rates if not name.startswith(STAGE)]
    ours = [name for name in names if name.startswith(OURS)]
    rows = []
    for name in sorted(names, key=found.rate, reverse=True):
        called = REFERENCES.get(name, f"**{name}**" if name in ours else name)
        called += f", batch {results.batches['sequences decoded']}" if name in ("alternative", "llama.cpp") else ""
        ratios = [f"{figure(found.ratio(mine, name))}x" if mine != name else "–" for mine in ours]
        rows.append([called, _precision_in(found, name), figure(found.rate(name)), *ratios])
    yield f"## {COMPARED[FOLDER].capitalize()}\n"
    yield from _table(("", "precision", found.unit, *(f"{mine}, against it" for mine in ours)), rows)
    yield from ["", *(f"- {note}." for note in found.notes), ""]


def _precision_in(found: Measurement, name: str) -> str:
    """What a contender multiplies in; the pipeline computes in the precision of ours."""
    fixed = {"published": "fp32", "llama.cpp": "int8 (Q8_0), CLIP as ours"}
    return fixed.get(name) or name_of(found.work[name if name in found.work else OURS].dtype)


def _compared(results: Results) -> Iterator[str]:
    titles = [title for title in COMPARED if title in results.measurements and title != FOLDER]
    if not titles:
        return
    yield "## Other tasks beside what one would use instead\n"
    header = ("per second", "ours", REFERENCES["alternative"], "ratio", REFERENCES["published"], "ratio")
    yield from _table(header, [row for title in titles for row in _rows(results.measurements[title])])
    yield "\nA dash stands where nothing was measured. The end of this page says what the columns are.\n"


def _rows(found: Measurement) -> Iterator[list[str]]:
    """One row for each precision of ours, or one for each way in which the published loop was run."""
    ways = {"published with CLIP": " (CLIP in each step)", "published": " (stored embeddings)"}
    ways = ways if ways.keys() <= found.rates.keys() else {"published": ""}
    for mine in [name for name in found.rates if name.startswith(OURS)]:
        for name, how in ways.items():
            beside = _against(found, mine, name)
            row = [f"{COMPARED[found.title]}{mine.removeprefix(OURS)}, {found.unit}", f"**{figure(found.rate(mine))}**"]
            yield [*row, *_against(found, mine, "alternative"), beside[0] + how, beside[1]]


def _against(found: Measurement, mine: str, name: str) -> list[str]:
    """The rate of a contender, and how many times as fast one of ours is."""
    if name not in found.rates:
        return ["–", "–"]
    return [figure(found.rate(name)), f"**{figure(found.ratio(mine, name))}x**"]


def _strategies(results: Results) -> Iterator[str]:
    found = results.measurements.get(STRATEGIES)
    if found is None:
        return
    yield "## Strategies of fine-tuning\n"
    rows = [[name, figure(found.rate(name)), f"{figure(found.ratio(name, 'full'))}x"] for name in found.rates]
    yield from _table(("", found.unit, "against full"), rows)
    yield ""


def _stages(results: Results) -> Iterator[str]:
    alone = [found for title, found in results.measurements.items() if title not in {*COMPARED, STRATEGIES}]
    folder = results.measurements.get(FOLDER)
    if not alone and not folder:
        return
    yield "## Stages\n"
    if folder:
        times = {name.removeprefix(STAGE): 1000 / folder.rate(name) for name in folder.rates if name.startswith(STAGE)}
        yield f"{COMPARED[FOLDER].capitalize()}: each stage of ours alone, then all together.\n"
        rows = [[name, figure(time)] for name, time in times.items()]
        rows += [["sum of the stages", figure(sum(times.values()))]]
        yield from _table(("", "ms per image"), [*rows, ["end to end", figure(1000 / folder.rate(OURS))]])
        yield ""
    if alone:
        yield from _table(
            ("per second", OURS, INT8, REFERENCES["alternative"], "ratio of ours", "of int8"), map(_stage, alone)
        )
        yield ""
    beside = [found for found in alone if not found.rates.keys().isdisjoint(ENGINES)]
    if beside:
        yield "Greedy decoding beside CTranslate2, which takes tokens only, and so cannot caption:\n"
        fp32 = f"{OURS}, fp32" if f"{OURS}, fp32" in beside[0].rates else OURS
        columns = list(zip((INT8, fp32), ENGINES, strict=True))
        header = ["captions/s", *(title for mine, name in columns for title in (mine, name, "ratio"))]
        yield from _table(
            header,
            [
                [found.title]
                + [cell for mine, name in columns for cell in (figure(found.rate(mine)), *_against(found, mine, name))]
                for found in beside
            ],
        )
        yield ""
    yield from [f"- {note}." for note in dict.fromkeys(note for found in alone for note in found.notes)]


def _stage(found: Measurement) -> list[str]:
    """A row: ours in its own precision and in int8, then the pipeline, and how many times as fast as it both are."""
    rates = [figure(found.rate(name)) if name in found.rates else "–" for name in (OURS, INT8, "alternative")]
    ratios = [_against(found, mine, "alternative")[1] if mine in found.rates else "–" for mine in (OURS, INT8)]
    return [f"{found.title}, {found.unit}", f"**{rates[0]}**", *rates[1:], *ratios]


def _shares(results: Results) -> Iterator[str]:
    rows = []
    for found in results.measurements.values():
        for name, work in found.work.items():
            limit, rate, products = results.limit(found, name), found.rate(name), found.products.get(name)
            title = COMPARED.get(found.title, found.title) + ("" if name.startswith(OURS) else f": {name}")
            rows.append(
                [f"{title}, {found.unit}", name_of(work.dtype), figure(rate), figure(limit) if limit else "–"]
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
        f"- **{REFERENCES['alternative']}** is what a careful user would assemble instead, from open_clip and Hugging "
        "Face `generate`: the precision that ours chooses, batches as large as ours or of the whole folder, photos "
        "decoded at a reduced size by as many workers (`alternative.py`)."
    )
    yield (
        f"- **{REFERENCES['published']}** is the published algorithm (`published.py`): fp32, one image at a time, no "
        "key-value cache; training pads captions to the longest."
    )
    yield (
        "- **llama.cpp** gets embeddings from open_clip, in the precision of ours, and **CTranslate2** gets random "
        "tokens in the place of a prefix, in a process of its own: in the same one it slows PyTorch down "
        "(`engines.py`)."
    )
    yield (
        f"- **Batch sizes**, at most, where a row names no other: {batches}. Of a folder ours decodes {FIRST} at "
        "first, so that captions come soon."
    )
    yield (
        "- **Rounds**: the contenders took turns in one call. A rate is the median of "
        f"{results.rounds} rounds, and a ratio is the median of each round's ratio. A slow contender did fewer items "
        "in a round."
    )
    yield (
        f"- **Source**: `python -m benchmarks{' --quick' if results.quick else ''}` measured this in {run}. The .json "
        "file beside this page holds every round; `python -m benchmarks --page` writes the page from it again.\n"
    )


def _machine(results: Results) -> Iterator[str]:
    peaks = ", ".join(
        f"{name_of(dtype)} {figure(rate / 1e12)} Tflop/s" for dtype, rate in results.limits.operations.items()
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
