"""Show what fine-tuning has changed: captions of held-out pictures before and after it, judged by their words.

python -m demo.show
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipcap.cli.status import run
from clipcap.errors import UserError
from clipcap.world.judge import shares
from clipcap.world.scenes import scenes
from clipcap.world.shipped import CAPTIONS, FINE_TUNED, PAGE, PHOTOS
from demo.draw import photo

SHOWN = 6


def read_captions(path: str) -> dict[str, str]:
    """The captions that predict.py wrote: name of the picture without its ending -> caption. Raises UserError."""
    try:
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        return {Path(row["image"]).stem: row["caption"] for row in rows if "caption" in row}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"no captions in {path} ({error}): run `make demo`, which writes them with predict.py"
        ) from None


def main(argv: Sequence[str] | None = None) -> None:
    """Print some captions and the shares that are right, and write the page. Takes no arguments. Raises UserError."""
    from clipcap.captioning.captioner import Captioner
    from clipcap.clip.images import UnreadableImage
    from clipcap.page import picture_page

    if argv:
        raise UserError("this takes no arguments: python -m demo.show")
    after = read_captions(CAPTIONS)
    pictured = [scene for scene in scenes("test") if scene.image_id in after]
    if not pictured:
        raise UserError(f"{CAPTIONS} holds no caption of the demo's pictures: run `make demo`")
    pictures = [photo(PHOTOS, scene) for scene in pictured]
    try:
        before = dict(zip((scene.image_id for scene in pictured), Captioner.load("demo")(pictures), strict=True))
    except UnreadableImage as error:
        raise UserError(f"{error}: run `make demo`, which draws the pictures") from None

    shown = pictured[:SHOWN]
    print(
        f"\n{len(shown)} of {len(pictured)} pictures whose subject, colour and setting were not trained on together:\n"
    )
    for scene in shown:
        print(f"{photo(PHOTOS, scene)}\n  before  {before[scene.image_id]}\n  after   {after[scene.image_id]}\n")
    for name, captions in (("before", before), ("after", after)):
        print(f"{name:<8}{shares([captions[scene.image_id] for scene in pictured], pictured)}")

    told = {"before fine-tuning": before, "after fine-tuning": after}
    rows: list[dict[str, Any]] = [
        {"image": path, "captions": {name: captions[scene.image_id] for name, captions in told.items()}}
        for path, scene in zip(pictures, pictured, strict=True)
    ]
    picture_page(rows, PAGE, "The demo world, before and after fine-tuning")
    weights = Path(FINE_TUNED)
    print(f"\nweights  {weights}\nlosses   {weights.parent / 'loss.png'}\npage     {PAGE}")


if __name__ == "__main__":
    run(main)
