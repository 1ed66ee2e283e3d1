"""The tensors of a TorchScript archive, as OpenAI publishes CLIP, read without running any of its code.

`torch.jit.load` runs what the archive's own classes do when they are loaded, and that may write files. Here the archive
is a zip file that holds a pickle of modules (`data.pkl`), the numbers of each tensor (`data/0`, `data/1`, ...), and the
source of the modules' classes, of which only the lists of parameters and buffers are read, as text.
"""

from __future__ import annotations

import io
import pickle
import pickletools
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
MOST_SOURCE = 10_000_000  # bytes of the source of all classes; it is compressed, and could be endless
MOST_MODULES = 100_000
PICKLES = 5  # that a file of PyTorch before 1.6 begins with; the numbers of its tensors follow
# What PyTorch's reader calls for a pickle, and what needs more memory than the pickle has bytes: any number of zeros,
# texts that double with each call, a tensor of one repeated number, written out. No file of weights names any of them.
GROWING = {
    *("builtins bytearray", "__builtin__ bytearray", "_codecs encode"),
    *(f"torch._utils _rebuild_device_tensor_from_{kind}" for kind in ("numpy", "cpu_tensor")),
}
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
    """Look at a file of `torch.save` before PyTorch reads it, which a small one could make fill the memory.

    Raises:
        ValueError: a member of the zip file is compressed.
        pickle.UnpicklingError: see `check_pickle`.
    """
    with file.open("rb") if isinstance(file, Path) else nullcontext(file) as opened:
        zipped = opened.read(4) == b"PK\3\4"  # what makes it a zip file for PyTorch
        size = opened.seek(0, 2)
        opened.seek(0)
        if zipped:
            with zipfile.ZipFile(opened) as archive:
                for member in archive.infolist():
                    _refuse_compressed(member)
                    if member.filename.lower().endswith("data.pkl"):  # PyTorch takes it in capitals too
                        check_pickle(io.BytesIO(archive.read(member)))
        else:
            for _ in range(PICKLES):
                check_pickle(opened)
                if opened.tell() == size:  # it is none of PyTorch's, which says so
                    break
        opened.seek(0)


def check_pickle(stream: BinaryIO) -> None:
    """Go through the next pickle of a stream without running it; the stream then stands behind it.

    Raises:
        pickle.UnpicklingError: it is no pickle, or one of a few bytes that could fill the memory.
        EOFError: it ends too soon.
    """
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if opcode.name == "GLOBAL" and argument in GROWING:
                raise pickle.UnpicklingError(f"it calls {argument}")
            if opcode.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > count:  # a list of twice that length
                raise pickle.UnpicklingError(f"it numbers its parts from {argument}")
    except ValueError as error:
        if "exhausted" in str(error):
            raise EOFError("it ends too soon") from None
        raise pickle.UnpicklingError(f"it is no pickle ({error})") from None


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
        sources = _Sources(archive, root)
        for number, (path, module) in enumerate(_modules(model)):
            if number > MOST_MODULES:
                raise ValueError(f"the archive holds more than {MOST_MODULES} modules")
            for name in sources.state_names(module):
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
        check_pickle(stream := io.BytesIO(_stored(archive, f"{root}data.pkl")))
        stream.seek(0)
        super().__init__(stream)
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


class _Sources:
    """The sources of the modules' classes, each read once."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self.archive, self.root, self.left = archive, root, MOST_SOURCE
        self.existing = set(archive.namelist())
        self.read: dict[str, dict[str, list[str]]] = {}  # names of parameters and buffers by class, by source

    def state_names(self, module: _Module) -> list[str]:
        """The names of a module's parameters and buffers; other tensors are no weights."""
        path, _, name = module.kind.rpartition(".")
        source = f"{self.root}code/{path.replace('.', '/')}.py"
        if source not in self.read:
            self.read[source] = self._declared(source) if source in self.existing else {}
        return self.read[source].get(name, [])

    def _declared(self, source: str) -> dict[str, list[str]]:
        with self.archive.open(source) as file:
            text = file.read(self.left + 1)
        self.left -= len(text)
        if self.left < 0:
            raise ValueError(f"the classes of the archive have more than {MOST_SOURCE} bytes of source")
        declared: dict[str, list[str]] = {}
        for name, parameters, buffers in CLASS.findall(text.decode()):
            declared.setdefault(name, []).extend(re.findall(r'"(\w+)"', f"{parameters} {buffers}"))
        return declared
