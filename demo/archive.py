"""Write the export that Instagram would make for one person of the demo world, to learn her voice from.

    python -m demo.archive export.zip 200
    python load_data.py --source instagram-archive export.zip --output my_posts --clip demo
    python lora_finetuning.py --data my_posts --init demo --freeze-mapping --learning-rate 3e-3
    python -m demo.draw photos
    python predict.py --weights runs/lora_4/lora_4_weights.pt photos

Every tenth post has two pictures, and text is encoded as Instagram encodes it. The learning rate is that of the demo.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipcap.cli.progress import ProgressBar
from clipcap.cli.status import run
from clipcap.errors import UserError, at_least
from clipcap.files import whole_file
from clipcap.world.author import own_post
from clipcap.world.scenes import Scene, scenes
from clipcap.world.shipped import ARCHIVE

POSTS = 200
FIRST = 1_600_000_000  # when she began to post, in seconds since 1970
DAY = 86_400


def write_archive(file: Path, posted: Iterable[Scene]) -> None:
    """Write the posts of these scenes to a zip file laid out as Instagram's exports are. Raises OSError."""
    with whole_file(file) as stream, zipfile.ZipFile(stream, "w") as archive:
        posts = [_post(archive, scene, FIRST + DAY * number, number) for number, scene in enumerate(posted)]
        archive.writestr("your_instagram_activity/media/posts_1.json", json.dumps(posts, indent=2))


def _post(archive: zipfile.ZipFile, scene: Scene, time: int, number: int) -> dict[str, Any]:
    shown = [scene, replace(scene, index=scene.index + 10**6)] if number % 10 == 9 else [scene]
    media = []
    for picture in shown:
        name = f"media/posts/{number:05d}_{len(media)}.jpg"
        content = io.BytesIO()
        picture.draw().save(content, "JPEG", quality=92)
        archive.writestr(name, content.getvalue())
        media.append({"uri": name, "creation_timestamp": time, "title": ""})
    text = own_post(scene).encode().decode("latin-1")
    if len(media) > 1:
        return {"media": media, "title": text, "creation_timestamp": time}
    return {"media": [media[0] | {"title": text}]}


def main(argv: Sequence[str] | None = None) -> None:
    """Write the archive that is named, or that of the demo. Raises UserError."""
    words = [*(argv or ())]
    if len(words) > 2 or any(word.startswith("-") for word in words):
        raise UserError("give a file and a number of posts, or neither: python -m demo.archive export.zip 200")
    file = Path(words[0] if words else ARCHIVE)
    try:
        count = int(words[1]) if words[1:] else POSTS
    except ValueError:
        raise UserError(f"the number of posts must be a number, not {words[1]!r}") from None
    at_least(1, posts=count)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_archive(file, ProgressBar(scenes("train", count), "drawing", count, unit="post"))
    except OSError as error:
        raise UserError(f"{str(file)!r} cannot be written ({error.strerror}): give another file") from None
    print(file)


if __name__ == "__main__":
    run(main)
