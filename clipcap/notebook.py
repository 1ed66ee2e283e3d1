"""What the notebooks show: pictures with captions side by side, and a blind rating like that of the published study."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcap.evaluation.ratings import summary
from clipcap.page import escape, picture_uri

if TYPE_CHECKING:
    from IPython.display import HTML
    from ipywidgets import FileUpload, VBox
    from PIL.Image import Image

RATINGS = range(6)  # 0: the caption does not suit the picture at all, 5: it suits perfectly


def sample_images(count: int = 4) -> list[Image]:
    """Drawn scenes, which come with the project and which its demo weights were not trained on."""
    from clipcap.world.scenes import scenes

    return [scene.draw() for scene in scenes("test", count)]


def sample_photos() -> list[Image]:
    """A cat, a cup of coffee and a rocket, which come with scikit-image; drawn scenes where it is not installed.

    They are free to use: CC0 by Stefan van der Walt, CC0 by Rachel Michetti, and public domain by SpaceX
    (https://scikit-image.org/docs/stable/api/skimage.data.html).
    """
    from clipcap.clip.images import open_image

    found = find_spec("skimage")
    folder = Path(found.origin or "").parent / "data" if found else Path()
    photos = [folder / name for name in ("chelsea.png", "coffee.png", "rocket.jpg")]
    return [open_image(photo) for photo in photos] if all(map(Path.is_file, photos)) else sample_images(3)


def uploaded_images(upload: FileUpload) -> list[Image]:
    """The pictures chosen in an ipywidgets `FileUpload` (version 7 gives a dict, version 8 a tuple), upright.

    Raises:
        UnreadableImage: one of them cannot be used; the message names it.
    """
    from clipcap.clip.images import UnreadableImage, open_image

    given = upload.value
    images = []
    for name, file in given.items() if isinstance(given, dict) else [(file["name"], file) for file in given]:
        try:
            images.append(open_image(bytes(file["content"])))
        except UnreadableImage as error:
            raise UnreadableImage(f"{name}: {error}") from None
    return images


def side_by_side(images: Sequence[str | Path | Image], captions: Mapping[str, Sequence[str | Sequence[str]]]) -> HTML:
    """A table with a row per picture. `captions` is model -> for each picture a caption, or several."""
    from IPython.display import HTML

    rows = ""
    for number, image in enumerate(images):
        told = "".join(
            f'<p><small>{escape(name)}</small><br><span dir="auto">{_lines(said[number])}</span></p>'
            for name, said in captions.items()
        )
        picture = f'<img src="{picture_uri(image, longest=200)}" alt="picture {number + 1}">'
        rows += f'<tr><td>{picture}</td><td style="text-align: left; vertical-align: top">{told}</td></tr>'
    return HTML(f"<table>{rows}</table>")


def _lines(said: str | Sequence[str]) -> str:
    return "<br>".join(map(escape, [said] if isinstance(said, str) else said))


class BlindRating:
    """Shows one picture at a time with the captions of all models, shuffled and without names, to be rated 0 to 5.

    Attributes:
        widget: what a notebook shows.
        ratings: for each picture, model -> rating.
    """

    def __init__(
        self, images: Sequence[str | Path | Image], captions: Mapping[str, Sequence[str]], seed: int = 0
    ) -> None:
        import ipywidgets

        self.images, self.captions, self.seed = images, captions, seed
        self.ratings: list[dict[str, int]] = [{} for _ in images]
        self.number = 0
        self.widget: VBox = ipywidgets.VBox()
        self._show()

    def _show(self) -> None:
        """Fill the widget with the current picture, its captions in an order of their own, and two buttons."""
        import ipywidgets

        heading = ipywidgets.HTML(
            f"Picture {self.number + 1} of {len(self.images)}: how well does each caption suit it as a post?<br>"
            f'<img src="{picture_uri(self.images[self.number])}" alt="">'
        )
        names = random.Random(f"{self.seed} {self.number}").sample(list(self.captions), len(self.captions))
        back, on = (ipywidgets.Button(description=text) for text in ("Previous", "Next"))
        back.disabled, on.disabled = self.number == 0, self.number + 1 == len(self.images)
        back.on_click(lambda _: self._turn(-1))
        on.on_click(lambda _: self._turn(1))
        scales = [part for name in names for part in self._scale(name)]
        self.widget.children = [heading, *scales, ipywidgets.HBox([back, on])]

    def _scale(self, name: str) -> list[Any]:
        """A model's caption and its buttons: a dash for no rating yet, then the six ratings."""
        import ipywidgets

        given = self.ratings[self.number]
        choices = [("–", None), *((str(rating), rating) for rating in RATINGS)]
        scale = ipywidgets.ToggleButtons(options=choices, value=given.get(name), style={"button_width": "auto"})

        def rate(change: dict[str, Any]) -> None:
            given.pop(name, None)
            if change["new"] is not None:
                given[name] = change["new"]

        scale.observe(rate, "value")
        return [ipywidgets.HTML(escape(self.captions[name][self.number])), scale]

    def _turn(self, step: int) -> None:
        """Go to another picture, but not beyond the first or the last."""
        self.number = min(max(self.number + step, 0), len(self.images) - 1)
        self._show()

    def table(self) -> HTML:
        """Mean rating of each model, best first, with its 95% interval over pictures."""
        from IPython.display import HTML

        rated = {name: [[given[name]] for given in self.ratings if name in given] for name in self.captions}
        sums = {name: summary(values) for name, values in rated.items() if values}
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{found['mean']:.2f}</td>"
            f"<td>{found['low']:.2f} to {found['high']:.2f}</td><td>{len(rated[name])}</td></tr>"
            for name, found in sorted(sums.items(), key=lambda item: -item[1]["mean"])
        )
        heads = "<tr><th>model</th><th>mean rating</th><th>95% interval</th><th>pictures rated</th></tr>"
        return HTML(f"<table>{heads}{rows}</table>" if rows else "<p>Nothing is rated yet.</p>")
