"""The notebooks run from top to bottom on the demo's weights, as they stand; so do the helpers that they call."""

import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from clipcap.notebook import BlindRating, sample_images, side_by_side, uploaded_images
from clipcap.weights.published import resolve_weights

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
COMPARED = {"clip_prefix_captioning_inference": "demo other.pt", "transformer_inference": "demo"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a notebook that the public names have left behind."""
    shutil.copy(resolve_weights("demo"), tmp_path / "other.pt")
    monkeypatch.setenv("CLIPCAP_WEIGHTS", COMPARED[path.stem])
    monkeypatch.setenv("PYTHONPATH", str(path.parent.parent))
    notebook = nbformat.read(path, as_version=4)
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_small_and_say_where_they_open(path: Path) -> None:
    """Guards against megabytes of stored pictures, a model defined twice, and a badge that opens another file."""
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size < 200_000
    assert (
        f"/blob/main/notebooks/{path.name})" in notebook.cells[0].source
        and "colab-badge.svg" in notebook.cells[0].source
    )
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "nn.Module" not in code and "class " not in code
    assert all(len(cell.source.splitlines()) <= 12 for cell in notebook.cells if cell.cell_type == "code")


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
