"""Captioning survives every kind of file, name and link: one row each, and nothing raw on a terminal."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import socket
import subprocess
import warnings
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, PngImagePlugin
from test_images import broken_files
from tiny import save_tiny_weights

import predict
from clipcap.clip.formats import FORMATS
from clipcap.clip.images import EXTENSIONS, UnreadableImage, find_images, open_image
from clipcap.errors import UserError
from clipcap.page import picture_uri

ODD_NAMES = (
    *(
        "line\nend.png",
        "tab\tin.png",
        "escape\x1b[31m.png",
        "return\r.png",
        "turned\u202egnp.png",
        " .png",
        "'quote\".png",
    ),
    *(
        "=1+1.png",
        "-dash.png",
        "back\\slash.png",
        "back\\udcff.png",
        "&lt;b&gt;.png",
        "🐶👨‍👩‍👧.png",
        "n" * 250 + ".png",
    ),
    os.fsdecode(b"bytes \xff\xe9.png"),
    os.fsdecode(b"back\xff.png"),  # as a page writes this, it looks like the name above with a backslash
)
NO_PICTURE = "not a picture, or a format that is not supported"
REFUSED = {  # what Pillow could open: PostScript starts Ghostscript, and nobody photographs in the others
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n",
    "pcx": None,
    "sgi": None,
    "ico": None,
    "dds": None,
    "xbm": b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {\n0x00 };\n",
    "xpm": b'/* XPM */\nstatic char * a[] = {\n"1 1 1 1",\n"a c #000000",\n"a"};\n',
    "psd": b"8BPS\0\x01" + bytes(6) + b"\0\x03\0\0\0\x01\0\0\0\x01\0\x08\0\x03" + bytes(16),
    "wmf": b"\xd7\xcd\xc6\x9a\0\0" + bytes(16),
    "pdf": b"%PDF-1.4\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


def refused(kind: str) -> bytes:
    """A file of a format that is not read."""
    content, file = REFUSED[kind], io.BytesIO()
    if content is None:
        Image.new("RGB", (16, 16)).save(file, kind.upper())
    return content or file.getvalue()


def every_format() -> dict[str, bytes]:
    """A picture of each format that is read, in each mode that it holds."""
    grey = Image.linear_gradient("L").resize((64, 48))
    files = {}
    for kind in FORMATS:
        for mode in Image.MODES:
            file = io.BytesIO()
            try:
                image = grey.convert("RGB") if mode in ("LAB", "HSV", "YCbCr", "CMYK") else grey
                with warnings.catch_warnings(action="ignore"):  # pillow-heif writes by what Pillow will take away
                    image.convert(mode).save(file, kind)
                Image.open(file).load()  # before Pillow 13, it cannot read the YCbCr TIFF that it writes
            except (OSError, ValueError, KeyError):
                continue  # this format does not hold this mode, or this Pillow lacks it
            files[f"{kind} {mode}.jpg"] = file.getvalue()
    return files


def test_every_format_and_mode_opens_whatever_the_file_is_called() -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    files = every_format()
    assert {name.split()[0] for name in files} >= set(FORMATS) - {"AVIF"} and len(files) > 60
    for name, content in files.items():
        opened = open_image(content)
        assert (opened.mode, opened.size) == ("RGB", (64, 48)), name
        assert np.ptp(np.asarray(opened)) > 0, name


def test_the_formats_are_those_of_the_file_names_that_a_folder_is_searched_for() -> None:
    Image.init()
    known = {kind for ending, kind in Image.EXTENSION.items() if ending in EXTENSIONS}
    assert known - {"MPO"} <= set(FORMATS)


@pytest.mark.parametrize("kind", REFUSED)
def test_other_formats_are_refused_and_start_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An EPS called holiday.jpg started Ghostscript."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # so that Pillow looks for it anew
    (tmp_path / "holiday.jpg").write_bytes(refused(kind))
    for source in (tmp_path / "holiday.jpg", refused(kind)):
        for opening in (open_image, picture_uri):  # for CLIP, and for pages
            with pytest.raises(UnreadableImage, match=NO_PICTURE):
                opening(source)
    assert not (tmp_path / "started").exists()


def test_only_one_place_opens_pictures() -> None:
    root = Path(predict.__file__).parent
    places = [root / "predict.py", *(root / "clipcap").rglob("*.py"), *(root / "benchmarks").rglob("*.py")]
    opening = [path.name for path in places if "Image.open(" in path.read_text(encoding="utf-8")]
    assert opening == ["formats.py"]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_long_comment_is_no_reason_to_leave_a_picture_out(compressed: bool) -> None:
    """Pillow's limit is a megabyte; programs that draw pictures write more into them."""
    text, file = PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_itxt("workflow", "a long story " * 400_000, zip=compressed)
    Image.new("RGB", (20, 20), "red").save(file, "PNG", pnginfo=text)
    assert open_image(file.getvalue()).getpixel((0, 0)) == (255, 0, 0)


def test_mode_la_with_premultiplied_alpha() -> None:
    assert open_image(Image.new("LA", (4, 4), (80, 255)).convert("La")).getpixel((0, 0)) == (80, 80, 80)


# Folders


def test_links_that_loop_dangle_or_lead_into_locked_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`is_dir` of such an entry raises, which ended the run."""
    (tmp_path / "photos").mkdir()
    for name, target in {
        "around": "around",
        "around.jpg": "around.jpg",
        "gone": "nowhere",
        "gone.jpg": "nowhere",
        "up": "..",
        "into": "locked",
    }.items():
        (tmp_path / "photos" / name).symlink_to(target)
    for number in range(1500):  # a chain longer than Python's stack is deep
        (tmp_path / "photos" / f"chain{number}").symlink_to(f"chain{number + 1}")
    (tmp_path / "photos/chain.jpg").symlink_to("chain0")
    real = os.stat

    def locked(path, *args, **options):  # root may enter every folder, so that a real lock would not do
        if str(path).endswith("/into"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **options)

    class Entry:
        """An `os.DirEntry` that asks the function above."""

        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.path, self.is_symlink, self._entry = entry.name, entry.path, entry.is_symlink, entry

        def is_dir(self) -> bool:
            if self.name == "into":
                locked(self.path)
            return self._entry.is_dir()

    scandir = os.scandir

    class Listing(list):
        __enter__ = list.__iter__

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "stat", locked)
    monkeypatch.setattr(os, "scandir", lambda path: Listing(map(Entry, scandir(path))))
    found = [path.name for path in find_images(tmp_path / "photos")]
    assert found == ["around.jpg", "chain.jpg", "gone.jpg", "into"]
    for name, reason in {
        "around.jpg": "symbolic links",
        "gone.jpg": "no such file",
        "into": "permission denied",
    }.items():
        with pytest.raises(UnreadableImage, match=reason):
            open_image(tmp_path / "photos" / name)


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A picture 1,200 folders down."""
    folder = tmp_path / "deep"
    os.mkdir(folder)
    path = str(folder)
    for _ in range(1200):
        path += "/d"
        os.mkdir(path)
    Image.new("RGB", (8, 8)).save(f"{path}/a.png")
    yield folder
    subprocess.run(["rm", "-r", str(folder)], check=True)  # not left to pytest, which cannot delete so deep


def test_folders_nested_deeper_than_functions_may_call_each_other(deep: Path) -> None:
    [found] = find_images(deep)
    assert len(found.parts) > 1200 and open_image(found).size == (8, 8)


def test_paths_that_cannot_be_opened_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "around").symlink_to("around")
    for path, told in [
        (tmp_path / "around", "cannot be opened"),
        (tmp_path / ("n" * 300), "cannot be opened"),
        ("", "'' does not exist"),  # an empty variable of a shell; it stood for the current folder
        (tmp_path / "nowhere", "does not exist"),
    ]:
        with pytest.raises(UserError, match=told):
            find_images([path])


# A folder with everything in it


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str | None]]:
    """A folder, and for each path in it why it gets no caption, or None where it gets one."""
    folder = tmp_path_factory.mktemp("everything")
    expected: dict[str, str | None] = {str(path): reason for path, reason in broken_files(folder).items()}
    (folder / "noise.gif").unlink()  # whether it counts as broken is up to Pillow
    (folder / "thread.png").unlink()  # as is this one, for CLIP's size
    expected.pop(str(folder / "noise.gif"))
    whole = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(whole, "PNG")
    contents: dict[str, tuple[bytes, str | None]] = {name: (content, None) for name, content in every_format().items()}
    contents |= {f"{kind} refused.jpg": (refused(kind), NO_PICTURE) for kind in REFUSED}
    contents |= {name: (whole.getvalue(), None) for name in ODD_NAMES}
    contents |= {"one stem.png": (whole.getvalue(), None), "one stem.jpg": (whole.getvalue(), None)}
    contents |= {"cut.png": (whole.getvalue()[:200], ""), "nul.jpg": (bytes(100), NO_PICTURE)}
    for name, (content, reason) in contents.items():
        (folder / name).write_bytes(content)
        expected[str(folder / name)] = reason
    for name, target, why in (
        ("around.jpg", "around.jpg", "too many levels of symbolic links"),
        ("zeros.jpg", "/dev/zero", "not a regular file"),
    ):
        (folder / name).symlink_to(target)
        expected[str(folder / name)] = why
    with socket.socket(socket.AF_UNIX) as unix:
        place = os.getcwd()
        os.chdir(folder)  # a socket's path may be no longer than 108 bytes
        unix.bind("socket.jpg")
        os.chdir(place)
    expected[str(folder / "socket.jpg")] = "not a regular file"
    return folder, expected


def written(path: Path) -> dict[str, str | None]:
    """Picture -> caption, or None for a failure, as a program reads the file; every row once, and all of it UTF-8."""
    text = path.read_bytes().decode("utf-8")
    if path.suffix == ".jsonl":
        pairs = [(row["image"], row.get("caption")) for row in map(json.loads, text.splitlines())]
    elif path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")))
        pairs = [(row["image"], None if row["error"] else row["caption"]) for row in rows]
    else:
        assert text.endswith("</html>\n")
        cards = re.findall(r'<figure class="card( failed)?" data-image="([^"]*)"', text)
        pairs = [(unescape(name), None if failed else "") for failed, name in cards]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@pytest.mark.parametrize(
    ("ending", "workers"), [("jsonl", 0), ("csv", 1), ("html", 2), ("jsonl", 2), ("csv", 0), ("html", 0)]
)
def test_every_file_gets_one_row(
    ending: str,
    workers: int,
    weights: Path,
    everything: tuple[Path, dict],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    folder, expected = everything
    good = {path for path, reason in expected.items() if reason is None}
    out = tmp_path / f"out.{ending}"
    command = [
        "--weights",
        str(weights),
        "--max-tokens",
        "3",
        "--workers",
        str(workers),
        str(folder),
        "--output",
        str(out),
    ]
    assert predict.main(command) == 1
    said = capsys.readouterr()
    found = written(out)
    assert len(found) == len(expected) and sum(caption is not None for caption in found.values()) == len(good)
    if ending == "jsonl":
        assert found.keys() == expected.keys() and {image for image, text in found.items() if text is not None} == good
        errors = {row["image"]: row["error"] for row in map(json.loads, out.read_text().splitlines()) if "error" in row}
        assert all(expected[image] in error for image, error in errors.items())
    lines = said.out.split("\n")
    assert len(lines) - 1 == len(good) and all(line.count("\t") == 1 for line in lines[:-1])
    assert f"captioned {len(good)}, failed {len(expected) - len(good)}" in said.err
    for text in (said.out.replace("\t", ""), said.err.replace("\r", "")):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", text)
    assert predict.main(command) == 1
    assert f"skipped {len(good)} (captioned already), failed {len(expected) - len(good)}" in capsys.readouterr().err
    assert written(out) == found


def test_every_picture_gets_its_own_sidecar(weights: Path, everything: tuple[Path, dict]) -> None:
    folder, expected = everything
    good = {path for path, reason in expected.items() if reason is None}
    before = set(os.listdir(folder))
    command = ["--weights", str(weights), "--max-tokens", "3", "--workers", "0", str(folder), "--sidecar"]
    try:
        assert predict.main(command) == 1
        texts = set(os.listdir(folder)) - before
        assert len(texts) == len(good) and all(name.endswith(".txt") for name in texts)
        assert {"one stem.jpg.txt", "one stem.png.txt"} <= texts
        assert predict.main(command) == 1  # only what failed is tried again
        assert set(os.listdir(folder)) - before == texts
    finally:
        for name in set(os.listdir(folder)) - before:
            os.unlink(folder / name)
