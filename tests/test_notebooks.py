"""The notebooks run from top to bottom on the demo's weights, as they stand; so do the helpers that they call."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from clipcap.clip.images import UnreadableImage
from clipcap.notebook import BlindRating, sample_images, sample_photos, side_by_side, uploaded_images
from clipcap.weights.published import resolve_weights

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
# What stands in the notebooks -> what the tests put there.
WEIGHTS = {'WEIGHTS = ["coco", "conceptual"]': 'WEIGHTS = ["demo", "my weights/other.pt"]'}
WEIGHTS |= {'WEIGHTS = "coco-transformer"': 'WEIGHTS = "my weights/other.pt"'}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a notebook that the public names have left behind, and a path that is cut at its spaces."""
    (tmp_path / "my weights").mkdir()
    shutil.copy(resolve_weights("demo"), tmp_path / "my weights/other.pt")
    monkeypatch.setenv("PYTHONPATH", str(path.parent.parent))
    notebook = nbformat.read(path, as_version=4)
    (settings,) = [cell for cell in notebook.cells if cell.source.partition("WEIGHTS = ")[1] and cell.id == "code-3"]
    (wanted,) = [text for text in WEIGHTS if text in settings.source]
    settings.source = settings.source.replace(wanted, WEIGHTS[wanted])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        output.data["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    pictures = [html for html in shown if "<img" in html]
    assert len(pictures) >= 2
    for html in pictures:
        captions = re.findall(r"<small>(.+?)</small><br>(.*?)</p>", html)
        assert captions and all(text.strip() for _, text in captions), "a picture without a caption"
    assert len(nbformat.writes(notebook)) < 200_000


def test_one_name_of_weights_needs_no_brackets() -> None:
    """The other notebook asks for a text: here, each of its letters was looked for as weights."""
    (path,) = [path for path in NOTEBOOKS if path.stem.startswith("clip_prefix")]
    code = {cell.id: cell.source for cell in nbformat.read(path, as_version=4).cells}
    names = {"WEIGHTS": "demo", "photos": sample_images(1)}
    for cell in ("code-6", "code-8", "code-13"):
        exec(code[cell], names)
    assert [*names["captioners"]] == ["demo"] and len(names["choices"][0]) == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_small_and_say_where_they_open(path: Path) -> None:
    """Guards against megabytes of stored pictures, a model defined twice, and a badge that opens another file."""
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size < 200_000
    badges = [line for line in notebook.cells[0].source.splitlines() if "colab-badge.svg" in line]
    assert len(badges) <= 1  # none until `make readme` knows the address
    for badge in badges:
        assert f"/blob/main/notebooks/{path.name})" in badge and f'"{repository(badge)}"' in notebook.cells[1].source
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "nn.Module" not in code and "class " not in code
    assert all(len(cell.source.splitlines()) <= 12 for cell in notebook.cells if cell.cell_type == "code")


def repository(badge: str) -> str:
    return re.sub(r".*colab.research.google.com/github/(.+?)/blob/.*", r"https://github.com/\1", badge)


INSTALL = """
import importlib.util
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance(colors="NoColor")
shell.register_magic_function(lambda line: print("pip", line), magic_name="pip")
importlib.util.find_spec = lambda name, find=importlib.util.find_spec: None if name == "clipcap" else find(name)
shell.run_cell({code!r})
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_install_from_the_address_or_say_what_to_set(path: Path, tmp_path: Path) -> None:
    """Guards against a notebook in Colab that installs from an address that nobody has filled in."""
    code = nbformat.read(path, as_version=4).cells[1].source
    url = "https://github.com/someone/captions"
    environment = os.environ | {"IPYTHONDIR": str(tmp_path)}
    for address, expected in (
        (url, f'pip install --quiet "clipcap-instagram[published] @ git+{url}"'),
        ("", "ImportError: clipcap is not installed: set REPOSITORY above"),
    ):
        cell = re.sub(r'REPOSITORY = ".*?"', f'REPOSITORY = "{address}"', code)
        command = [sys.executable, "-c", INSTALL.format(code=cell)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert expected in done.stdout, done.stdout + done.stderr
        assert done.stdout.startswith("pip install") == bool(address)


def test_sample_photos_are_those_of_a_package_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against samples that are downloaded, or missing where scikit-image is not installed."""
    assert [image.size for image in sample_photos()] == [image.size for image in sample_images(3)]
    (tmp_path / "skimage/data").mkdir(parents=True)
    (tmp_path / "skimage/__init__.py").write_text("raise ImportError('it is not needed')")
    for width, name in enumerate(("chelsea.png", "coffee.png", "rocket.jpg"), start=40):
        Image.new("RGB", (width, 20)).save(tmp_path / "skimage/data" / name)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [image.size for image in sample_photos()] == [(40, 20), (41, 20), (42, 20)]


def test_pictures_stand_beside_their_own_captions() -> None:
    """Guards against captions that are shown under another picture, and text that is taken for HTML."""
    html = side_by_side(sample_images(2), {"a": ["<b>one", "two"], "b": [["three", "four"], ["five"]]}).data
    first, second = html.split("</tr>")[:2]
    assert "&lt;b&gt;one" in first and "three<br>four" in first and "two" in second and "five" in second


def test_uploads_are_read_as_both_widget_versions_give_them() -> None:
    """Guards against Colab's older ipywidgets, whose uploads are a dict, and against rotated phone photos."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    Image.new("RGB", (40, 20)).save(file, "JPEG", exif=exif)
    upload = {"content": memoryview(file.getvalue()), "name": "a.jpg"}
    for value in ((upload,), {"a.jpg": {**upload, "content": file.getvalue()}}):
        (image,) = uploaded_images(SimpleNamespace(value=value))
        assert image.size == (20, 40)
    assert uploaded_images(SimpleNamespace(value=())) == []
    broken = {"content": b"no picture", "name": "b.jpg"}
    for value in ((upload, broken), {"a.jpg": upload, "b.jpg": {"content": b"no picture"}}):
        with pytest.raises(UnreadableImage, match=r"^b\.jpg: not a picture"):
            uploaded_images(SimpleNamespace(value=value))


def test_blind_rating_hides_shuffles_and_sums_up() -> None:
    """Guards against ratings that are counted for another model than the one whose caption was rated."""
    pictures = sample_images(6)
    captions = {name: [f"{name} says {number}" for number in range(6)] for name in ("good", "bad")}
    rating = BlindRating(pictures, captions)
    assert "Nothing is rated" in rating.table().data
    orders = set()
    for number in range(6):
        *pairs, steps = rating.widget.children[1:]
        texts, scales = pairs[::2], pairs[1::2]
        orders.add(tuple(text.value.split()[0] for text in texts))
        for text, scale in zip(texts, scales, strict=True):
            assert text.value.endswith(f"says {number}")
            scale.value = 5 if text.value.startswith("good") else 1
        steps.children[1].click()
    assert orders == {("good", "bad"), ("bad", "good")}
    assert rating.ratings == [{"good": 5, "bad": 1}] * 6
    assert "<td>good</td><td>5.00</td><td>5.00 to 5.00</td><td>6</td>" in rating.table().data
    rating.widget.children[-1].children[0].click()
    assert rating.number == 4 and rating.widget.children[2].value in (1, 5)


def test_stored_outputs_are_plain_json() -> None:
    """Guards against a notebook that Colab or GitHub cannot open."""
    for path in NOTEBOOKS:
        nbformat.validate(json.loads(path.read_text(encoding="utf-8")))
