"""Loss curves and picture pages."""

import io
import re
import sys

import pytest
from PIL import Image

from clipcap.page import picture_page
from clipcap.training.plots import losses_svg, plot_losses

ROWS = [{"step": step, "epoch": step / 10, "train_loss": 5 / step} for step in range(1, 11)]
ROWS += [{"step": 5, "epoch": 0.5, "val_loss": 1.2}, {"step": 10, "epoch": 1.0, "val_loss": 0.7}]


@pytest.mark.parametrize("runs", [{}, {"base": []}, {"base": ROWS}, {"base": ROWS[:1], "$a_b^$": ROWS[-1:]}])
def test_png_for_runs_of_any_length(tmp_path, runs):
    """A run that stopped before its first validation, or has not begun, must not crash the training loop."""
    plot_losses(runs, tmp_path / "loss.png", "Loss")
    assert Image.open(tmp_path / "loss.png").size[0] > 900


def test_plotting_leaves_pyplot_alone(tmp_path, monkeypatch):
    """pyplot would open a window, choose a backend for the user's notebook, and keep every figure alive."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # to import it is an error
    plot_losses({"base": ROWS}, tmp_path / "loss.png", "Loss")


def test_svg_names_each_run_and_follows_the_page_colour():
    """Black axes vanish on a dark page; a name with markup would break out of it."""
    svg = losses_svg({"base": ROWS, "<lora>": ROWS}, "Loss")
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>")
    assert "currentColor" in svg and "#000000" not in svg
    assert "base" in svg and "&lt;lora&gt;" in svg and "<lora>" not in svg
    assert losses_svg({"base": ROWS, "<lora>": ROWS}, "Loss") == svg  # a report is the same each time it is written


def test_picture_page_is_escaped_and_self_contained(tmp_path):
    """A caption is text from a stranger: it must never become markup; the page must work from a mail attachment."""
    picture = Image.new("RGBA", (900, 300), "red")
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    picture.save(tmp_path / "red.png")
    rows = [
        {"image": image, "captions": {"a&b": "<script>alert(1)</script> 😍 #sun"}}
        for image in (picture, encoded.getvalue(), tmp_path / "red.png")
    ]
    picture_page(rows, tmp_path / "page.html", "Pictures <3")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html.count("data:image/jpeg;base64,") == 3
    assert "<script>" not in html and "&lt;script&gt;" in html and "😍 #sun" in html
    assert "a&amp;b" in html and "Pictures &lt;3" in html
    assert not re.search(r'(src|href)="(?!data:)|url\(|@import', html)
