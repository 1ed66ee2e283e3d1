"""The comparison of several models: a table, `report.json`, `report.md` and one self-contained `report.html`.

A report consists of plain values, just as `report.json` holds them:

    {"format": 1, "id": ..., "data": {"folder", "split", "identity", "images", ...}, "decoding": {...},
     "versions": {package: version},
     "models": [{"name", "weights", "scores": {measure: value}, "losses": [rows of metrics.jsonl], "captions": [...],
      "privacy": as `clipcap.evaluation.privacy.given_away` returns it}],
     "failed": {name: why}, "images": [{"id", "captions": [true captions]}]}

The `captions` of a model are in the order of `images`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipcap.clip.images import UnreadableImage
from clipcap.errors import UserError, first_line
from clipcap.evaluation import measures
from clipcap.files import write_whole
from clipcap.page import escape, page, picture_uri
from clipcap.text import in_markdown
from clipcap.training.plots import losses_svg

FORMAT = 1
SIDE = 512  # pixels of a picture's longer side, at most: enough to judge a caption by
TABLE_STARTS, TABLE_ENDS = "<!-- table -->", "<!-- end of table -->"


def report_id(report: Mapping[str, Any]) -> str:
    """A hash of what is rated: these captions of these images by these models. Ratings name it."""
    rated = [report["data"]["identity"], report["data"]["split"], [image["id"] for image in report["images"]]]
    rated += [[model["name"], model["captions"]] for model in report["models"]]
    return hashlib.sha256(json.dumps(rated).encode()).hexdigest()[:16]


def write_report(report: dict[str, Any], folder: Path, pictures: Sequence[bytes | str | None]) -> None:
    """Write the three files.

    Args:
        report: as described above; its "id" is set here.
        folder: an existing folder.
        pictures: the first images, as many as the page shows: encoded, as a path, or None for one that is gone.
    """
    report["id"] = report_id(report)
    _write_tables(report, folder)
    _write(folder / "report.html", _html(report, [_uri(picture) if picture else None for picture in pictures]))


def _uri(picture: bytes | str) -> str | None:
    """A picture for the page; None for one that cannot be read, since the data may come from anybody."""
    try:
        return picture_uri(picture, SIDE)
    except UnreadableImage:
        return None


def read_report(folder: Path) -> dict[str, Any]:
    """The report that `write_report` wrote into a folder. Raises UserError."""
    path = folder / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no {path}: ratings belong to a report that evaluate.py has written") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): write the report again") from None
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise UserError(f"{path} is not a report of this version: write it again with evaluate.py")
    return report


def rewrite_tables(report: dict[str, Any], folder: Path) -> None:
    """Bring the tables of a written report up to date with its scores. Pictures and captions stay as they are.

    Raises:
        UserError: report.html is missing, or is not as `write_report` wrote it.
    """
    path = folder / "report.html"
    try:
        html = path.read_text(encoding="utf-8")
        before, rest = html.split(TABLE_STARTS)
        after = rest.split(TABLE_ENDS)[1]
    except (OSError, ValueError, IndexError):
        raise UserError(f"{path} is missing or not as evaluate.py wrote it: write the report again") from None
    _write_tables(report, folder)
    _write(path, f"{before}{_html_table(report)}{after}")


def _write_tables(report: dict[str, Any], folder: Path) -> None:
    _write(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False))
    _write(folder / "report.md", markdown(report))


def _write(path: Path, text: str) -> None:
    """Write text whole. What a path holds that is not UTF-8 is escaped, as JSON writes it too: it reads it back."""
    write_whole(path, text.encode("utf-8", "backslashreplace"))


def text_table(report: Mapping[str, Any]) -> str:
    """The table for a terminal: one line per measure, one column per model, the best value of a line with a star."""
    names = [model["name"] for model in report["models"]]
    lines: list[list[str]] = [["", *names]]
    for rows in measures.rows([model["scores"] for model in report["models"]]).values():
        lines.append([])
        lines += [
            [measure.label, *(cell.text + ("*" if cell.best else " ") for cell in cells)] for measure, cells in rows
        ]
    widths = [max(len(line[column]) for line in lines if line) for column in range(len(names) + 1)]
    return "\n".join(
        "  ".join(text.ljust(width) if not column else text.rjust(width) for column, (text, width) in enumerate(row))
        for row in ([*zip(line, widths, strict=False)] for line in lines)
    )


def summary(report: Mapping[str, Any]) -> str:
    """One line of text: what was captioned, where it comes from, and how it was decoded."""
    data = report["data"]
    chosen = {name: value for name, value in report["decoding"].items() if value or name == "seed"}
    settings = ", ".join(f"{name} {value}" for name, value in chosen.items())
    source = f"the {data['split']} split of {data['folder']} ({data['identity'][:12]})"
    return f"{data['images']} images of {source}; decoding: {settings}."


def markdown(report: Mapping[str, Any]) -> str:
    """The table in Markdown with its settings, the best values in bold."""

    def plain(text: str) -> str:
        return in_markdown(" ".join(text.split()))

    names = [plain(model["name"]) for model in report["models"]]
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for rows in measures.rows([model["scores"] for model in report["models"]]).values():
        for measure, cells in rows:
            texts = [f"**{plain(cell.text)}**" if cell.best else plain(cell.text) for cell in cells]
            lines.append(f"| {measure.label} | " + " | ".join(texts) + " |")
    failed = [f"- {plain(name)} failed: {plain(why)}" for name, why in report["failed"].items()]
    return "\n".join([*lines, "", plain(summary(report)), *([""] if failed else []), *failed, ""])


def _html(report: Mapping[str, Any], pictures: Sequence[str | None]) -> str:
    here = Path(__file__).parent
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    runs = {model["name"]: model["losses"] for model in report["models"] if model["losses"]}
    curves = f'<h2>Loss</h2><div class="curves">{losses_svg(runs, "")}</div>' if runs else ""
    given_away = "".join(_given_away(model) for model in report["models"] if "privacy" in model)
    privacy = f"<h2>What the models give away</h2>{given_away}" if given_away else ""
    cards = "".join(_card(report, number, picture) for number, picture in enumerate(pictures))
    ratable = any(picture for picture in pictures)
    invitation = '<p><a class="button main" href="#rate">Rate the captions blind</a></p>' if ratable else ""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    body = f"""<main id="results">
<p class="quiet">{escape(summary(report))}</p>
{_html_table(report)}
{curves}
{privacy}
<h2>Pictures and captions</h2>
{invitation}
<div class="pictures">{cards}</div>
<footer>Report {report["id"]}. {escape(versions)}.</footer>
</main>
{RATING.format(id=report["id"])}"""
    count = len(report["models"])
    return page(f"{count} {'model' if count == 1 else 'models'} compared", body, style, script)


def _html_table(report: Mapping[str, Any]) -> str:
    """The table between two marks, by which `rewrite_tables` finds it."""
    names = "".join(f'<th scope="col">{escape(model["name"])}</th>' for model in report["models"])
    groups, meanings = "", ""
    for group, rows in measures.rows([model["scores"] for model in report["models"]]).items():
        lines = ""
        for measure, cells in rows:
            texts = "".join(f"<td{' class=best' * cell.best}>{escape(cell.text)}</td>" for cell in cells)
            lines += f'<tr><th scope="row">{measure.label}</th>{texts}</tr>'
            meanings += f"<dt>{measure.label}</dt><dd>{measure.meaning}</dd>" if measure.meaning else ""
        span = f'<td colspan="{len(report["models"])}"></td>'
        groups += f'<tbody><tr><th scope="rowgroup" class="group">{group}</th>{span}</tr>{lines}</tbody>'
    failed = "".join(
        f'<p class="failed"><b>{escape(name)}</b> failed: {escape(why)}</p>' for name, why in report["failed"].items()
    )
    return f"""{TABLE_STARTS}
<div class="scroll" role="region" aria-label="Scores" tabindex="0">
<table><thead><tr><th></th>{names}</tr></thead>{groups}</table></div>
{failed}<details><summary>What the rows mean</summary><dl>{meanings}</dl></details>
{TABLE_ENDS}"""


def _given_away(model: Mapping[str, Any]) -> str:
    """What a model gives away of the training captions, in whole sentences."""
    found, name = model["privacy"], escape(model["name"])
    if found is None:
        return f"<p><b>{name}</b>: the data has no training split, so what its captions give away is not known.</p>"
    contacts = "".join(f"<li>{escape(e['contact'])} in: {escape(e['caption'])}</li>" for e in found["contacts"])
    canaries = "".join(
        f"<li>{escape(canary['sentence'])}: {_told(canary)}, exposure {canary['exposure']:.2f} bits "
        f"(rank {canary['rank']} of {canary['of']})</li>"
        for canary in found["canaries"]
    )
    copy = found["copy"]
    return f"""<p><b>{name}</b> writes {"these" if contacts else "no"} handles, phone numbers or e-mail addresses of the
training captions.</p><ul>{contacts}</ul>
<p>Its longest copied run has {copy["words"]} words: “{escape(copy["text"])}”, in</p><dl><dt>its caption</dt>
<dd>{escape(copy["caption"])}</dd><dt>the training caption</dt><dd>{escape(copy["training_caption"])}</dd></dl>
<p>{"Canaries planted in training:" if canaries else "No canaries were tried."}</p><ul>{canaries}</ul>"""


def _told(canary: Mapping[str, Any]) -> str:
    return "written in a caption" if canary["in_caption"] else "completed" if canary["completed"] else "not written"


def _card(report: Mapping[str, Any], number: int, picture: str | None) -> str:
    """One image with its captions. `data-order` is the order in which the blind mode shows them."""
    image, models = report["images"][number], report["models"]
    truth = "\n".join(image["captions"])
    captions = "".join(
        f'<div data-model="{escape(model["name"])}"><dt>{escape(model["name"])}</dt>'
        f'<dd dir="auto">{escape(model["captions"][number])}</dd></div>'
        for model in models
    )
    order = random.Random(f"{report['id']} {image['id']}").sample(range(len(models)), len(models))
    shuffled = f' data-order="{" ".join(map(str, order))}"' if picture else ""
    shown = f'<img src="{picture}" alt="">' if picture else '<div class="none">no picture</div>'
    return f"""<figure class="card" data-image="{escape(image["id"])}"{shuffled}>{shown}<figcaption><dl>
<div class="true"><dt>true caption</dt><dd dir="auto">{escape(truth)}</dd></div>{captions}</dl></figcaption></figure>
"""


RATING = """<section id="rate" data-report="{id}" aria-label="Rate the captions" hidden>
<p>How well does each caption suit the picture, as a post? 0 is not at all, 5 is perfectly.
<span class="keys quiet">Keys: 0 to 5 rate and move on, N and P turn the page.</span></p>
<p id="warning" hidden>This browser keeps nothing for this page: save before you close it.</p>
<div class="bar"><a class="button" href="#">Back</a><progress id="done" value="0"></progress>
<output id="count"></output><button class="button main" id="save">Save ratings.json</button></div>
<div class="rated"><div class="shown"><img id="picture" alt=""></div>
<div><form id="captions"></form>
<div class="steps"><button class="button" id="previous">Previous</button>
<button class="button" id="next">Next</button></div>
<p><button class="button" id="start-over">Start over</button></p></div></div>
</section>"""
