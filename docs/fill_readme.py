"""Put what the project itself wrote into the documents: captioned pictures, tables of results and speed, its address.

    python docs/fill_readme.py

Reads the weights and the report that `make compare` leaves in runs/demo/, what `make bench` measured, and where the
repository is published: `git remote get-url origin`. Without such an address nothing that ships names one.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from clipcap.cli.options import parse
from clipcap.cli.status import run
from clipcap.devices import DTYPES
from clipcap.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
COMPARED = Path("runs/demo")
MEASURED = ROOT / "benchmarks" / "RESULTS.json"
MACHINE = ROOT / "benchmarks" / "machine.py"  # run by its path: only clipcap is an installed package
SHOWN = 3  # the first of the held-out pictures, whatever is said about them
ROWS = {  # of the report's table: what tells the strategies apart; the report has the others
    "strategy",
    "trained_parameters",
    "file_bytes",
    "seconds",
    "loss",
    "bleu_4",
    "cider_d",
    "right_subject",
    "right_colour",
}

SPEED = {  # in words: its title among the measurements
    "a folder of photos, captions of 20 tokens": "folder",
    "the same with captions of 67 tokens": "folder 67 tokens",
    "the same with beam search": "folder beam 5",
    "a single photo": "single photo",
    "embedding a folder": "embedding",
    "full fine-tuning, captions": "full fine-tuning",
}
OURS, FP32, INT8 = "ours", "ours, fp32", "ours, int8"  # contenders; the first is in fp32 where the second is missing


def main(argv: Sequence[str] | None = None) -> None:
    """Fill the README and CONTRIBUTING.md, and the first cells of the notebooks."""
    parse(argv, description=(__doc__ or "").partition("\n")[0], example="python docs/fill_readme.py")
    fill_address(ROOT, address(ROOT))
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    text = fill(text, "pictures", pictures(COMPARED / "base" / "base_weights.pt", ROOT / "docs"))
    text = fill(text, "results", table(COMPARED / "report"))
    text = fill(text, "speed", speed(json.loads(MEASURED.read_text(encoding="utf-8"))))
    readme.write_text(text, encoding="utf-8")


def fill(text: str, section: str, content: str) -> str:
    """Replace what stands between `<!-- section -->` and `<!-- end of section -->`."""
    start, end = f"<!-- {section} -->", f"<!-- end of {section} -->"
    before, _, rest = text.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise UserError(f"the README has no section between {start} and {end}: put the two lines where it belongs")
    return f"{before}{start}\n{content.strip()}\n{end}{after}"


def address(root: Path) -> str | None:
    """Where the repository is published, as an https address; None without an origin, or with a local one."""
    command = ["git", "-C", str(root), "remote", "get-url", "origin"]
    # A copy without history that lies inside another repository must not take that repository's address.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(root.parent)}
    try:
        told = subprocess.run(command, capture_output=True, text=True, env=environment)
    except OSError:  # git is not installed
        return None
    return web_address(told.stdout.strip()) if told.returncode == 0 else None


def web_address(origin: str) -> str | None:
    """An https address of what git calls an origin, without user name, password or ".git"; None if it is local."""
    by_url = re.fullmatch(r"(?:https?|ssh|git)://(?:[^/@]+@)?([^/:]+)(?::\d+)?/+(\S+)", origin)
    by_host = re.fullmatch(r"(?:[^/@:]+@)?([^/@:]+):/*(\S+)", origin)  # git@github.com:owner/name.git
    known = by_url or ("://" not in origin and by_host)
    if not known or not re.fullmatch(r"[\w-]+(\.[\w-]+)*\.[A-Za-z]\w+", known[1]):  # a path, an alias, 127.0.0.1
        return None
    return f"https://{known[1]}/{known[2].rstrip('/').removesuffix('.git')}"


def fill_address(root: Path, url: str | None) -> None:
    """Write the address into every document that names it, or take it out of all of them."""
    for name in ("README.md", "CONTRIBUTING.md"):
        document = root / name
        text = document.read_text(encoding="utf-8")
        document.write_text(fill(text, "clone", clone(url)), encoding="utf-8")
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        fill_notebook(notebook, path.name, url)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def clone(url: str | None) -> str:
    """How a reader gets the repository."""
    if url is None:
        return "Run these in the folder of the repository:"
    return f"```bash\ngit clone {url}\ncd {url.rsplit('/', 1)[1]}\n```"


def badge(notebook: str, url: str | None) -> str | None:
    """The badge that opens a notebook in Colab, which knows repositories on GitHub alone."""
    if url is None or not url.startswith("https://github.com/"):
        return None
    opened = url.replace("https://github.com/", "https://colab.research.google.com/github/")
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open in Colab]({image})]({opened}/blob/main/notebooks/{notebook})"


def fill_notebook(notebook: dict, name: str, url: str | None) -> None:
    """Put the badge below the title of a notebook, and the address into the cell that installs the package."""
    title, install = notebook["cells"][:2]
    paragraphs = [text for text in "".join(title["source"]).split("\n\n") if not text.startswith("[![Open in Colab]")]
    paragraphs[1:1] = filter(None, [badge(name, url)])
    title["source"] = "\n\n".join(paragraphs).splitlines(keepends=True)
    code, count = re.subn(r'(?m)^REPOSITORY = ".*?"', f'REPOSITORY = "{url or ""}"', "".join(install["source"]))
    if count != 1:
        raise UserError(f"the second cell of {name} must set REPOSITORY once: it installs the package from there")
    install["source"] = code.splitlines(keepends=True)


def table(folder: Path) -> str:
    """The chosen rows of the report that evaluate.py wrote into a folder, and the machine that took the times."""
    from clipcap.devices import pick_device
    from clipcap.evaluation.report import markdown, read_report

    if not (folder / "report.json").is_file():
        raise UserError(f"there is no {folder / 'report.json'}: run `make compare` first")
    report = read_report(folder)
    for model in report["models"]:
        model["scores"] = {key: score for key, score in model["scores"].items() if key in ROWS}
    machine = runpy.run_path(str(MACHINE))["describe"](pick_device())
    return f"{markdown(report).strip()}\nThe times are those of {machine.get('GPU', machine['CPU'])}."


def speed(results: dict) -> str:
    """What ours does in a second, in each precision, beside the strongest peer and the published code."""
    measured = results["measurements"]
    own, chosen = measured["folder"]["rates"], measured["folder"]["work"][OURS]["dtype"].removeprefix("torch.")
    precision = next(name for name, dtype in DTYPES.items() if dtype == chosen)
    ours = {name: name.removeprefix(f"{OURS}, ") for name in (OURS, FP32, INT8) if name in own}
    head = [
        "",
        f"this project, {precision}",
        *list(ours.values())[1:],
        "open_clip and `generate`",
        "the published code",
    ]
    rows = [
        f"Photos a second on {results['machine']['CPU']}, medians of {results['rounds']} rounds. In brackets: how many "
        "times as fast this project is, in int8 where the row has it, as open_clip and `generate` in "
        f"{precision} and as the published code in fp32.\n",
        f"| {' | '.join(head)} |\n|---|{'---:|' * (len(head) - 1)}",
    ]
    for what, title in SPEED.items():
        if title not in measured:
            continue
        rates = measured[title]["rates"]
        best = INT8 if INT8 in rates else OURS
        cells = [f"{median(rates[name]):.3g}" if name in rates else "" for name in ours]
        cells += [_beside(rates, best, name) if name in rates else "" for name in ("alternative", "published")]
        rows.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", " ".join(peers(measured))])


def peers(measured: dict) -> Iterator[str]:
    """A sentence on each of the peers that have no column, as far as they were measured."""
    folder = measured["folder"]["rates"]
    if "llama.cpp" in folder:
        yield f"open_clip and llama.cpp (Q8_0) caption such a folder at {_beside(folder, INT8, 'llama.cpp')}."
    engines = {"int8": (INT8, "CTranslate2, int8"), "fp32": (FP32 if FP32 in folder else OURS, "CTranslate2, float32")}
    rates = {
        title.rpartition(" ")[2]: found["rates"]
        for title, found in measured.items()
        if engines["fp32"][1] in found["rates"]
    }
    if rates:
        told = [
            f"{', '.join(_ratio(found, *pair) for found in rates.values())} as fast in {precision}"
            for precision, pair in engines.items()
        ]
        yield f"CTranslate2 only decodes; at batch {', '.join(rates)} this project decodes {' and '.join(told)}."


def _beside(rates: dict, ours: str, theirs: str) -> str:
    return f"{median(rates[theirs]):.3g} ({_ratio(rates, ours, theirs)})"


def _ratio(rates: dict, ours: str, theirs: str) -> str:
    ratio = median(a / b for a, b in zip(rates[ours], rates[theirs], strict=True))
    return f"{ratio:.{2 if ratio < 0.95 else 1 if ratio < 10 else 0}f}x"


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
    rows = ("".join(f'<td align="center">{cell}</td>' for cell in cells) for cells in (shown, before, after))
    return "\n".join(["<table>", *(f"<tr>{cells}</tr>" for cells in rows), "</table>"])


if __name__ == "__main__":
    run(main)
