"""Write the held-out pictures of the demo world as PNG files, for predict.py to caption.

python -m demo.draw [FOLDER]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipcap.cli.progress import ProgressBar
from clipcap.cli.status import run
from clipcap.errors import UserError
from clipcap.world.scenes import SPLITS, Scene, scenes
from clipcap.world.shipped import PHOTOS


def photo(folder: str | Path, scene: Scene) -> Path:
    """The file of a scene's picture; its name gives away neither subject nor colour."""
    return Path(folder) / f"{scene.image_id}.png"


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the pictures into the folder that is named, or into that of the demo. Raises UserError."""
    words = [*(argv or ())]
    if len(words) > 1 or any(word.startswith("-") for word in words):
        raise UserError("give a folder or nothing: python -m demo.draw photos")
    folder = Path(words[0] if words else PHOTOS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for scene in ProgressBar(scenes("test"), "drawing", SPLITS["test"], unit="picture"):
            scene.draw().save(photo(folder, scene))
    except OSError as error:
        raise UserError(f"the pictures cannot be written to {folder} ({error.strerror}): give another folder") from None
    print(folder)


if __name__ == "__main__":
    run(main)
