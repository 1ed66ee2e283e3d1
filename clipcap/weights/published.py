"""Published weights by name: where they can be downloaded, and where they are kept afterwards."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from clipcap.errors import UserError, first_line
from clipcap.files import write_whole
from clipcap.weights import convert
from clipcap.weights.folder import TENSORS
from clipcap.weights.format import build, read, sha256
from clipcap.weights.hub import PREFIX, download, find_on_hub
from clipcap.world.shipped import LITERAL


@dataclass(frozen=True)
class Published:
    """A published file.

    Attributes:
        file: its name in the cache.
        drive_id: its id on Google Drive.
        mirror: a repository on the hub that somebody has put it into; None for none.
        clip_dim, mapping: what it must be a model of; a mirror may hold another.
        sha256: where its authors publish one.
    """

    file: str
    drive_id: str
    mirror: str | None = None
    clip_dim: int = 512
    mapping: str = "mlp"
    sha256: str | None = None


WEIGHTS = {
    "coco": Published(  # MLP, ViT-B/32, trained on COCO
        file="coco_weights.pt",
        drive_id="1IdaBtMSvtyzF0ByVaBHtvM0JYSXRExRX",
        mirror="akhaliq/CLIP-prefix-captioning-COCO-weights",
    ),
    "conceptual": Published(  # MLP, ViT-B/32, trained on Conceptual Captions
        file="conceptual_weights.pt",
        drive_id="14pXWwB4Zm82rsDdvbGguLfx9F8aM7ovT",
        mirror="OpenShape/clipcap-cc",
    ),
    "coco-transformer": Published(  # transformer, RN50x4, trained on COCO
        file="transformer_coco_weights.pt",
        drive_id="1GYPToCqFREwi285wPLhuVExlz7DDUDfJ",
        clip_dim=640,
        mapping="transformer",
    ),
}
SILENCE = 10  # seconds without a byte, after which Google Drive is given up
INSTAGRAM_FOLDER = "1z68jSlSbBZ6mHuqmcpcO3-aEKLUKb72X"
INSTAGRAM = {f"instagram-{name}": f"{name}_weights.pt" for name in ("base", "frozen", "prompted", "lora_4")}


def names() -> list[str]:
    """Every name that stands for a file of weights."""
    return [*WEIGHTS, *INSTAGRAM, "demo"]


def cache_folder() -> Path:
    """Where downloaded weights are kept: $CLIPCAP_CACHE, or `clipcap` in the user's cache folder. Raises UserError."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    place = os.environ.get("CLIPCAP_CACHE") or f"{cache}/clipcap"
    try:
        return Path(place).expanduser()
    except RuntimeError:
        raise UserError(
            f"no home folder is known for {place!r}: say with CLIPCAP_CACHE where weights are kept"
        ) from None


def resolve_weights(name_or_path: str | Path) -> Path:
    """The local file behind a path, a published name or `hf:owner/name`, downloaded when it is not there yet.

    A folder that holds a model as the hub keeps one stands for its tensors.

    Raises:
        UserError: no such file or name, or the download failed; the message says which file to put where.
    """
    name = str(name_or_path)
    path = Path(name)
    if path.is_file():
        return path
    if (path / TENSORS).is_file():
        return path / TENSORS
    if name.startswith(PREFIX):
        return find_on_hub(name)
    if name == "demo":
        return LITERAL
    if name not in names():
        kind = "a folder, not a file of weights" if path.is_dir() else "neither a file nor a known name"
        raise UserError(f"weights {name!r} are {kind}; the known names are {', '.join(names())}, and hf:owner/name")
    file = WEIGHTS[name].file if name in WEIGHTS else INSTAGRAM[name]
    target = cache_folder() / file
    if target.is_file():
        _check_kept(name, target)
    else:
        _download(name, target)
    return target


def _check_kept(name: str, target: Path) -> None:
    """Raise a UserError unless a file in the cache is the one that was first used, and one of weights."""
    note = _note_of(target)
    if not note.is_file():
        try:
            read(target)
        except UserError as error:
            raise UserError(f"{error}: {target} is not {name!r}; delete it, then {_by_hand(name, target)}") from None
        _record(name, target, note)
    elif sha256(target) != note.read_text(encoding="utf-8").split(" ")[0]:
        raise UserError(
            f"{target} is not the file that was first used as {name!r}, whose SHA-256 {note} holds: "
            "if you replaced it, delete that note; otherwise delete both, and it is downloaded again"
        )


def _record(name: str, file: Path, note: Path) -> None:
    """Write the SHA-256 of a file into a note that `sha256sum -c` reads too. Raises UserError if it is a wrong one."""
    found, wanted = sha256(file), WEIGHTS[name].sha256 if name in WEIGHTS else None
    if wanted not in (None, found):
        raise UserError(f"it has SHA-256 {found}, and its authors published {wanted}")
    with suppress(OSError):  # a cache that others share may be read-only
        write_whole(note, f"{found}  {note.stem}\n".encode())


def _note_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _by_hand(name: str, target: Path) -> str:
    drive_id = WEIGHTS[name].drive_id if name in WEIGHTS else INSTAGRAM_FOLDER
    kind = "file/d" if name in WEIGHTS else "drive/folders"
    return f"download {target.name} from https://drive.google.com/{kind}/{drive_id} and save it as {target}"


def _download(name: str, target: Path) -> None:
    """Download a file of weights, from the hub or else from Google Drive; it gets its name only when it is whole.

    Raises:
        UserError: it comes from neither; the message says why, and how to get it by hand.
    """
    mirror = WEIGHTS[name].mirror if name in WEIGHTS else None
    refused = []
    for place, fetch in ((mirror, _from_mirror), ("Google Drive", _from_drive)):
        if place is None:
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # A folder of its own, because the clients leave unfinished files beside the one that they write.
            with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
                partial = fetch(name, Path(folder))
                _check_downloaded(partial)
                if place == mirror:
                    _check_model(name, partial)
                _record(name, partial, _note_of(target))
                partial.replace(target)
            return
        except Exception as error:  # gdown raises many kinds: no network, no permission, quota exceeded
            refused.append(f"{place}: {first_line(error)}" if mirror else first_line(error))
            if place == mirror:
                print(f"note: {name!r} does not come from {refused[-1]}; trying Google Drive", file=sys.stderr)
    raise UserError(f"weights {name!r} could not be downloaded ({'; '.join(refused)}); {_by_hand(name, target)}")


def _from_mirror(name: str, folder: Path) -> Path:
    wanted = WEIGHTS[name]
    return download(wanted.mirror or "", wanted.file, folder)


def _check_model(name: str, file: Path) -> None:
    """Raise a UserError unless a file holds the tensors of the model that the name stands for, and no others."""
    wanted = WEIGHTS[name]
    tensors = convert.without_old_buffers(read(file))
    config = convert.infer_config(tensors)
    build(config, tensors)
    if (config.clip_dim, config.mapping) != (wanted.clip_dim, wanted.mapping):
        raise UserError(f"it holds another model, {config.mapping} for embeddings of {config.clip_dim} numbers")


def _from_drive(name: str, folder: Path) -> Path:
    try:
        import gdown
    except ImportError:
        raise UserError("this needs `pip install gdown`") from None
    file = folder / "weights.pt"
    gdown.download(id=_drive_id(name, gdown), output=str(file), timeout=SILENCE)
    return file


def _drive_id(name: str, gdown: ModuleType) -> str:
    """The id of a file on Google Drive; those of the folder are found by their names. Raises UserError."""
    if name in WEIGHTS:
        return WEIGHTS[name].drive_id
    listed = gdown.download_folder(id=INSTAGRAM_FOLDER, skip_download=True, quiet=True, timeout=SILENCE) or []
    # With `skip_download` gdown lists entries with id and path; otherwise it would give names of files.
    ids = {Path(entry.path).name: entry.id for entry in listed if not isinstance(entry, str)}
    wanted = INSTAGRAM[name].lower()
    strategy = wanted.removesuffix("weights.pt")
    same = [file for file in ids if file.lower() == wanted]  # Base_weights.pt
    alike = [file for file in ids if file.lower().startswith(strategy) and file.lower().endswith(".pt")]
    found = same or alike  # base_weights_final.pt
    if len(found) != 1:
        raise UserError(
            f"the folder on Google Drive lists {'several files like' if found else 'no'} {INSTAGRAM[name]}, but "
            f"{', '.join(sorted(ids)) or 'nothing at all'}"
        )
    return ids[found[0]]


def _check_downloaded(file: Path) -> None:
    """Raise a UserError unless this is a whole file of weights."""
    if not file.is_file() or not file.stat().st_size:
        raise UserError("nothing came")
    with file.open("rb") as stream:
        begins = stream.read(200).lstrip().lower()
    if begins.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError("a web page came in place of the file, as after too many downloads in a day")
    try:
        read(file)
    except UserError:
        raise UserError(f"what came is incomplete or not a file of weights, {file.stat().st_size:,} bytes") from None
