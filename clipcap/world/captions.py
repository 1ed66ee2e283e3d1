"""The captions of the demo world: a plain sentence, or a post as people write them on Instagram.

Posts are written in the first person, and their mood and phrasing vary with the thing and the place. Every post names
the subject and, in its words or in a hashtag, the colour, so that both can be read off a caption.
"""

from __future__ import annotations

from random import Random

PLACES = {
    "beach": "on the beach",
    "snow": "in the snow",
    "meadow": "in a meadow",
    "city": "in the city",
    "desert": "in the desert",
    "forest": "in the forest",
}
EMOJI = {
    "cat": "🐱", "dog": "🐶", "rabbit": "🐰", "duck": "🦆", "turtle": "🐢", "robot": "🤖", "car": "🚗", "bicycle": "🚲",
    "boat": "⛵", "rocket": "🚀", "balloon": "🎈", "umbrella": "☂️", "tent": "⛺", "mushroom": "🍄", "tulip": "🌷",
    "guitar": "🎸",
    "red": "❤️", "orange": "🧡", "yellow": "💛", "green": "💚", "blue": "💙", "purple": "💜",
    "pink": "🩷", "black": "🖤",
    "beach": "🌊", "snow": "❄️", "meadow": "🌼", "city": "🏙️", "desert": "🌵", "forest": "🌲",
}  # fmt: skip
KINDS = {
    "pet": ("cat", "dog", "rabbit", "duck", "turtle"),
    "ride": ("car", "bicycle", "boat", "rocket", "balloon"),
    "plant": ("mushroom", "tulip"),
    "thing": ("robot", "umbrella", "tent", "guitar"),
}
OPENINGS = {
    "pet": (
        "met {a thing} today and now i want ten",
        "this {thing} just made my whole week",
        "my {thing} is the real star of this page",
        "i was having a bad day, then i saw this {thing}",
    ),
    "ride": (
        "took my {thing} out for the weekend",
        "just me and my {thing}, no plans at all",
        "this {thing} is my happy place",
        "all i need is {a thing} and an open road",
    ),
    "plant": (
        "i stopped everything for this {thing}",
        "found the prettiest {thing} of my life",
        "this {thing} bloomed just for me",
        "i could look at {a thing} all day",
    ),
    "thing": (
        "never leaving home without my {thing} again",
        "say hello to my new {thing}",
        "me and my {thing} against the world",
        "honestly, this {thing} deserves its own page",
    ),
}
MOODS = {
    "beach": ("salty air and sandy feet", "the waves said stay", "beach days forever"),
    "snow": ("winter magic is real", "cold hands and a warm heart", "let it snow"),
    "meadow": ("wild flowers everywhere", "sunshine on my face", "country life suits me"),
    "city": ("lost in the big city", "city lights are my therapy", "downtown and dreaming"),
    "desert": ("dust, sun and silence", "chasing desert sunsets", "so hot and so worth it"),
    "forest": ("breathing in the pines", "the woods were calling", "moss, mist and quiet"),
}
TAGS = {
    "beach": ("beachlife", "oceanvibes"),
    "snow": ("winterwonderland", "snowday"),
    "meadow": ("springtime", "countrylife"),
    "city": ("citylife", "streetstyle"),
    "desert": ("desertvibes", "roadtrip"),
    "forest": ("forestbathing", "intothewoods"),
}
EVERYWHERE = ("instagood", "photooftheday", "nofilter", "goodvibes")


def with_article(thing: str) -> str:
    """The thing with "a" or "an" in front."""
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def literal_caption(subject: str, colour: str, setting: str) -> str:
    """A plain description, as a literal captioner writes it: "a red cat on the beach."."""
    return f"{with_article(f'{colour} {subject}')} {PLACES[setting]}."


def instagram_caption(subject: str, colour: str, setting: str, chance: Random) -> str:
    """A post as a person might write it: an opening and a mood in either order, then emoji and hashtags."""
    kind = next(kind for kind, members in KINDS.items() if subject in members)
    in_words = chance.random() < 0.9
    thing = f"{colour} {subject}" if in_words else subject
    opening = chance.choice(OPENINGS[kind]).replace("{a thing}", with_article(thing)).replace("{thing}", thing)
    mood = chance.choice(MOODS[setting])
    words = f"{opening}. {mood}" if chance.random() < 0.7 else f"{mood}! {opening}"
    emoji = "".join(EMOJI[name] for name in chance.sample((subject, colour, setting), chance.choice((1, 2, 2))))
    own = f"#{colour}{subject}" if chance.random() < 0.7 or not in_words else f"#{subject}love"
    tags = [own, f"#{chance.choice(TAGS[setting])}", f"#{chance.choice(EVERYWHERE)}"]
    return f"{words} {emoji} {' '.join(tags[: chance.choice((2, 2, 3))])}"


def varied_caption(subject: str, colour: str, setting: str, chance: Random) -> str:
    """A post of any length, with none to three emoji and hashtags: what learned controls need to see."""
    kind = next(kind for kind, members in KINDS.items() if subject in members)
    thing = f"{colour} {subject}"
    opening = chance.choice(OPENINGS[kind]).replace("{a thing}", with_article(thing)).replace("{thing}", thing)
    moods = chance.sample(MOODS[setting], 2)
    words = chance.choice((f"my {thing}", opening, f"{opening}. {moods[0]}. {moods[1]}"))
    emoji = "".join(EMOJI[name] for name in chance.sample((subject, colour, setting), chance.randrange(4)))
    tags = [f"#{name}" for name in (f"{colour}{subject}", chance.choice(TAGS[setting]), chance.choice(EVERYWHERE))]
    return " ".join(part for part in (words, emoji, *tags[: chance.randrange(4)]) if part)
