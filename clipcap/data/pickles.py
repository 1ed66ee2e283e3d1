"""The pickles of embeddings that ClipCap's own scripts write, read without running any code in them.

Source of the format: github.com/rmokady/CLIP_prefix_caption, `parse_coco.py` and `parse_conceptual.py`.

Shapes: N embeddings, C CLIP width.
"""

from __future__ import annotations

import io
import pickle
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcap.clip.names import CLIP_OF_CLIPCAP, WIDTHS, file_name
from clipcap.data.examples import Example, Source
from clipcap.data.reading import legible, number, read_captions, short
from clipcap.errors import UserError

if TYPE_CHECKING:
    import numpy as np

MOST_CAPTIONS = 10_000_000
UNFOLDED = 100  # times its size is how much text a file may hold: a pickle can name one text, or one list, many times


def clipcap(path: str, clip: str | None = None) -> Source:
    """Examples that bring their embeddings, from one pickle.

    It holds {"clip_embedding": tensor (N, C), "captions": [{"image_id", "caption", "clip_embedding": row}, ...]}.
    That of `parse_coco.py` has a row for each caption; those of one image are kept together by its image_id.

    Args:
        path: the pickle.
        clip: the CLIP model that made the embeddings; None: judged by the file's name, or else by C.

    Raises:
        UserError: the file is not such a pickle or holds code, or its CLIP cannot be determined or has another width.
    """
    file = Path(path)
    content = read_pickle(file)
    embeddings, captions = _parts(content, file)
    of_validation = _validation_captions(captions, len(embeddings))
    if of_validation:
        captions = _mended(captions, of_validation)
    texts: dict[int, list[str]] = {}
    ids: dict[int, str] = {}
    number_of_captions, left = 0, UNFOLDED * file.stat().st_size
    for place, entry in enumerate(captions):
        row = entry.get("clip_embedding", place) if isinstance(entry, dict) else None
        if type(row) is not int or not 0 <= row < len(embeddings) or "caption" not in entry:  # True is an int too
            raise UserError(
                f"{path!r}: caption {place} has no text or points at no embedding ({len(embeddings)} exist)"
            )
        where = f"{path!r}, caption {place}"
        several = entry["caption"] if isinstance(entry["caption"], list | tuple) else [entry["caption"]]
        number_of_captions += len(several)
        left -= sum(len(text) if isinstance(text, str) else 1 for text in (*several, entry.get("image_id")))
        if number_of_captions > MOST_CAPTIONS or left < 0:
            raise UserError(f"{path!r} names the same captions again and again, more than can be read; write it anew")
        texts.setdefault(row, []).extend(read_captions(entry["caption"], where))
        ids.setdefault(row, _image_id(entry.get("image_id", row), where))
    examples = [
        Example(
            ids[row],
            tuple(captions),
            split="validation" if row < of_validation else "train",
            clip_embedding=embeddings[row],
            origin=file,
        )
        for row, captions in texts.items()
    ]
    model = clip or _guess(file, embeddings.shape[1])
    if WIDTHS.get(model, embeddings.shape[1]) != embeddings.shape[1]:
        raise UserError(
            f"{path!r} holds embeddings {embeddings.shape[1]} wide, {model} makes {WIDTHS[model]}; check --clip"
        )
    return Source({"name": "clipcap", "path": str(file.resolve())}, examples, model)


def _validation_captions(captions: list[Any], embeddings: int) -> int:
    """How many captions of validation come first in a training file of `parse_conceptual.py`; 0 for any other file.

    Its embeddings are those of validation and then those for training, and so are its captions, but the training
    captions count their rows from 0 again and so point at other images.
    """
    if len(captions) != embeddings:
        return 0
    rows = [entry.get("clip_embedding") if isinstance(entry, dict) else None for entry in captions]
    first = rows.index(0, 1) if 0 in rows[1:] else 0
    if not first or rows != [*range(first), *range(len(rows) - first)]:
        return 0
    plain = all(isinstance(entry.get(field), str) for entry in captions for field in ("image_id", "caption"))
    numbered = plain and all(re.fullmatch(r"\d{8}", captions[place]["image_id"]) for place in (0, first))
    return first if numbered else 0


def _mended(captions: list[dict[str, Any]], of_validation: int) -> list[dict[str, Any]]:
    """The captions of such a file, each with the row of its own embedding and an image_id that no other image has.

    The images of validation were downloaded for training too, under the same numbers: they are left out there.
    """
    kept = []
    seen = {(entry["image_id"], entry["caption"]) for entry in captions[:of_validation]}
    for row, entry in enumerate(captions):
        part = "val" if row < of_validation else "train"
        if part == "val" or (entry["image_id"], entry["caption"]) not in seen:
            kept.append(entry | {"clip_embedding": row, "image_id": f"{part}/{entry['image_id']}"})
    print(
        "the training captions of this file of parse_conceptual.py pointed at other images, and were mended: "
        f"{of_validation} captions of validation, {len(kept) - of_validation} for training",
        file=sys.stderr,
    )
    return kept


def _image_id(value: Any, where: str) -> str:
    if not isinstance(value, int | str):
        raise UserError(
            f"{where}, has an image_id that is neither a number nor a text but {short(type(value).__name__)}"
        )
    return legible(number(value, f"{where}: image_id") if isinstance(value, int) else value)


def read_pickle(file: Path) -> Any:
    """A pickle of tensors and plain containers. Raises UserError for anything else, before any of it could run."""
    from clipcap.clip.archive import check_pickle

    try:
        with file.open("rb") as stream:
            check_pickle(stream)
            stream.seek(0)
            return _Unpickler(stream).load()
    except OSError as error:
        raise UserError(f"{str(file)!r} cannot be read ({error.strerror}); check the path") from None
    except _HoldsCode as error:
        raise UserError(
            f"{str(file)!r} holds code ({error}), not only embeddings, and was not run; do not trust it"
        ) from None
    except Exception as error:  # a damaged pickle raises anything
        raise UserError(f"{str(file)!r} is not a complete pickle of embeddings ({type(error).__name__})") from None


class _HoldsCode(Exception):
    """The pickle names something that is neither a tensor nor a plain container."""


class _Unpickler(pickle.Unpickler):
    """Admits only what a pickled tensor is made of.

    The storage inside a pickled tensor is a torch.save file of its own; it is read safely too.
    """

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): _Tensor(),
            ("torch.storage", "_load_from_bytes"): _Storage(),
            ("collections", "OrderedDict"): _Dict(),
        }
        if (module, name) not in allowed:
            raise _HoldsCode(short(f"{module}.{name}")[1:-1])
        return allowed[module, name]


# What a pickle may call. Objects without attributes, since a pickle may set those of whatever it names.


class _Tensor:
    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        import torch

        return torch._utils._rebuild_tensor_v2(*arguments)


class _Storage:
    __slots__ = ()

    def __call__(self, data: bytes) -> Any:  # torch's own would run code
        import torch

        from clipcap.clip.archive import check_stored

        try:
            check_stored(file := io.BytesIO(data))
            return torch.load(file, weights_only=True)
        except pickle.UnpicklingError:
            raise _HoldsCode("inside a tensor") from None


class _Dict:
    __slots__ = ()

    def __call__(self, *items: Any) -> dict[Any, Any]:
        return dict(*items)


def _parts(content: Any, file: Path) -> tuple[np.ndarray, list[Any]]:
    """What the pickle holds -> float32 embeddings (N, C) and the list of captions."""
    import torch

    if not isinstance(content, dict) or not {"clip_embedding", "captions"} <= content.keys():
        raise UserError(f"{str(file)!r} is not ClipCap's embedding file: it lacks 'clip_embedding' and 'captions'")
    embeddings, captions = content["clip_embedding"], content["captions"]
    if (
        not isinstance(embeddings, torch.Tensor)
        or embeddings.dim() != 2
        or not isinstance(captions, list)
        or not captions
    ):
        raise UserError(
            f"{str(file)!r} is not ClipCap's embedding file: it needs a tensor (N, C) and a list of captions"
        )
    if embeddings.layout != torch.strided or embeddings.device.type != "cpu" or embeddings.is_neg():
        raise UserError(f"{str(file)!r} needs a plain tensor of embeddings; save them with .clone()")
    if not embeddings.is_floating_point() or not embeddings.shape[1]:
        raise UserError(f"{str(file)!r} needs embeddings of floating-point numbers, not {embeddings.dtype}")
    if embeddings.numel() * embeddings.element_size() > file.stat().st_size:  # its storage may be claimed as well
        raise UserError(f"{str(file)!r} claims more embeddings ({len(embeddings)}) than it holds")
    return embeddings.detach().float().numpy(), captions


def _guess(file: Path, width: int) -> str:
    """The CLIP by the file's name, or else by the embeddings' width.

    ClipCap names its files `oscar_split_ViT-B_32_train.pkl`, with "_" for the "/" in the model's name.
    """
    spelled = file_name(file.name.replace("_", "-")).lower()
    named = next((name for name in WIDTHS if file_name(name).lower() in spelled), None)
    model = named or CLIP_OF_CLIPCAP.get(width)
    if not model:
        raise UserError(
            f"which CLIP made the embeddings of {str(file)!r} ({width} wide) cannot be told; name it with --clip"
        )
    return model
