"""The tensors of a TorchScript archive, as OpenAI publishes CLIP, read without running any of its code.

`torch.jit.load` runs what the archive's own classes do when they are loaded, and that may write files. Here the archive
is a zip file that holds a pickle of modules (`data.pkl`), the numbers of each tensor (`data/0`, `data/1`, ...), and the
source of the modules' classes, of which only the lists of parameters and buffers are read, as text.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

STORAGES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}
MOST_SOURCE = 10_000_000  # bytes of one class's source; it is compressed, and could be endless
MOST_MODULES = 100_000
CLASS = re.compile(
    r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*)\]\n(?:  __buffers__ = \[(.*)\]\n)?", re.MULTILINE
)


def is_archive(file: Path) -> bool:
    """Whether this is a TorchScript archive and not a file that `torch.save` wrote."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())


def check_stored(file: Path | BinaryIO) -> None:
    """Raise a ValueError for a zip file with a compressed member, before PyTorch unfolds it; other files pass."""
    with file.open("rb") if isinstance(file, Path) else nullcontext(file) as opened:
        if opened.read(4) == b"PK\3\4":  # what makes it a zip file for PyTorch
            with zipfile.ZipFile(opened) as archive:
                for member in archive.infolist():
                    _refuse_compressed(member)
        opened.seek(0)


def read_archive(file: Path) -> dict[str, Tensor]:
    """What `torch.jit.load(file).state_dict()` gives, with all tensors on the CPU.

    Raises:
        ValueError: the archive holds something else than modules, tensors and plain containers.
        Exception: whatever a damaged zip file or pickle raises.
    """
    with zipfile.ZipFile(file) as archive:
        [pickled] = (name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name))
        root = pickled.removesuffix("data.pkl")
        model = _Unpickler(archive, root).load()
        if not isinstance(model, _Module):
            raise ValueError("the archive holds no model")
        kept = {}
        for number, (path, module) in enumerate(_modules(model)):
            if number > MOST_MODULES:
                raise ValueError(f"the archive holds more than {MOST_MODULES} modules")
            for name in _state_names(archive, root, module):
                tensor = module.attributes.get(name)
                if isinstance(tensor, Tensor):
                    kept[f"{path}{name}"] = tensor
    return kept


class _Module:
    """A module of the archive: which class it has, by name, and its attributes."""

    kind = ""

    def __setstate__(self, attributes: Any) -> None:
        if not isinstance(attributes, dict):
            raise ValueError("a module of the archive holds no attributes")
        self.attributes: dict[str, Any] = attributes


class _Unpickler(pickle.Unpickler):
    """Admits modules as plain objects, tensors and containers; everything else ends the reading."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(_stored(archive, f"{root}data.pkl")))
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return type(name, (_Module,), {"kind": f"{module}.{name}", "attributes": {}})
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        allowed = {
            ("torch._utils", "_rebuild_tensor_v2"): _Tensor(),
            ("collections", "OrderedDict"): dict,
            **{("torch.jit._pickle", f"build_{kind}list"): list for kind in ("int", "double", "bool", "tensor")},
            ("torch.jit._pickle", "restore_type_tag"): _Untagged(),
        }
        if (module, name) not in allowed:
            raise ValueError(f"the archive holds {module}.{name}, and only tensors are read")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        """The numbers of a storage, as a tensor of one dimension; the device that it was saved from is ignored."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not re.fullmatch(r"\d+", key, re.ASCII):
            raise ValueError("the archive holds a tensor of an unknown kind")
        if key not in self.storages:
            numbers = bytearray(_stored(self.archive, f"{self.root}data/{key}"))
            self.storages[key] = torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype)
        storage = self.storages[key]
        if storage.dtype != dtype or len(storage) != count:
            raise ValueError(f"tensor {key} of the archive has another size or type than announced")
        return storage


class _Tensor:
    """Makes a tensor. No function, since a pickle can give a function other defaults; this takes no attributes."""

    __slots__ = ()

    def __call__(self, storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
        return storage.as_strided(size, stride, offset)  # refuses to reach beyond the storage


class _Untagged:
    """Gives back the value of a tagged one; as `_Tensor`, it takes no attributes."""

    __slots__ = ()

    def __call__(self, value: Any, _: str) -> Any:
        return value


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a member that is stored as it is."""
    member = archive.getinfo(name)
    _refuse_compressed(member)
    return archive.read(member)


def _refuse_compressed(member: zipfile.ZipInfo) -> None:
    """Raise a ValueError for a member that could unfold to any size."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename[:200]!r} in the archive is compressed, which PyTorch never does")


def _modules(model: _Module) -> Iterator[tuple[str, _Module]]:
    """Every module with the path that its tensors' names begin with, a shared one once for each of its paths."""
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop()
        yield path, module
        if len(path) > 1000:
            raise ValueError("the modules of the archive are nested too deeply")
        children = [(name, child) for name, child in module.attributes.items() if isinstance(child, _Module)]
        waiting += [(f"{path}{name}.", child) for name, child in reversed(children)]


def _state_names(archive: zipfile.ZipFile, root: str, module: _Module) -> list[str]:
    """The names of a module's parameters and buffers, from the source of its class; other tensors are no weights."""
    *path, name = module.kind.split(".")
    source = f"{root}code/{'/'.join(path)}.py"
    if source not in archive.namelist():
        return []
    with archive.open(source) as file:
        text = file.read(MOST_SOURCE).decode()
    found = (match for match in CLASS.finditer(text) if match[1] == name)
    return [name for match in found for name in re.findall(r'"(\w+)"', f"{match[2]} {match[3] or ''}")]
