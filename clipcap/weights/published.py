"""Published weights by name: where they can be downloaded, and where they are kept afterwards."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from clipcap.errors import UserError, first_line
from clipcap.world.shipped import LITERAL


@dataclass(frozen=True)
class Published:
    """A file on Google Drive: its name, its id there, and what it holds."""

    file: str
    drive_id: str
    about: str


WEIGHTS = {
    "coco": Published("coco_weights.pt", "1IdaBtMSvtyzF0ByVaBHtvM0JYSXRExRX", "ClipCap, COCO, MLP, ViT-B/32"),
    "conceptual": Published(
        "conceptual_weights.pt", "14pXWwB4Zm82rsDdvbGguLfx9F8aM7ovT", "ClipCap, Conceptual Captions, MLP, ViT-B/32"
    ),
    "coco-transformer": Published(
        "transformer_coco_weights.pt", "1GYPToCqFREwi285wPLhuVExlz7DDUDfJ", "ClipCap, COCO, transformer, RN50x4"
    ),
}
INSTAGRAM_FOLDER = "1z68jSlSbBZ6mHuqmcpcO3-aEKLUKb72X"
INSTAGRAM = {f"instagram-{name}": f"{name}_weights.pt" for name in ("base", "frozen", "prompted", "lora_4")}


def names() -> list[str]:
    """Every name that stands for a file of weights."""
    return [*WEIGHTS, *INSTAGRAM, "demo"]


def cache_folder() -> Path:
    """Where downloaded weights are kept: $CLIPCAP_CACHE, or `clipcap` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "clipcap"
    return Path(os.environ.get("CLIPCAP_CACHE", default))


def resolve_weights(name_or_path: str | Path) -> Path:
    """The local file behind a path or a published name, downloaded to the cache folder when it is not there yet.

    Raises:
        UserError: no such file or name, or the download failed; the message says which file to put where.
    """
    name = str(name_or_path)
    path = Path(name)
    if path.is_file():
        return path
    if name == "demo":
        return LITERAL
    if name not in names():
        kind = "a folder, not a file of weights" if path.is_dir() else "neither a file nor a known name"
        raise UserError(f"weights {name!r} are {kind}; the known names are {', '.join(names())}")
    file = WEIGHTS[name].file if name in WEIGHTS else INSTAGRAM[name]
    target = cache_folder() / file
    if not target.is_file():
        _download(name, target)
    return target


def _download(name: str, target: Path) -> None:
    drive_id = WEIGHTS[name].drive_id if name in WEIGHTS else INSTAGRAM_FOLDER
    kind = "file/d" if name in WEIGHTS else "drive/folders"
    by_hand = f"download {target.name} from https://drive.google.com/{kind}/{drive_id} and save it as {target}"
    try:
        import gdown
    except ImportError:
        raise UserError(f"weights {name!r} need `pip install gdown` to be downloaded; or {by_hand}") from None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".part")
        if name not in WEIGHTS:
            listed = gdown.download_folder(id=drive_id, skip_download=True, quiet=True) or []
            # With `skip_download` gdown lists entries with id and path; otherwise it would give names of files.
            entries = (entry for entry in listed if not isinstance(entry, str))
            drive_id = next(entry.id for entry in entries if Path(entry.path).name == target.name)
        gdown.download(id=drive_id, output=str(partial))
        partial.replace(target)
    except Exception as error:  # gdown raises many kinds: no network, no permission, quota exceeded
        reason = first_line(error)
        raise UserError(f"weights {name!r} could not be downloaded ({reason}); {by_hand}") from None
