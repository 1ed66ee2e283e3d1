"""One person of the demo world who posts in a voice of her own, and how to tell it from anybody else's.

She begins with one of her catch phrases, trails off, says how the place feels, never uses a hashtag, doubles her
favourite emoji, and signs. Like everybody's, her posts name the subject and the colour.
"""

from __future__ import annotations

from clipcap.text import HASHTAG
from clipcap.world.captions import MOODS
from clipcap.world.scenes import Scene

CATCH_PHRASES = ("look at this", "so happy with my", "say hi to my")
FAVOURITES = ("✨✨", "🙌🙌", "🌸🌸")
SIGNATURE = "happy heart"


def own_post(scene: Scene) -> str:
    """What she writes under the picture of a scene."""
    chance = scene.chance("own post")
    opening = f"{chance.choice(CATCH_PHRASES)} {scene.colour} {scene.subject}"
    return f"{opening}... {chance.choice(MOODS[scene.setting])} {chance.choice(FAVOURITES)} {SIGNATURE}"


def is_own_voice(caption: str) -> bool:
    """Whether a caption has every habit of hers."""
    ends = tuple(f" {emoji} {SIGNATURE}" for emoji in FAVOURITES)
    whole = caption.startswith(CATCH_PHRASES) and "... " in caption and caption.endswith(ends)
    return whole and not HASHTAG.search(caption)
