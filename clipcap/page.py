"""The look that all HTML pages of the project share: one file that fetches nothing, for dark and light screens."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcap.files import write_whole

if TYPE_CHECKING:
    from PIL import Image

STYLE = """
:root { color-scheme: light dark; --paper: #f6f6f3; --card: #fff; --ink: #1d2127; --quiet: #5f6670; --line: #dddcd6;
  --accent: #0067a3; --on-accent: #fff; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --card: #1e2228; --ink: #eceef0; --quiet: #a2abb5;
  --line: #363c44; --accent: #6cbcf2; --on-accent: #0d1a24; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
body > * { max-width: 1240px; margin: 0 auto; padding: 0 16px; }
h1 { font-size: 1.7rem; line-height: 1.2; padding-top: 28px; margin-bottom: 16px; overflow-wrap: anywhere; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 280px), 1fr)); gap: 20px;
  padding-bottom: 48px; }
.card { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 12px; overflow: hidden; }
.card img { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: var(--line); }
.card figcaption { padding: 12px 16px 16px; }
dl { margin: 0; } dt { color: var(--quiet); font-size: .8rem; margin-top: 8px; overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; white-space: pre-line; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
"""

# The page may run its own inline script and show its own pictures, but fetch nothing.
POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def escape(text: str, quote: bool = True) -> str:
    """A text for HTML. A carriage return stays one: HTML would read a line feed, also in the name of a file."""
    return html.escape(text, quote).replace("\r", "&#13;")


def page(title: str, body: str, style: str = "", script: str = "") -> str:
    """A complete document around `body` (HTML, already escaped). `title` is plain text and becomes the heading."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
{f"<script>{script}</script>" if script else ""}
</body>
</html>
"""


def picture_uri(image: str | Path | bytes | Image.Image, longest: int = 320) -> str:
    """A picture (path, encoded bytes or PIL image) as a JPEG data URI, its longest side at most `longest` pixels.

    Raises:
        UnreadableImage: it cannot be used.
    """
    from clipcap.clip.images import open_image

    return f"data:image/jpeg;base64,{base64.b64encode(small_jpeg(open_image(image, longest), longest)).decode()}"


def small_jpeg(image: Image.Image, longest: int) -> bytes:
    """An upright picture as a JPEG without metadata, its longest side at most `longest` pixels."""
    image = image.convert("RGB")
    image.thumbnail((longest, longest))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, exif=b"", comment=b"")
    return buffer.getvalue()


def picture_page(rows: Iterable[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """Write one self-contained HTML page that shows each picture with its captions.

    Args:
        rows: `{"image": path | PIL image | JPEG bytes, "captions": {who: caption, ...}}`; all text is escaped.
        path: the file to write.
        title: the heading.
    """
    content = page(title, f'<main class="pictures">{"".join(map(_card, rows))}</main>')
    write_whole(Path(path), content.encode())


def _card(row: Mapping[str, Any]) -> str:
    image: str | Path | bytes | Image.Image = row["image"]
    captions = "".join(f"<dt>{escape(who)}</dt><dd>{escape(text)}</dd>" for who, text in row["captions"].items())
    picture = f'<img src="{picture_uri(image)}" alt="">'
    return f'<figure class="card">{picture}<figcaption><dl>{captions}</dl></figcaption></figure>'
