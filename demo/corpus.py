"""The text that the tiny GPT-2 learns from before it is trained on pictures.

GPT-2 has read millions of web pages: plain sentences, posts with hashtags and emoji, and pages whose texts are all
about one picture. That is why training few of its parameters is enough to turn a captioner towards Instagram: it can
already write posts, and keep to a subject from one text to the next. The tiny GPT-2 is given the same start on purpose,
scaled down. Its pages have up to three texts about one thing. They mention many more things, colours and places than
the demo world draws, and use the phrases of the demo world's posts among others. The held-out combinations never occur.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from clipcap.world.captions import EMOJI, EVERYWHERE, MOODS, OPENINGS, PLACES, TAGS, with_article
from clipcap.world.scenes import COLOURS, combinations
from clipcap.world.subjects import SUBJECTS

MORE_THINGS = (
    "horse", "bus", "lamp", "chair", "bird", "teapot", "kite", "train", "fox", "frog", "drum", "house", "cup", "book",
    "hat", "scooter", "bear", "plane", "rose", "bench", "clock", "pony", "violin", "camera", "suitcase", "cactus",
)  # fmt: skip
MORE_COLOURS = ("white", "brown", "grey", "golden", "silver", "turquoise")
MORE_PLACES = (
    "in the garden", "by the lake", "on the street", "in the park", "at home", "on a hill", "near the river",
    "in the kitchen", "on the balcony", "at the station", "under a bridge", "in the mountains",
)  # fmt: skip
MORE_OPENINGS = (
    "look at this {thing}", "so happy with my {thing}", "i just love this {thing}", "today i found {a thing}",
    "my {thing} and me", "can you believe this {thing}", "finally got my own {thing}", "say hi to my {thing}",
    "i want {a thing} too", "weekend with my {thing}", "this {thing} is everything", "never too old for {a thing}",
)  # fmt: skip
MORE_MOODS = (
    "good times", "so much fun", "what a day", "feeling blessed", "slow mornings", "weekend mood", "sun is out",
    "no place like home", "coffee first", "dream big", "life is good", "happy heart", "best day ever", "take me back",
)  # fmt: skip
MORE_TAGS = ("love", "happy", "travel", "weekend", "nature", "sunset", "mood", "home", "style", "fun", "summer", "life")
MORE_EMOJI = ("😍", "😂", "✨", "🔥", "🙌", "☀️", "🥰", "😎", "🎉", "💫", "🌸", "☕")
WORDS = (
    *(*SUBJECTS, *MORE_THINGS, *COLOURS, *MORE_COLOURS, *MORE_TAGS, *EVERYWHERE),
    *(tag for tags in TAGS.values() for tag in tags),
)  # of which hashtags are made
SIGNS = (*EMOJI.values(), *MORE_EMOJI)
LITERAL_FORMS = ("{it}.", "{it}.", "a photo of {it}.", "a picture of {it}.", "there is {it}.", "this is {it}.")
BRIDGES = ("\n", " ", " caption: ", " and a social media post would caption it: ", " posted: ")


def documents(count: int, seed: int = 0) -> Iterator[str]:
    """Yield `count` short documents, each about one thing: up to three texts, descriptions and posts in any order."""
    chance = Random(f"corpus {seed}")
    drawn = combinations("train")
    for _ in range(count):
        topic = _topic(chance, drawn)
        texts = [chance.choice((_description, _post))(chance, *topic) for _ in range(chance.choice((1, 2, 2, 3)))]
        yield "".join(text if i == 0 else chance.choice(BRIDGES) + text for i, text in enumerate(texts))


def _topic(chance: Random, drawn: list[tuple[str, str, str]]) -> tuple[str, str, str]:
    """Thing, colour and place: all from the drawn world, or at least one of them never drawn."""
    thing, colour, place = chance.choice(drawn)
    if chance.random() < 0.5:
        return thing, colour, place
    changed = chance.randrange(1, 8)
    return (
        chance.choice(MORE_THINGS) if changed & 1 else thing,
        chance.choice(MORE_COLOURS) if changed & 2 else colour,
        chance.choice(MORE_PLACES) if changed & 4 else place,
    )


def _description(chance: Random, thing: str, colour: str, place: str) -> str:
    return chance.choice(LITERAL_FORMS).replace(
        "{it}", f"{with_article(f'{colour} {thing}')} {PLACES.get(place, place)}"
    )


def _post(chance: Random, thing: str, colour: str, place: str) -> str:
    named = f"{colour} {thing}" if chance.random() < 0.85 else thing
    openings = chance.choice((MORE_OPENINGS, *OPENINGS.values()))
    opening = chance.choice(openings).replace("{a thing}", with_article(named)).replace("{thing}", named)
    mood = chance.choice(MOODS[place] if place in MOODS and chance.random() < 0.5 else MORE_MOODS)
    known = [EMOJI[name] for name in (thing, colour, place) if name in EMOJI]
    emoji = "".join(chance.sample([*known, *chance.sample(MORE_EMOJI, 2)], chance.choice((1, 2))))
    tags = [f"#{colour}{thing}", f"#{thing}love", f"#{chance.choice(MORE_TAGS)}", f"#{chance.choice(EVERYWHERE)}"]
    tags += [f"#{tag}" for tag in TAGS.get(place, ())]
    shown = " ".join(chance.sample(tags, chance.choice((1, 2, 3))))
    return chance.choice(("{0}. {1} {2} {3}", "{1}! {0} {2} {3}", "{0} {2} {3}")).format(opening, mood, emoji, shown)
