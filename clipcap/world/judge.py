"""Judge captions of the demo world: whether they name the right thing and colour, and whether they read like posts.

Only the text is looked at. A caption is right about the subject if it names that subject and no other, in its words or
in a hashtag ("#redcat"). The same holds for the colour; hearts in the right colour do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clipcap.text import EMOJI, HASHTAG
from clipcap.world.scenes import COLOURS, Scene
from clipcap.world.subjects import SUBJECTS

WORD = re.compile(r"#?\w+")
TAG = re.compile(f"#(?P<colour>{'|'.join(COLOURS)})?(?P<subject>{'|'.join(SUBJECTS)})(s|love)?")


@dataclass(frozen=True)
class Verdict:
    """What is right about one caption (0 or 1), or the share of many captions for which it is right (0 to 1)."""

    subject: float
    colour: float
    instagram: float

    def __str__(self) -> str:
        told = {"right subject": self.subject, "right colour": self.colour, "Instagram style": self.instagram}
        return "   ".join(f"{what} {share:6.1%}" for what, share in told.items())


def named(caption: str, names: Iterable[str], part: str) -> set[str]:
    """Which of `names` a caption mentions; `part` is the group of TAG that finds them in a hashtag."""
    words = WORD.findall(caption.lower())
    tagged = {match[part] for word in words if (match := TAG.fullmatch(word))}
    return {name for name in names if name in words or f"{name}s" in words or f"#{name}" in words or name in tagged}


def is_instagram(caption: str) -> bool:
    """A post carries an emoji or a hashtag; a plain description carries neither."""
    return bool(EMOJI.search(caption) or HASHTAG.search(caption))


def judge(caption: str, scene: Scene) -> Verdict:
    """The verdict on one caption of a scene; its parts are true or false."""
    return Verdict(
        subject=named(caption, SUBJECTS, "subject") == {scene.subject},
        colour=named(caption, COLOURS, "colour") == {scene.colour},
        instagram=is_instagram(caption),
    )


def shares(captions: Sequence[str], scenes: Sequence[Scene]) -> Verdict:
    """The mean of the verdicts on captions, each with the scene that it describes."""
    verdicts = [judge(caption, scene) for caption, scene in zip(captions, scenes, strict=True)]
    parts = ("subject", "colour", "instagram")
    return Verdict(*(sum(getattr(verdict, part) for verdict in verdicts) / max(len(verdicts), 1) for part in parts))
