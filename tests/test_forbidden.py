"""The rules about tokens against their plain reading over lists, on many random texts and in searches."""

import random
from dataclasses import replace

import pytest
import torch
from test_decoding import PROMPTS, embeddings
from tiny import STOP, VOCABULARY, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clipcap.decoding import search
from clipcap.decoding.forbidden import Forbidden
from clipcap.decoding.options import Decoding

CPU = torch.device("cpu")
RULES = ("banned", "min_tokens", "ends", "no_repeat_ngram", "word_parts", "go_on", "hashtag_signs", "most_hashtags")
ALL = Decoding(
    max_tokens=24,
    min_tokens=6,
    ends=(STOP + 2,),
    no_repeat_ngram=2,
    banned=((STOP + 1,), (7, 8), (9, 7, 8), *((token, token + 1) for token in range(40, 80))),
    word_parts=tuple(range(60, 150)),
    go_on=True,
    hashtag_signs=(5, 6, 60),
    most_hashtags=2,
)


def plain(decoding: Decoding, stop: int, text: list[int], begun: int, logits: torch.Tensor) -> set[int]:
    """What may not come behind a text, the first `begun` tokens of which are its beginning; logits (V,)."""
    every = set(range(len(logits)))
    signs, parts, size = {*decoding.hashtag_signs} & every, {*decoding.word_parts} & every, decoding.no_repeat_ngram
    ends = [(sequence[:-1], sequence[-1]) for sequence in decoding.banned if sequence and every.issuperset(sequence)]
    ends += [(text[i : i + size - 1], text[i + size - 1]) for i in range(len(text) - size + 1) if size]
    found = {last for context, last in ends if list(context) == text[max(0, len(text) - len(context)) :]}
    if len(text) < decoding.min_tokens or (decoding.go_on and 0 < len(text) == begun):
        found |= {stop, *decoding.ends} & every
    tags = [place for place in range(1, len(text)) if text[place - 1] in signs]
    if tags and parts.issuperset(text[tags[-1] :]):
        tags.pop()
    found |= {text[place] for place in tags}
    if tagged := signs.issuperset(text[-1:]) and bool(text):
        found |= every - parts
    if decoding.most_hashtags is not None and sum(token in signs for token in text) >= decoding.most_hashtags:
        found |= signs
    if not tagged and (0 < len(text) == begun or logits.softmax(-1)[[*(parts - found)]].sum() < 0.5):
        found |= parts
    return found


class Plain:
    """`Forbidden` by the plain reading."""

    def __init__(self, decoding, stop_token, vocabulary, device):
        self.decoding, self.stop = decoding, stop_token

    def behind(self, beginnings):
        def constrain(logits, tokens, rows):
            logits = logits.clone()
            for row, texts, image in zip(logits, tokens.tolist(), rows.tolist(), strict=True):
                begun = [*beginnings[image]]
                for continuation, text in zip(row, texts, strict=True):
                    found = plain(self.decoding, self.stop, begun + text, len(begun), continuation)
                    continuation[[*found]] = -torch.inf
            return logits

        return constrain


def random_decoding(chosen: tuple[str, ...], draw: random.Random) -> Decoding:
    """Rules over eleven tokens, and over some that the model does not know, so that most texts meet them."""
    values = {
        "banned": tuple(tuple(draw.choices(range(13), k=draw.randint(0, 4))) for _ in range(draw.randint(1, 20))),
        "min_tokens": draw.randint(1, 8),
        "ends": tuple(draw.sample(range(13), draw.randint(1, 2))),
        "no_repeat_ngram": draw.randint(1, 4),
        "word_parts": tuple(draw.sample(range(13), draw.randint(1, 9))),
        "go_on": True,
        "hashtag_signs": tuple(draw.sample(range(13), draw.randint(1, 3))),
        "most_hashtags": draw.randint(0, 3),
    }
    return Decoding(max_tokens=20, **{name: values[name] for name in chosen})


def test_every_rule_alone_and_with_others_is_its_plain_reading():
    """Guards against padding that counts as a token, rows with another's beginning, and a rule that undoes another."""
    draw, generator = random.Random(3), torch.Generator().manual_seed(3)
    chosen = [(), RULES, *((rule,) for rule in RULES), ("hashtag_signs", "most_hashtags", "word_parts")]
    for case in range(2000):
        some = tuple(rule for rule in RULES if draw.random() < 0.6)
        decoding, stop = random_decoding(chosen[case] if case < len(chosen) else some, draw), draw.randint(-1, 11)
        images, width, step = draw.randint(1, 4), draw.randint(1, 3), draw.choice([0, 1, 2, 5, 9])
        beginnings = [draw.choices(range(11), k=draw.choice([0, 0, 1, 2, 5])) for _ in range(images)]
        rows = torch.tensor(draw.sample(range(images), draw.randint(1, images)))
        tokens = torch.randint(11, (len(rows), width, step), generator=generator)
        logits = 3 * torch.randn(len(rows), width, 11, generator=generator)
        before = logits.clone()
        found, expected = (
            rules(decoding, stop, 11, CPU).behind(beginnings)(logits, tokens, rows) for rules in (Forbidden, Plain)
        )
        assert torch.equal(found, expected), (decoding, stop, beginnings, tokens.tolist(), rows.tolist())
        assert torch.equal(logits, before)


@pytest.mark.parametrize("method", ["greedy", "nucleus", "beam"])
def test_a_search_keeps_the_rules_as_they_read(method, monkeypatch):
    """Guards against rules for the rows of a batch that other images have left."""
    decoding = replace(ALL, method=method, beams=3, num_captions=1 if method == "greedy" else 3, return_all=True)
    model, begun = tiny_model(), [min(2, len(prompt)) for prompt in PROMPTS]
    found = model.generate_all(embeddings(), decoding, PROMPTS, begun)
    assert len({len(caption) for captions in found for caption in captions}) > 1
    monkeypatch.setattr(search, "Forbidden", Plain)
    assert model.generate_all(embeddings(), decoding, PROMPTS, begun) == found


class Operators(TorchDispatchMode):
    """The names of all operators, and the devices of what they read and wrote, but for single numbers."""

    def __init__(self):
        super().__init__()
        self.names, self.devices = [], set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.names.append(function.__name__)
        self.devices |= {x.device for x in tree_leaves((args, result)) if isinstance(x, torch.Tensor) and x.ndim}
        return result


def test_a_step_is_the_same_few_operators_however_many_rows():
    """Guards against a wait for a GPU at every token: for the texts, and for lists of tokens on their way to it."""
    forbidden, called = Forbidden(ALL, STOP, VOCABULARY, CPU), []
    for images, width in ((1, 1), (9, 3)):
        constrain = forbidden.behind([[7, 8]] * images)
        for step in (0, 1, 12):
            tokens = torch.full((images, width, step), 7)
            with Operators() as operators:
                constrain(torch.zeros(images, width, VOCABULARY), tokens, torch.arange(images))
            called.append(operators.names)
    assert called[:3] == called[3:]
    for names in called:
        assert not any(name.startswith(("_local_scalar", "lift_fresh", "nonzero")) for name in names), names
        assert len(names) < 120 and sum(name.startswith("index") for name in names) <= 12
