"""One person of the demo world who posts in a voice of her own, and how to tell it from anybody else's.

She writes in lower case, begins with one of her catch phrases, has favourite emoji that always come twice, never uses a
hashtag, and signs. Like everybody's, her posts name the subject and the colour.
"""

from __future__ import annotations

from clipcap.text import HASHTAG
from clipcap.world.captions import with_article
from clipcap.world.scenes import Scene

CATCH_PHRASES = ("ok so listen,", "not me crying over", "plot twist:")
OPENINGS = {
    "ok so listen,": ("i found {a thing}", "i did not need {a thing} but here we are", "{a thing} just happened to me"),
    "not me crying over": ("this {thing} again", "{a thing} at my age", "this {thing} like it is nothing"),
    "plot twist:": ("{a thing} is all i wanted", "this {thing} knows my name", "i live with {a thing} now"),
}
PLACES = {
    "beach": "there is sand in my tea",
    "snow": "my toes are frozen and i regret nothing",
    "meadow": "the bees approve",
    "city": "the pigeons are jealous",
    "desert": "send water",
    "forest": "the trees promised not to tell",
}
FAVOURITES = ("✨✨", "🙌🙌", "🌸🌸")
SIGNATURE = "xo mia"


def own_post(scene: Scene) -> str:
    """What she writes under the picture of a scene."""
    chance = scene.chance("own post")
    thing = f"{scene.colour} {scene.subject}"
    phrase = chance.choice(CATCH_PHRASES)
    opening = chance.choice(OPENINGS[phrase]).replace("{a thing}", with_article(thing)).replace("{thing}", thing)
    return f"{phrase} {opening}... {PLACES[scene.setting]} {chance.choice(FAVOURITES)} {SIGNATURE}"


def is_own_voice(caption: str) -> bool:
    """Whether a caption has every habit of hers."""
    return (
        caption == caption.lower()
        and caption.startswith(CATCH_PHRASES)
        and caption.endswith(tuple(f"{emoji} {SIGNATURE}" for emoji in FAVOURITES))
        and not HASHTAG.search(caption)
    )
