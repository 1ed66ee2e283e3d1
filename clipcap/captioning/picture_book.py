"""Captioned pictures as one self-contained HTML page: thumbnails, captions, and a button to copy each caption."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import TextIO

from clipcap.captioning.rows import Row, Writer, read_name, written_name
from clipcap.clip.images import UnreadableImage
from clipcap.errors import UserError
from clipcap.page import escape, page, picture_uri

STYLE = """
.pictures { align-items: start; }
.card ol { list-style: none; margin: 0; padding: 0; }
.card li { display: flex; align-items: start; gap: 8px; }
.card li + li { border-top: 1px solid var(--line); margin-top: 8px; padding-top: 8px; }
.card li span { flex: 1; min-width: 0; padding: 10px 0; overflow-wrap: anywhere; white-space: pre-line; }
.card button { flex: none; min-width: 72px; min-height: 44px; border: 1px solid var(--line); border-radius: 10px;
  background: none; color: var(--accent); font: inherit; font-size: .875rem; cursor: pointer; }
.card button:hover { border-color: var(--accent); }
.card p { margin: 8px 0 0; color: var(--quiet); font-size: .8rem; overflow-wrap: anywhere; }
.card .none { display: grid; place-items: center; aspect-ratio: 4 / 3; padding: 16px; background: var(--line);
  color: var(--quiet); text-align: center; overflow-wrap: anywhere; }
"""

SCRIPT = """
"use strict";
function select(text) { // without access to the clipboard, select the caption, so that one key press copies it
  getSelection().removeAllRanges();
  getSelection().selectAllChildren(text);
  return document.execCommand("copy");
}
document.addEventListener("click", async ({ target }) => {
  if (target.tagName !== "BUTTON") return;
  const text = target.previousElementSibling;
  let copied = true;
  try { await navigator.clipboard.writeText(text.textContent); } catch { copied = select(text); }
  target.textContent = copied ? "Copied" : "Selected";
  setTimeout(() => { target.textContent = "Copy"; }, 2000);
});
"""


class PictureBook(Writer):
    """Writes a header, one line per picture, and a footer. Browsers also show the page while it is unfinished."""

    MARK = "<!-- picture book -->"
    CARD = re.compile(r'<figure class="card( failed)?" data-image="([^"]*)" .*</figure>\n')

    def header(self) -> str:
        """The page up to its first card."""
        return self._parts()[0]

    def footer(self) -> str:
        """The page from behind its last card."""
        return self._parts()[1]

    def _parts(self) -> tuple[str, str]:
        cards = "<!-- cards -->"
        body = f'{self.MARK}\n<main class="pictures">\n{cards}</main>'
        header, footer = page("Captions", body, STYLE, SCRIPT).split(cards)
        return header, footer

    def format(self, row: Row) -> str:
        """A picture's card, in one line of HTML."""
        failed = " failed" * (row.error is not None)
        button = '<button type="button">Copy</button>'
        captions = "".join(f'<li><span dir="auto">{escape(caption)}</span>{button}</li>' for caption in row.captions)
        name = written_name(row.image)
        notes = [row.note, f"literal caption: {row.literal}" if row.literal else "", Path(name).name]
        card = (
            f'<figure class="card{failed}" data-image="{escape(name)}" title="{escape(name)}">'
            f"{self._picture(row)}<figcaption>"
            + (f"<ol>{captions}</ol>" if captions else "")
            + "".join(f"<p>{escape(note)}</p>" for note in notes if note)
            + "</figcaption></figure>"
        )
        return card.replace("\n", "&#10;") + "\n"  # `read` expects one line per picture

    def read(self, file: TextIO) -> Iterator[tuple[str, str | None, bool]]:
        """The cards of an earlier run. A last line that a crash cut short does not match and is dropped."""
        marked = False
        for line in file:
            marked = marked or line.startswith(self.MARK)
            if card := self.CARD.fullmatch(line):
                yield line, read_name(unescape(card[2])), bool(card[1])
            elif "<figure" in line and line.endswith("\n"):  # an editor has laid out the page anew
                raise UserError(
                    f"{str(self.path)!r} has a picture that is no longer one line, as it was written; "
                    "choose another output"
                )
        if not marked:
            raise UserError(f"{str(self.path)!r} is not a picture book; choose another output")

    def _picture(self, row: Row) -> str:
        reason = row.error
        if reason is None:
            try:
                return f'<img alt="" loading="lazy" src="{picture_uri(row.image, 400)}">'
            except UnreadableImage as error:  # the file has disappeared since it was captioned: keep the caption
                reason = error.reason
        return f'<div class="none">{escape(reason)}</div>'
