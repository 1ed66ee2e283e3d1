"""Sources of strangers: whatever their files hold, one sentence names the file and the row, or every example is usable.

Usable means: it can be cleaned, split, fingerprinted and written. All that is known before the first embedding is made.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import compress, soon

import load_data
from clipcap.data.cleaning import Cleaner, Cleaning
from clipcap.data.embed import to_rows
from clipcap.data.examples import Example, fingerprint
from clipcap.data.shards import Shards
from clipcap.data.sources import SourceArguments, open_source
from clipcap.data.writer import DatasetWriter
from clipcap.errors import UserError

Build = Callable[[Path], None]
HALF = "\ud83d"  # the first half of an emoji that was cut in two
DIGITS = "9" * 5000
DEEP = "[" * 100_000 + "]" * 100_000


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    return file.getvalue()


PNG = png()


def files(**contents: bytes | str) -> Build:
    """Writes files; a double underscore in a name stands for its dot."""

    def build(place: Path) -> None:
        for name, content in contents.items():
            data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
            (place / name.replace("__", ".")).write_bytes(data)

    return build


def rows(text: str | bytes) -> Build:
    return files(a__png=PNG, metadata__jsonl=text)


def table(text: str | bytes) -> Build:
    return files(a__png=PNG, captions__csv=text)


def coco(content: object) -> Build:
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    return files(a__png=PNG, captions_train__json=text)


def annotated(images: object, annotations: object) -> Build:
    return coco({"images": images, "annotations": annotations})


def tar(*members: tuple[str | tarfile.TarInfo, bytes], cut: int | None = None, tail: bytes = b"") -> Build:
    def build(place: Path) -> None:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
            for named, content in members:
                member = tarfile.TarInfo(named) if isinstance(named, str) else named
                member.size = member.size or len(content)
                archive.addfile(member, io.BytesIO(content.ljust(max(0, min(member.size, 1 << 20)), b"\0")))
        (place / "train.tar").write_bytes(file.getvalue()[:cut] + tail)

    return build


def kind(name: str, type: bytes, size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.size = type, size
    return member


def negative_size(place: Path) -> None:
    """A header that sends the reader back to itself."""
    tar(("a.png", PNG))(place)
    data = bytearray((place / "train.tar").read_bytes())
    data[124:136] = (-512 & (2**96 - 1)).to_bytes(12, "big")
    data[148:156] = b"        "
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (place / "train.tar").write_bytes(data)


def long_names(place: Path) -> None:
    """Thousands of headers that each announce a long name for the next one."""
    header = kind("././@LongLink", tarfile.GNUTYPE_LONGNAME, 1)
    (place / "train.tar").write_bytes((header.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(512, b"\0")) * 5000)


def a_pickle(embeddings: object = None, **entry: object) -> Build:
    whole = {
        "clip_embedding": torch.zeros(2, 512) if embeddings is None else embeddings,
        "captions": [{"image_id": 1, "caption": "x", "clip_embedding": 0} | entry],
    }
    return files(x__pkl=pickle.dumps(whole))


class Unfolds:
    """Unpickled, it is a storage from a zip file with a compressed member, which could unfold to any size."""

    def __init__(self, path: Path) -> None:
        torch.save(torch.zeros(2, 512).untyped_storage(), path)
        compress(path, "data.pkl")
        self.content = path.read_bytes()

    def __reduce__(self) -> tuple:
        return torch.storage._load_from_bytes, (self.content,)


class Unfilled:
    """Unpickled, it is a tensor of a million numbers, none of which is in its file: they are what the memory held."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = content

    def __reduce__(self) -> tuple:
        if self.content:
            return (torch.storage._load_from_bytes, (self.content,))
        torch.save(torch.zeros(2000, 512)._typed_storage(), file := io.BytesIO(), _use_new_zipfile_serialization=False)
        filled = file.getvalue()
        storage = Unfilled(filled[: filled.rindex(b"\x80\x02]")] + pickle.dumps([], 2))  # its list of what follows
        return (torch._utils._rebuild_tensor_v2, (storage, 0, (2000, 512), (512, 1), False, {}))


def unfolding(place: Path) -> None:
    (place / "x.pkl").write_bytes(pickle.dumps({"clip_embedding": Unfolds(place / "x.pt"), "captions": []}))


def hub(rows: dict[str, list], features: dict[str, object] | None = None) -> Build:
    def build(place: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(rows), place / "train.parquet")

    return build


IMAGE = [{"bytes": PNG, "path": None}]
ROW = {"file_name": "a.png", "caption": "x"}


def line(**changes: object) -> str:
    return json.dumps(ROW | changes)


# Each case: source, what its place holds, and the sentence or the captions of all examples.
CASES: dict[str, tuple[str, Build, str | list[tuple[str, ...]]]] = {
    # a folder with metadata.jsonl
    "half an emoji": ("folder", rows(line(caption=f"a {HALF} b")), [("a  b",)]),
    "an emoji in two escapes": ("folder", rows(line(caption="\ud83d\ude00!")), [("😀!",)]),
    "NUL in a caption": ("folder", rows(line(caption="a\0b")), [("ab",)]),
    "numbers": ("folder", rows(line(caption=[5, 2.5])), [("5", "2.5")]),
    "null": ("folder", rows(line(caption=None) + "\n" + line(caption="y")), [("", "y")]),
    "null beside a text": ("folder", rows(line(caption=None, text="y")), [("y",)]),
    "nothing beside a text": ("folder", rows(line(caption=float("nan"), captions=[], text="y")), [("y",)]),
    "null beside a name": ("folder", rows(line(file_name=None, image="a.png")), [("x",)]),
    "one picture in two spellings": (
        "folder",
        rows(line() + "\n" + line(file_name=".//a.png", caption="y")),
        [("x", "y")],
    ),
    "NaN as pandas writes it": ("folder", rows('{"file_name": "a.png", "caption": [NaN, "y"]}'), [("", "y")]),
    "an object for a caption": ("folder", rows(line(caption={"raw": "x"})), "jsonl', line 1.*caption.* text.*object"),
    "a list of lists": ("folder", rows("\n" + line(caption=[["x"]])), "jsonl', line 2.*caption.* text"),
    "true for a caption": ("folder", rows(line(caption=True)), "line 1.*caption.* text"),
    "no name": ("folder", rows(line(file_name=None)), "line 1.*file_name.* text"),
    "a number for a name": ("folder", rows(line(file_name=7)), "line 1.*file_name.* text"),
    "an empty name": ("folder", rows(line(file_name="")), "line 1.*file_name.* text"),
    "an object for a split": ("folder", rows(line(split={}) + "\n" + line(split=["x"])), "line 2.*split.* text"),
    "half an emoji in a name": ("folder", rows(line() + "\n" + line(file_name=HALF)), [("x",), ("x",)]),
    "NUL in a name": ("folder", rows(line() + "\n" + line(file_name="a\0.png")), [("x",), ("x",)]),
    "a name of 5,000 letters": ("folder", rows(line() + "\n" + line(file_name="n" * 5000)), [("x",), ("x",)]),
    "nested JSON": ("folder", rows(line() + f'\n{{"file_name": {DEEP}}}'), "line 2, is not JSON .*nested"),
    "an integer of 5,000 digits": ("folder", rows(f'{{"n": {DIGITS}}}'), "line 1, is not JSON .*digits"),
    "a key twice": (
        "folder",
        rows('{"file_name": "a.png", "caption": "x", "caption": "y"}'),
        "line 1.*'caption' twice",
    ),
    "UTF-16 with its mark": ("folder", rows(line().encode("utf-16")), "metadata.jsonl' is not UTF-8"),
    "UTF-16 without": ("folder", rows(line().encode("utf-16-le")), "metadata.jsonl' is not UTF-8"),
    "a mark of UTF-8": ("folder", rows(line().encode("utf-8-sig")), [("x",)]),
    "a column with control characters": (
        "folder",
        rows('{"\\n\\u001b[2J": 1}'),
        r"line 1.*has no column .*it has \\n\\x1b",
    ),
    # CSV
    "an unclosed quote": ("folder", table('file_name,caption\na.png,x\na.png,"y\na.png,z\n'), "csv', line 3.*quote"),
    "a field over the limit": (
        "folder",
        table("file_name,caption\na.png,x\n" + 'a.png,"' + "y\n" * 70_000),
        "csv', line 3.*quote",
    ),
    "an unquoted comma": ("folder", table("file_name,caption\na.png,hello, world\n"), "csv', line 2.*3 cells"),
    "empty cells at the end": ("folder", table("file_name,caption\na.png,hello,,\n"), [("hello",)]),
    "a cell short": ("folder", table("file_name,caption\na.png\na.png,y\n"), [("", "y")]),
    "lines without anything": ("folder", table("\n\nfile_name,caption\n\na.png,x\n\n"), [("x",)]),
    "a column twice": ("folder", table("file_name,caption,caption\na.png,x,y\n"), "csv', line 1.*'caption' twice"),
    "no rows": ("folder", table("file_name,caption\n"), "no images in its captions.csv"),
    "an empty file": ("folder", table(""), "no images in its captions.csv"),
    "a table of NUL": ("folder", table(b"\0" * 100), "captions.csv' is not UTF-8"),
    "Mac line ends": ("folder", table("file_name,caption\ra.png,x\r"), [("x",)]),
    # sidecars
    "a sidecar in UTF-16": ("folder", files(a__png=PNG, a__txt="x".encode("utf-16")), "a.txt' is not UTF-8"),
    "a sidecar of NUL": ("folder", files(a__png=PNG, a__txt=b"x\0"), "a.txt' is not UTF-8"),
    "raw surrogates": ("folder", files(a__png=PNG, a__txt=HALF), "a.txt' is not UTF-8"),
    # COCO
    "COCO: a list": ("coco", coco([]), "captions_train.json' is not a COCO caption file"),
    "COCO: a number": ("coco", coco("5"), "captions_train.json' is not a COCO caption file"),
    "COCO: empty": ("coco", coco(""), "captions_train.json'.* is not JSON"),
    "COCO: nested": ("coco", coco(DEEP), "captions_train.json'.* is not JSON .*nested"),
    "COCO: digits": ("coco", coco(DIGITS), "captions_train.json'.* is not JSON .*digits"),
    "COCO: images are an object": ("coco", annotated({}, []), "is not a COCO caption file"),
    "COCO: an image is a number": ("coco", annotated([7], []), "'images'.*entry 0"),
    "COCO: an image without a name": ("coco", annotated([{"id": 7}], []), "'images'.*entry 0.*file_name"),
    "COCO: a name of another type": (
        "coco",
        annotated([{"id": 7, "file_name": [1]}], []),
        "'images'.*entry 0.*file_name.* text",
    ),
    "COCO: an id of another type": ("coco", annotated([{"id": [], "file_name": "a.png"}], []), "'images'.*entry 0.*id"),
    "COCO: an id twice": (
        "coco",
        annotated([{"id": 7, "file_name": "a.png"}, {"id": 7, "file_name": "b.png"}], []),
        "'images'.*entry 1.*'7' .*twice",
    ),
    "COCO: no image of that id": (
        "coco",
        annotated([{"id": 7, "file_name": "a.png"}], [{"image_id": 8, "caption": "x"}]),
        "'annotations'.*entry 0.*8",
    ),
    "COCO: ids as numbers and as texts": (
        "coco",
        annotated([{"id": 7, "file_name": "a.png"}], [{"image_id": "7", "caption": "x"}]),
        [("x",)],
    ),
    "COCO: an object for a caption": (
        "coco",
        annotated([{"id": 7, "file_name": "a.png"}], [{"image_id": 7, "caption": {}}]),
        "'annotations'.*entry 0.*caption.* text",
    ),
    "COCO: half an emoji": (
        "coco",
        annotated([{"id": 7, "file_name": "a.png"}], [{"image_id": 7, "caption": f"a{HALF}"}]),
        [("a",)],
    ),
    "COCO: a long name": (
        "coco",
        annotated([{"id": 7, "file_name": "n" * 5000}], [{"image_id": 7, "caption": "a"}]),
        "none of the 1 images of .* is there",
    ),
    # tar shards
    "tar: half an emoji": (
        "tar",
        tar(("1.png", PNG), ("1.json", json.dumps({"caption": HALF + "a"}).encode())),
        [("a",)],
    ),
    "tar: JSON list": ("tar", tar(("1.png", PNG), ("1.json", b"[]")), "train.tar'.*'1.json'.* object"),
    "tar: JSON number": ("tar", tar(("1.png", PNG), ("1.json", b"5")), "train.tar'.*'1.json'.* object"),
    "tar: broken JSON": ("tar", tar(("1.png", PNG), ("1.json", b"{")), "train.tar'.*'1.json' is not JSON"),
    "tar: nested JSON": ("tar", tar(("1.png", PNG), ("1.json", DEEP.encode())), "train.tar'.*'1.json' is not JSON"),
    "tar: digits": ("tar", tar(("1.png", PNG), ("1.json", DIGITS.encode())), "train.tar'.*'1.json' is not JSON"),
    "tar: a caption of numbers": ("tar", tar(("1.png", PNG), ("1.json", b'{"caption": [1, null]}')), [("1", "")]),
    "tar: an object for a caption": (
        "tar",
        tar(("1.png", PNG), ("1.json", b'{"caption": {}}')),
        "'1.json'.*caption.* text",
    ),
    "tar: latin-1 text": ("tar", tar(("1.png", PNG), ("1.txt", b"caf\xe9")), "train.tar'.*'1.txt' is not UTF-8"),
    "tar: text with a mark": ("tar", tar(("1.png", PNG), ("1.txt", b"\xef\xbb\xbfhi")), [("hi",)]),
    "tar: a name that is not UTF-8": ("tar", tar(("\udcff.png", PNG), ("\udcff.txt", b"x")), [("x",)]),
    "tar: members apart": (
        "tar",
        tar(("1.png", PNG), ("2.png", PNG), ("1.txt", b"a"), ("2.txt", b"b")),
        [("a",), ("b",)],
    ),
    "tar: null beside a text": ("tar", tar(("1.png", PNG), ("1.json", b'{"caption": null, "text": "y"}')), [("y",)]),
    "tar: two pictures under a key": (
        "tar",
        tar(("1.png", PNG), ("1.txt", b"a"), ("1.jpg", PNG)),
        "holds '1.png' and '1.jpg' under one key, .* first dot; leave one",
    ),
    "tar: a list beside a blank text": ("tar", tar(("1.png", PNG), ("1.txt", b" "), ("1.json", b"[]")), [(" ",)]),
    "tar: broken JSON beside a blank text": ("tar", tar(("1.png", PNG), ("1.txt", b""), ("1.json", b"{")), [("",)]),
    "tar: an object beside a blank text": (
        "tar",
        tar(("1.png", PNG), ("1.txt", b""), ("1.json", b'{"caption": {}}')),
        [("",)],
    ),
    "tar: a picture twice": ("tar", tar(("1.png", PNG), ("1.txt", b"a"), ("1.png", PNG)), "train.tar'.*'1.png'.*twice"),
    "tar: two captions": (
        "tar",
        tar(("1.png", PNG), ("1.a.txt", b"a"), ("1.b.txt", b"b")),
        "train.tar'.*'1.a.txt' and '1.b.txt'",
    ),
    "tar: other members of a key": (
        "tar",
        tar(
            *(
                ("1.a.png", b""),
                ("1.b.png", b""),
                ("1.png", PNG),
                ("1.a.txt", b"b"),
                ("1.b.txt", b"c"),
                ("1.txt", b"a"),
            ),
            *(("1.npy", b""), ("1.npy", b"")),
        ),
        [("a",)],
    ),
    "tar: only links": ("tar", tar((kind("1.png", tarfile.SYMTYPE), b"")), "no image in its tar files"),
    "tar: devices": ("tar", tar((kind("1.png", tarfile.CHRTYPE), b"")), "no image in its tar files"),
    "tar: cut in a member": (
        "tar",
        tar(("1.png", PNG), ("1.txt", b"a"), ("2.png", PNG * 50), cut=3000),
        "train.tar' is not a",
    ),
    "tar: cut in a header": (
        "tar",
        tar(("1.png", PNG), ("1.txt", b"a"), ("2.png", PNG), cut=2148),
        "train.tar' .*damaged",
    ),
    "tar: a broken header": (
        "tar",
        tar(("1.png", PNG), ("1.txt", b"a"), cut=2048, tail=b"x" * 2048),
        "train.tar' .*damaged",
    ),
    "tar: two archives in one": ("tar", tar(("1.png", PNG), ("1.txt", b"a"), tail=b"x" * 512), "train.tar' .*damaged"),
    "tar: negative size": ("tar", negative_size, "train.tar' is not a"),
    "tar: long names": ("tar", long_names, "train.tar' is not a"),
    "tar: empty": ("tar", files(train__tar=b""), "train.tar' is not a"),
    "tar: a folder by that name": ("tar", lambda place: (place / "x.tar").mkdir(), "no .tar files"),
    "tar: a pipe by that name": ("tar", lambda place: os.mkfifo(place / "x.tar"), "x.tar' is not a"),
    "tar: a link to nowhere": ("tar", lambda place: (place / "x.tar").symlink_to(place / "gone"), "x.tar' is not a"),
    # ClipCap's pickles
    "pickle: half an emoji": ("clipcap", a_pickle(caption=f"a{HALF}", image_id=HALF), [("a",)]),
    "pickle: both halves of an emoji, apart": ("clipcap", a_pickle(caption="\ud83d\ude00!"), [("😀!",)]),
    "pickle: no caption": ("clipcap", a_pickle(caption=None), [("",)]),
    "pickle: an object for a caption": ("clipcap", a_pickle(caption={}), "x.pkl', caption 0.* text"),
    "pickle: digits": ("clipcap", a_pickle(caption=10**5000), "x.pkl', caption 0.* text"),
    "pickle: an id of digits": ("clipcap", a_pickle(image_id=10**5000), "x.pkl', caption 0.* image_id"),
    "pickle: a list for an id": ("clipcap", a_pickle(image_id=[]), "x.pkl', caption 0.* image_id"),
    "pickle: a row of true": ("clipcap", a_pickle(clip_embedding=True), "points at no embedding"),
    "pickle: complex": ("clipcap", a_pickle(torch.zeros(2, 512, dtype=torch.complex64)), "x.pkl' .*floating"),
    "pickle: integers": ("clipcap", a_pickle(torch.zeros(2, 512, dtype=torch.int64)), "x.pkl' .*floating"),
    "pickle: no width": ("clipcap", a_pickle(torch.zeros(2, 0)), "x.pkl'"),
    "pickle: one number for a terabyte": (
        "clipcap",
        a_pickle(torch.zeros(1, dtype=torch.float16).expand(10**9, 512)),
        "x.pkl' .*than it holds",
    ),
    "pickle: numbers that are not in the file": ("clipcap", a_pickle(Unfilled()), "claims more .* than it holds"),
    "pickle: a part with the number of a billion": (
        "clipcap",
        files(x__pkl=b"\x80\x02}r\0\0\1\0."),
        "x.pkl' is not a complete .*UnpicklingError",
    ),
    "pickle: code under a name of two lines": (
        "clipcap",
        files(x__pkl=b"\x80\x04\x8c\x03a\nb\x8c\x01c\x93."),
        r"x.pkl' holds code \(a\\nb.c\)",
    ),
    "pickle: a storage that unfolds to any size": ("clipcap", unfolding, r"x.pkl' is not a complete .*ValueError"),
    "pickle: a tensor that is another's negative": ("clipcap", a_pickle(torch._neg_view(torch.ones(2, 512))), "plain"),
    "pickle: one list named again and again": (
        "clipcap",
        files(
            x__pkl=pickle.dumps(
                {
                    "clip_embedding": torch.zeros(4, 512),
                    "captions": [{"caption": ["a"] * 1000, "clip_embedding": 0}] * 20_000,
                }
            )
        ),
        "x.pkl' names the same captions again and again",
    ),
    "pickle: attributes of what it names": (
        "clipcap",
        files(
            x__pkl=b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x08\x00\x00\x00__name__X\x01\x00\x00\x00zs\x86b."
        ),
        "x.pkl' is not a complete pickle",
    ),
    "pickle: empty": ("clipcap", files(x__pkl=b""), "x.pkl' is not a complete pickle"),
    "pickle: a folder": ("clipcap", lambda place: (place / "x.pkl").mkdir(), "x.pkl' cannot be read"),
    # the hub's layouts
    "hub: numbers": ("hub", hub({"image": IMAGE, "caption": [7]}), [("7",)]),
    "hub: nothing": ("hub", hub({"image": IMAGE * 2, "caption": [None, "x"]}), [("",), ("x",)]),
    "hub: objects": ("hub", hub({"image": IMAGE, "caption": [{"raw": "x"}]}), "row 0.*caption.* text"),
    "hub: lists of lists": ("hub", hub({"image": IMAGE, "caption": [[["x"]]]}), "row 0.*caption.* text"),
    "hub: NUL": ("hub", hub({"image": IMAGE, "caption": ["a\0"]}), [("a",)]),
    "hub: numbers for images": ("hub", hub({"image": [1], "caption": ["x"]}), "column 'image' .*no images"),
    "hub: a column of two lines": (
        "hub",
        hub({"image": IMAGE, "a\nb": ["x"]}),
        r"no column 'caption'; it has image, a\\nb",
    ),
    "hub: no image": ("hub", hub({"image": [*IMAGE, None], "caption": ["x", "y"]}), [("x",), ("y",)]),
    "hub: broken parquet": ("hub", files(train__parquet=b"PAR1"), "could not be read"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def opened(source: str, build: Build, place: Path, **options: object):
    place.mkdir(exist_ok=True)
    build(place)
    return open_source([source, str(place / "x.pkl" if source == "clipcap" else place)], SourceArguments(**options))


@pytest.mark.parametrize("case", CASES)
def test_broken_data_is_one_sentence_or_usable(case: str, tmp_path: Path) -> None:
    source, build, expected = CASES[case]
    with soon(20):
        if isinstance(expected, str):
            with pytest.raises(UserError, match=expected) as caught:
                [*opened(source, build, tmp_path / "place").examples]
            assert str(caught.value).isprintable() and len(str(caught.value)) < 600
            return
        examples = [*opened(source, build, tmp_path / "place").examples]
        assert [example.captions for example in examples] == expected
        write(examples, tmp_path / "data")


def write(examples: list, folder: Path) -> None:
    """Everything that happens to examples but the embedding."""
    arguments = SourceArguments(source=["here"], val_fraction=0, test_fraction=0)
    kept, _ = load_data.select(examples, Cleaning(drop_empty=False), arguments)
    assert len(fingerprint(kept)) == 16
    folder.mkdir()
    writer = DatasetWriter(folder, {}, Shards(kept))
    writer.begin()
    for shard in writer.shards:
        writer.write(shard, *to_rows(shard, [(np.zeros(4, np.float32), None)] * len(shard.examples), 4))
    writer.finish({"clip": {}})


# names that lead out of the source's folder


def secret(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "secret.txt").write_text("a secret")
    return tmp_path / "secret.png"


OUTSIDE = {
    "dots": lambda place, secret: "../secret.png",
    "dots through a folder": lambda place, secret: (place / "sub").mkdir() or "sub/../../secret.png",
    "absolute": lambda place, secret: str(secret),
    "a link": lambda place, secret: (place / "link.png").symlink_to(secret) or "link.png",
    "a linked folder": lambda place, secret: (place / "sub").symlink_to(secret.parent) or "sub/secret.png",
    "a neighbour whose name begins alike": lambda place, secret: "../place2/a.png",
}


@pytest.mark.parametrize("way", OUTSIDE)
@pytest.mark.parametrize("source", ["folder", "coco", "hub"])
def test_a_name_that_leads_outside_is_refused_unless_a_flag_allows_it(source: str, way: str, tmp_path: Path) -> None:
    hidden = secret(tmp_path)
    place = tmp_path / "place"
    (tmp_path / "place2").mkdir()
    (tmp_path / "place2" / "a.png").write_bytes(PNG)
    name = OUTSIDE[way](place, hidden)
    if source == "hub":
        build = hub({"image": [{"bytes": None, "path": str(place / name)}], "caption": ["x"]})
    elif source == "coco":
        build = annotated([{"id": 1, "file_name": name}], [{"image_id": 1, "caption": "x"}])
    else:
        build = rows(line(file_name=name))
    if source == "hub":  # its pictures are looked at when their turn comes: the row is skipped and listed
        [example] = opened(source, build, place).examples
        with pytest.raises(Exception, match="outside .*--allow-outside"):
            example.open()()
    else:
        with pytest.raises(UserError, match=r"(line 1|entry 0).*leads outside .*--allow-outside"):
            opened(source, build, place)
    [example] = opened(source, build, place, allow_outside=True).examples
    assert Image.open(example.open()).size == (8, 8)


@pytest.mark.parametrize("way", ["absolute", "dots", "address", "link", "any link", "remote"])
def test_a_hub_folder_names_no_data_outside_it(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a README.md of a stranger that puts private tables into a dataset."""
    place = tmp_path / "place"
    for folder in (place, tmp_path / "outside"):
        folder.mkdir()
        hub({"image": IMAGE, "caption": ["x"]})(folder)
    hidden = tmp_path / "outside" / "train.parquet"
    (place / "link.parquet").symlink_to(hidden)
    names = {"absolute": hidden, "dots": "../outside/train.parquet", "address": f"file://{hidden}"}
    named = names.get(way, "link.parquet" if way == "link" else "*.parquet")
    (place / "README.md").write_text(
        f'---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: "{named}"\n---\n'
    )
    if way == "remote":
        config = SimpleNamespace(config=SimpleNamespace(data_files={"train": ["http://127.0.0.1:9/x.parquet"]}))
        monkeypatch.setattr("datasets.load_dataset_builder", lambda path, revision: config)
    with pytest.raises(UserError, match="names 'http.*--allow-out" if way == "remote" else "is outside.*--allow-out"):
        open_source(["hub", str(place)])
    assert open_source(["hub", str(place)], SourceArguments(allow_outside=True)).examples


@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    "config",
    [
        'data_files: "http://127.0.0.1:9/drive.google.com"',
        "data_files: [train.parquet, 'ftp://127.0.0.1:9/x.parquet']",
        "data_files: [{split: train, path: [train.parquet, 'zip://*::http://127.0.0.1:9/x.zip']}]",
        "data_files: /**/*.parquet",
        "data_files: sub/../../**",
        "data_dir: ../..",
    ],
)
def test_a_hub_folder_that_names_other_places_is_refused_before_they_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, config: str
) -> None:
    """A stranger's README.md made `datasets` ask any server, and walk the whole disk, before it was refused."""
    hub({"image": IMAGE, "caption": ["x"]})(tmp_path)
    content = f"configs:\n- config_name: default\n  data_files: train.parquet\n- config_name: other\n  {config}\n"
    (tmp_path / file).write_text(f"---\n{content}---\n" if file == "README.md" else content)
    monkeypatch.setattr("datasets.load_dataset_builder", None)
    with pytest.raises(UserError, match="names '.*is outside of it; give --allow-outside"):
        open_source(["hub", str(tmp_path)])


@pytest.mark.parametrize("allow_outside", [False, True])
def test_a_pipe_in_the_place_of_a_description_is_refused(tmp_path: Path, allow_outside: bool) -> None:
    """Guards against a pipe that is opened, here or in `datasets`, and waited for without end."""
    hub({"image": IMAGE, "caption": ["x"]})(tmp_path)
    os.mkfifo(tmp_path / ".huggingface.yaml")
    with soon(20), pytest.raises(UserError, match="huggingface.yaml' is not a file; remove it"):
        open_source(["hub", str(tmp_path)], SourceArguments(allow_outside=allow_outside))


SAVED = {  # what a stranger's data set in the layout of `save_to_disk` names -> the sentence about it
    "outside": ({"x/state.json": {"_data_files": [{"filename": "../../outside.arrow"}]}}, "names '.*is outside of it"),
    "absolute": ({"x/state.json": {"_data_files": [{"filename": "/dev/zero"}]}}, "names '/dev/zero', which is outside"),
    "address": ({"x/state.json": {"_data_files": [{"filename": "http://127.0.0.1:9/x"}]}}, "names '.*is outside of it"),
    **{
        f"a split {name!r}": ({"dataset_dict.json": {"splits": [name]}}, f"has a split called {name!r}, .*rename it")
        for name in ("../outside", "s3://x", "sub/more", ".parts", "")
    },
    "no splits": ({"dataset_dict.json": {"splits": []}}, "has no splits"),
    "no list": ({"dataset_dict.json": []}, "could not be read"),
    "numbers": ({"dataset_dict.json": {"splits": [5]}}, "could not be read"),
    "a pipe": ({"x/state.json": {"_data_files": [{"filename": "pipe"}]}}, "has no file 'x/pipe'"),
    "cut off": ({"x/state.json": {"_data_files": [{"filename": "cut"}]}}, "x/cut' is missing or damaged"),
    "code": (
        {"x/dataset_info.json": {"features": {"caption": {"_type": "partial"}}}},
        "could not be read",
    ),
}


@pytest.mark.parametrize("way", SAVED)
def test_a_saved_data_set_leads_nowhere_and_runs_nothing(way: str, tmp_path: Path) -> None:
    """`save_to_disk` writes lists of files, which `load_from_disk` believes."""
    from datasets import Dataset, DatasetDict

    DatasetDict(x=Dataset.from_dict({"image": ["a"] * 9, "caption": ["b"] * 9})).save_to_disk(tmp_path / "place")
    content = (tmp_path / "place/x/data-00000-of-00001.arrow").read_bytes()
    (tmp_path / "outside.arrow").write_bytes(content)
    (tmp_path / "place/x/cut").write_bytes(content[:-300])
    os.mkfifo(tmp_path / "place/x/pipe")
    changes, sentence = SAVED[way]
    for name, changed in changes.items():
        file = tmp_path / "place" / name
        known = json.loads(file.read_text())
        file.write_text(json.dumps(known | changed if isinstance(changed, dict) else changed))
    with soon(20), pytest.raises(UserError, match=sentence) as caught:
        open_source(["hub", str(tmp_path / "place")])
    assert "\n" not in str(caught.value)


def test_a_split_may_have_a_hyphen(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_dict({"image": [PNG], "caption": ["x"]})
    DatasetDict({"train": rows, "val-2017": rows}).save_to_disk(tmp_path / "saved")
    assert [example.captions for example in open_source(["hub", str(tmp_path / "saved")]).examples] == [("x",)] * 2


@pytest.mark.parametrize("name", ["../evil", "sub/more", ".parts"])
def test_the_name_of_a_split_decides_about_no_folder(name: str, tmp_path: Path) -> None:
    """Guards against --allow-outside, which lets a stranger's data set be read from anywhere, and written there."""
    from datasets import Dataset

    place = tmp_path / "a" / "place"
    Dataset.from_dict({"image": ["a"], "caption": ["b"]}).save_to_disk(place / name)
    (place / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    with pytest.raises(UserError, match=f"has a split called '{name}'"):
        open_source(["hub", str(place)], SourceArguments(allow_outside=True))


@pytest.mark.parametrize("name", ["parquet", "json"])
def test_a_hub_folder_may_be_called_like_a_format(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against `datasets` that takes the name for a format, and reads what is in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there" / name).mkdir(parents=True)
    for place, caption in ((tmp_path, "a private one"), (tmp_path / "there" / name, "x")):
        hub({"image": IMAGE, "caption": [caption]})(place)
    with pytest.raises(UserError, match=f"there is no folder '{name}'"):
        open_source(["hub", name])
    monkeypatch.chdir(tmp_path / "there")
    assert [example.captions for example in open_source(["hub", name]).examples] == [("x",)]


def test_pictures_and_captions_that_are_links_to_outside_are_refused_like_names(tmp_path: Path) -> None:
    """Guards against an unpacked archive whose link puts a private picture or file into a dataset."""
    hidden = secret(tmp_path)
    place = tmp_path / "place"
    (place / "a.png").symlink_to(hidden)
    (place / "a.txt").write_text("x")
    with pytest.raises(UserError, match="a.png' leads outside .*--allow-outside"):
        open_source(["folder", str(place)])
    (place / "a.png").unlink()
    (place / "a.png").write_bytes(PNG)
    (place / "a.txt").unlink()
    (place / "a.txt").symlink_to(hidden.with_suffix(".txt"))
    with pytest.raises(UserError, match="a.txt' leads outside .*--allow-outside"):
        open_source(["folder", str(place)])
    [example] = open_source(["folder", str(place)], SourceArguments(allow_outside=True)).examples
    assert example.captions == ("a secret",)


@pytest.mark.parametrize(
    ("source", "name", "build"),
    [
        ("folder", "metadata.jsonl", rows(line())),
        (
            "coco",
            "captions_train.json",
            annotated([{"id": 1, "file_name": "a.png"}], [{"image_id": 1, "caption": "x"}]),
        ),
        ("tar", "train.tar", tar(("1.png", PNG), ("1.txt", b"x"))),
    ],
)
def test_tables_and_shards_that_are_links_to_outside_are_refused_too(
    source: str, name: str, build: Build, tmp_path: Path
) -> None:
    (tmp_path / "place").mkdir()
    build(tmp_path / "place")
    (tmp_path / "place" / name).rename(tmp_path / name)
    (tmp_path / "place" / name).symlink_to(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}' leads outside .*--allow-outside"):
        open_source([source, str(tmp_path / "place")])
    assert open_source([source, str(tmp_path / "place")], SourceArguments(allow_outside=True)).examples


def test_links_inside_the_folder_and_a_folder_that_is_a_link_are_as_good_as_files(tmp_path: Path) -> None:
    place = tmp_path / "place"
    (place / "sub").mkdir(parents=True)
    (place / "sub" / "a.png").write_bytes(PNG)
    (place / "b.png").symlink_to("sub/a.png")
    (place / "metadata.jsonl").write_text(line(file_name="sub/../b.png"))
    (tmp_path / "link").symlink_to(place)
    for given in (place, tmp_path / "link"):
        [example] = open_source(["folder", str(given)]).examples
        assert Image.open(example.open()).size == (8, 8)


def test_names_inside_a_tar_are_never_paths(tmp_path: Path) -> None:
    build = tar(("../../secret.png", PNG), ("../../secret.txt", b"x"), ("/etc/passwd.png", PNG))
    [first, second] = opened("tar", build, tmp_path / "place").examples
    assert (first.captions, second.captions, first.open(), second.open()) == (("x",), (), PNG, PNG)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["place", "train.tar"]


def test_a_sparse_member_is_not_read(tmp_path: Path) -> None:
    """Guards against a terabyte of zeros out of a kilobyte, and against the bytes of another member as a picture."""
    header = bytearray(kind("1.txt", tarfile.GNUTYPE_SPARSE, 0).tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"\x80" + (2**40).to_bytes(11, "big")  # its real size
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)

    def build(place: Path) -> None:
        tar(("1.png", PNG))(place)
        (place / "train.tar").write_bytes(bytes(header) + (place / "train.tar").read_bytes())

    with soon(10):
        assert [example.captions for example in opened("tar", build, tmp_path / "place").examples] == [()]


def test_equal_names_in_two_tars_are_two_images(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        tar(("1.png", PNG), ("1.txt", b"x"))(tmp_path / folder)
    ids = [example.image_id for example in open_source(["tar", str(tmp_path)]).examples]
    assert ids == ["a/train.tar/1", "b/train.tar/1"]


def test_a_tar_that_goes_away_costs_its_pictures_and_not_the_run(tmp_path: Path) -> None:
    [example] = opened("tar", tar(("1.png", PNG), ("1.txt", b"x")), tmp_path).examples
    (tmp_path / "train.tar").unlink()
    with pytest.raises(Exception, match="(?i)no such file") as caught:
        example.open()()  # in the worker, whose error becomes a row of skipped.jsonl
    assert type(caught.value).__name__ == "UnreadableImage"


# cleaning


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("a" + " " * 300_000 + "b", "a" + " " * 300_000 + "b"),
        ("a" + " \u200b\t" * 100_000 + "b", "a" + " \u200b\t" * 100_000 + "b"),
        (f"&#{DIGITS}; &amp;", f"&#{DIGITS}; &"),
        ("#" * 100_000 + "1" * 100_000, "#" * 100_000 + "1" * 100_000),
        ("@a" + "." * 100_000, "." * 100_000),
        ("www." * 50_000 + "!" * 50_000, "." + "!" * 50_000),
    ],
    ids=["blanks", "blanks of all kinds", "digits", "hashes", "dots", "links"],
)
def test_no_caption_stops_the_cleaning(caption: str, cleaned: str) -> None:
    """Guards against steps whose time grows with the square of a caption's length, and numbers that are too long."""
    with soon(10):
        assert Cleaner(Cleaning(mentions="drop", max_hashtags=0))(caption, "1") == cleaned


def test_why_no_caption_is_left_is_told() -> None:
    """A shard of pictures alone was put down to the cleaning, with seven counts of 0."""
    arguments = SourceArguments(source=["tar", "x.tar"])
    with pytest.raises(UserError, match=r"^no image of --source tar x.tar has a caption: see .*--help$"):
        load_data.select([Example("1", ())], Cleaning(), arguments)
    with pytest.raises(UserError, match=r"tar x.tar has a caption left after cleaning \(trim 1, drop_empty 2\)$"):
        load_data.select([Example("1", ("", " "))], Cleaning(), arguments)
