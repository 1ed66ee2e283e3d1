"""Put what the project itself wrote into the README: the captioned pictures, the tables of `make compare` and of speed.

    python docs/fill_readme.py

Reads the weights and the report that `make compare` leaves in runs/demo/, and what `make bench` measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from clipcap.cli import run
from clipcap.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
COMPARED = Path("runs/demo")
MEASURED = ROOT / "benchmarks" / "RESULTS.json"
SHOWN = 3  # the first of the held-out pictures, whatever is said about them

SPEED = {  # in words: its title among the measurements
    "a folder of photos, captions of 20 tokens": "folder",
    "the same in fp32": "folder fp32",
    "the same with captions of 67 tokens": "folder 67 tokens",
    "the same with beam search": "folder beam 5",
    "a single photo": "single photo",
    "embedding a folder": "embedding",
    "full fine-tuning": "full fine-tuning",
}


def main(argv: Sequence[str] | None = None) -> None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    text = fill(text, "pictures", pictures(COMPARED / "base" / "base_weights.pt", ROOT / "docs"))
    text = fill(text, "results", table(COMPARED / "report" / "report.md"))
    text = fill(text, "speed", speed(json.loads(MEASURED.read_text(encoding="utf-8"))))
    readme.write_text(text, encoding="utf-8")


def fill(text: str, section: str, content: str) -> str:
    """Replace what stands between `<!-- section -->` and `<!-- end of section -->`."""
    start, end = f"<!-- {section} -->", f"<!-- end of {section} -->"
    before, _, rest = text.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise UserError(f"the README has no section between {start} and {end}: put the two lines where it belongs")
    return f"{before}{start}\n\n{content.strip()}\n\n{end}{after}"


def table(report: Path) -> str:
    if not report.is_file():
        raise UserError(f"there is no {report}: run `make compare` first")
    return report.read_text(encoding="utf-8")


def speed(results: dict) -> str:
    """Rates of ours, and how many times the published code's and the alternative's they are."""
    rows = [
        f"On {results['machine']['CPU']}, medians of {results['rounds']} rounds:\n",
        "| | this project | against the published code | against open_clip and `generate` |\n|---|---:|---:|---:|",
    ]
    for what, title in SPEED.items():
        measured = results["measurements"][title]
        rates = measured["rates"]
        ours = rates["ours"]
        cells = [f"{median(ours):.3g} {measured['unit']}"]
        for theirs in (rates.get("published with CLIP", rates.get("published")), rates.get("alternative")):
            ratio = theirs and median(a / b for a, b in zip(ours, theirs, strict=True))
            cells.append(f"{ratio:.3g} times faster" if theirs else "")
        rows.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(rows)


def pictures(weights: Path, folder: Path) -> str:
    """Held-out pictures as PNGs, in a row, each with what was said before and after fine-tuning beneath."""
    from clipcap import Captioner
    from clipcap.page import escape
    from clipcap.world.scenes import scenes

    held_out = list(scenes("test", SHOWN))
    images = [scene.draw() for scene in held_out]
    before, after = (Captioner.load(name)(images) for name in ("demo", weights))
    for number, image in enumerate(images, 1):
        image.quantize(128).save(folder / f"captioned_{number}.png", optimize=True)
    shown = [
        f'<img src="docs/captioned_{number}.png" width="224" alt="{scene.literal}">'
        for number, scene in enumerate(held_out, 1)
    ]
    before = [f"before: {escape(caption)}" for caption in before]
    after = [f"<b>{escape(caption)}</b>" for caption in after]
    lines = ["<table>"]
    for cells in (shown, before, after):
        lines += ["<tr>", *(f'<td align="center">{cell}</td>' for cell in cells), "</tr>"]
    return "\n".join([*lines, "</table>"])


if __name__ == "__main__":
    run(main)
