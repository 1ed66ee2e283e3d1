"""The options of a search for captions. The command line reads them, so torch is not imported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral, Real

from clipcap.errors import UserError, at_least

METHODS = ("greedy", "nucleus", "beam")
SEQUENCES = 256  # captions decoded side by side: enough to keep a CPU or a GPU busy, in under a gigabyte of cache
# Continuations of one image, and their tokens. They share one cache and each looks at all of it, so that time grows
# with the square of their number; this many tokens take 1.3 GB of cache with GPT-2, and 11 GB with GPT-2 XL, in fp32.
MOST_CONTINUATIONS = 256
MOST_TOKENS = 256 * 67
POSITIONS = 1024  # that a GPT-2 has: no caption gets longer
# Beyond these temperatures, samples are as good as greedy, or as good as drawn blindly, and float32 overflows at last.
TEMPERATURES = (0.001, 1000.0)


@dataclass(frozen=True)
class Decoding:
    """How to search for captions.

    Attributes:
        method: "greedy", "nucleus" (samples) or "beam".
        beams: beams per image, at most 256.
        max_tokens: the most tokens a caption may have, including the stop token. ClipCap's limit is 67. No caption gets
            longer than GPT-2 has positions for.
        min_tokens: the fewest tokens a caption may have, not counting the stop token.
        temperature: logits are divided by it before nucleus sampling; from 0.001 to 1000.
        top_p: the probability mass of the nucleus that samples are drawn from.
        top_k: only the `top_k` most probable tokens can be drawn; 0 sets no limit.
        seed: of nucleus sampling; None draws anew at every call. An image's samples depend on the seed and on its own
            embedding, neither on its batch nor on its place in it.
        num_captions: how many samples, or how many of the best beams, each image gets; at most 256. The more tokens a
            caption may have, the fewer beams or samples there may be (see `widest`).
        stop_token: the token id that ends a caption; None for the checkpoint's own, -1 for none.
        ends: tokens that end a caption's text without ending the search, as end-of-text does for weights that stop at
            another token. They may not come where the stop token may not.
        return_all: return every sample or beam, best first, instead of only the best.
        no_repeat_ngram: no sequence of this many tokens may occur twice; 0 sets no limit.
        banned: token sequences that must not occur.
        word_parts: the tokens that go on with a word. None of them comes right behind a caption's beginning, or where
            the model mostly wishes for other tokens or forbidden ones: else words would join that those keep apart.
        go_on: whether a caption with a beginning must have a token behind it other than the stop token.
        hashtag_signs: the tokens that hold "#". They are followed by one of `word_parts`, which does not come again.
        most_hashtags: how many of `hashtag_signs` a caption may have; None sets no limit.

    Raises:
        UserError: a value is out of its range.
    """

    method: str = "greedy"
    beams: int = 5
    max_tokens: int = 67
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 0
    seed: int | None = 0
    num_captions: int = 1
    stop_token: int | None = None
    ends: tuple[int, ...] = ()
    return_all: bool = False
    no_repeat_ngram: int = 0
    banned: tuple[tuple[int, ...], ...] = field(default=(), repr=False)
    word_parts: tuple[int, ...] = field(default=(), repr=False)
    go_on: bool = False
    hashtag_signs: tuple[int, ...] = field(default=(), repr=False)
    most_hashtags: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"unknown decoding method {self.method!r}; choose one of {', '.join(METHODS)}")
        _check_kinds(self)
        at_least(1, beams=self.beams, max_tokens=self.max_tokens, num_captions=self.num_captions)
        at_least(0, min_tokens=self.min_tokens, top_k=self.top_k, no_repeat_ngram=self.no_repeat_ngram, seed=self.seed)
        if self.min_tokens >= self.max_tokens:
            raise UserError(f"min_tokens ({self.min_tokens}) must be below max_tokens ({self.max_tokens})")
        if not self.temperature > 0:
            raise UserError(f"temperature must be above 0, not {self.temperature}; for no randomness use greedy")
        if not TEMPERATURES[0] <= self.temperature <= TEMPERATURES[1]:
            raise UserError(
                f"temperature must be from {TEMPERATURES[0]} to {TEMPERATURES[1]:g}, not {self.temperature}"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        at_most_captions(beams=self.beams, num_captions=self.num_captions)
        if self.width > self.widest:
            name = "beams" if self.method == "beam" and self.beams >= self.num_captions else "num_captions"
            raise UserError(
                f"{name} must be at most {self.widest} for captions of {self.max_tokens} tokens, not {self.width}: "
                "all of them share one cache; take fewer, or a smaller max_tokens"
            )

    @property
    def width(self) -> int:
        """K, the number of continuations of each image that are decoded side by side."""
        if self.method == "beam":
            return max(self.beams, self.num_captions)
        return self.num_captions if self.method == "nucleus" else 1

    @property
    def batch(self) -> int:
        """How many images are decoded together where nobody says how many."""
        return max(8, SEQUENCES // self.width)

    @property
    def widest(self) -> int:
        """The largest `width` that captions of up to `max_tokens` tokens may have."""
        return min(MOST_CONTINUATIONS, MOST_TOKENS // min(self.max_tokens, POSITIONS))


def at_most_captions(**values: int) -> None:
    """Raise a UserError for the first number of captions or beams, given by name, that is too large to decode."""
    for name, value in values.items():
        if value > MOST_CONTINUATIONS:
            raise UserError(
                f"{name} must be at most {MOST_CONTINUATIONS}, not {value}: time grows with the square of their number"
            )


def _check_kinds(decoding: Decoding) -> None:
    """Raise a UserError for a number that is none, and for a fraction where a whole number is meant."""
    whole = ("beams", "max_tokens", "min_tokens", "top_k", "num_captions", "no_repeat_ngram")
    for name in (*whole, "seed", "stop_token", "temperature", "top_p"):
        value = getattr(decoding, name)
        if value is None and name in ("seed", "stop_token"):
            continue
        kind, said = (Real, "a number") if name in ("temperature", "top_p") else (Integral, "a whole number")
        if not isinstance(value, kind):
            raise UserError(f"{name} must be {said}, not {value!r}")
    try:
        whole_ids = all(isinstance(token, Integral) for sequence in decoding.banned for token in sequence)
    except TypeError:
        whole_ids = False
    if not whole_ids:
        raise UserError(f"banned must be sequences of token ids, not {str(decoding.banned)[:100]}")
