"""Caption metrics in Python: they need no Java, and emoji and hashtags count as words.

A caption is a list of tokens (see `tokenize`); references are one list of captions per image. On the same tokens BLEU,
ROUGE-L and CIDEr-D equal those of pycocoevalcap, whose own tokenizer deletes emoji; `treebank` has its tokens.

Shapes: N images, R true captions of one image, C CLIP width.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import regex

from clipcap.text import EMOJI, EMOJI_PATTERN, UNSPACED

Tokens = Sequence[str]
References = Sequence[Sequence[Tokens]]
NGram = tuple[str, ...]

_WORD = r"[[\p{L}\p{M}\p{N}_]--[\uFE0E\uFE0F\u20E3]]"  # what belongs to emoji are marks, too
_SPACED = rf"[{_WORD}--{UNSPACED}]"  # in other scripts each character counts as a word, with the marks behind it
_TOKEN = regex.compile(
    rf"""https?://\S+ | {EMOJI_PATTERN} | [\#\uFF03](?:{_WORD}|[\u200C\u200D](?={_WORD})|{EMOJI_PATTERN})+
      | @{_WORD}+(?:\.{_WORD}+)* | {UNSPACED}\p{{M}}* | {_SPACED}+(?:['\u200C\u200D]{_SPACED}+)*""",
    regex.VERBOSE | regex.VERSION1,
)


def tokenize(caption: str) -> list[str]:
    """Caption -> lower-case tokens: words, numbers, #hashtags, @mentions, links, and each emoji by itself.

    "I'm SO happy!!😍😍 #sunset @jane.doe" -> i'm so happy 😍 😍 #sunset @jane.doe. Punctuation and spaces are dropped;
    an emoji keeps its skin tone and joined parts. Words are never split, not at apostrophes and not within hashtags. In
    scripts that are written without blanks, such as Chinese, Japanese and Thai, each character is a token.
    """
    text = unicodedata.normalize("NFC", caption.lower().replace("\u2019", "'"))
    return _TOKEN.findall(text)


def bleu(candidates: Sequence[Tokens], references: References) -> list[float]:
    """BLEU-1 to BLEU-4 of a corpus, each 0 to 1, with the closest reference length (Papineni et al. 2002)."""
    matched, proposed = np.zeros(4), np.zeros(4)
    candidate_length = reference_length = 0
    for candidate, captions in zip(candidates, references, strict=True):
        counts = _ngrams(candidate)
        limits: Counter[NGram] = Counter()  # how often an n-gram may count: as often as one true caption has it
        for caption in captions:
            limits |= _ngrams(caption)
        for ngram, count in counts.items():
            matched[len(ngram) - 1] += min(count, limits[ngram])
            proposed[len(ngram) - 1] += count
        candidate_length += len(candidate)
        reference_length += min((abs(len(caption) - len(candidate)), len(caption)) for caption in captions)[1]
    # The small terms are pycocoevalcap's: with them the score of a corpus without any match, or any words, is defined.
    precision = (matched + 1e-15) / (proposed + 1e-9)
    ratio = (candidate_length + 1e-15) / (reference_length + 1e-9)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return [float(brevity * score) for score in np.cumprod(precision) ** (1 / np.arange(1, 5))]


def rouge_l(candidates: Sequence[Tokens], references: References, beta: float = 1.2) -> float:
    """Mean ROUGE-L, 0 to 1: F-score of the longest common subsequence, by its best precision and recall (Lin 2004)."""
    scores = []
    for candidate, captions in zip(candidates, references, strict=True):
        candidate = candidate or [""]  # as in pycocoevalcap, which splits an empty caption into one empty word
        captions = [caption or [""] for caption in captions]
        common = [_common_subsequence(candidate, caption) for caption in captions]
        precision = max(common) / len(candidate)
        recall = max(length / len(caption) for length, caption in zip(common, captions, strict=True))
        scores.append((1 + beta**2) * precision * recall / (recall + beta**2 * precision) if precision else 0.0)
    return float(np.mean(scores))


def _common_subsequence(a: Tokens, b: Tokens) -> int:
    """Length of the longest common subsequence, by one addition of integers of len(a) bits per token of b (Hyyrö 2004).

    The bits of `row` that turn 0 mark the tokens of `a` at which the subsequence grows.
    """
    positions: dict[str, int] = {}
    for i, token in enumerate(a):
        positions[token] = positions.get(token, 0) | 1 << i
    row = (1 << len(a)) - 1
    for token in b:
        step = row & positions.get(token, 0)
        row = (row + step) | (row - step)
    return len(a) - (row & (1 << len(a)) - 1).bit_count()


def cider_d(candidates: Sequence[Tokens], references: References, sigma: float = 6.0) -> float:
    """Mean CIDEr-D, 0 to 10 (Vedantam et al. 2015). N-grams are weighed by these references, one document per image."""
    counted = [[_ngrams(caption) for caption in captions] for captions in references]
    documents = Counter(ngram for captions in counted for ngram in set().union(*captions))
    log_images = math.log(max(len(references), 1))

    def weigh(counts: Counter[NGram]) -> tuple[list[dict[NGram, float]], list[float], int]:
        """TF-IDF vectors of the 1-grams to 4-grams, their norms, and the length as pycocoevalcap counts it: 2-grams."""
        vectors: list[dict[NGram, float]] = [{}, {}, {}, {}]
        for ngram, count in counts.items():
            vectors[len(ngram) - 1][ngram] = count * (log_images - math.log(max(documents[ngram], 1)))
        norms = [math.sqrt(sum(weight**2 for weight in vector.values())) for vector in vectors]
        return vectors, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2)

    scores = []
    for candidate, captions in zip(candidates, counted, strict=True):
        vectors, norms, length = weigh(_ngrams(candidate))
        total = 0.0
        for caption in captions:
            others, other_norms, other_length = weigh(caption)
            penalty = math.exp(-((length - other_length) ** 2) / (2 * sigma**2))
            for vector, norm, other, other_norm in zip(vectors, norms, others, other_norms, strict=True):
                clipped = sum(
                    min(weight, other.get(ngram, 0.0)) * other.get(ngram, 0.0) for ngram, weight in vector.items()
                )
                total += penalty * clipped / (norm * other_norm or 1.0)
        scores.append(10 * total / 4 / len(captions))
    return float(np.mean(scores))


def overlap(candidates: Sequence[Tokens], references: References) -> dict[str, float]:
    """The three scores above, as bleu_1 to bleu_4, rouge_l and cider_d."""
    scores = {f"bleu_{n}": score for n, score in enumerate(bleu(candidates, references), 1)}
    return scores | {"rouge_l": rouge_l(candidates, references), "cider_d": cider_d(candidates, references)}


def _ngrams(tokens: Tokens, sizes: Iterable[int] = (1, 2, 3, 4)) -> Counter[NGram]:
    return Counter(tuple(tokens[i : i + n]) for n in sizes for i in range(len(tokens) - n + 1))


def clip_scores(images: np.ndarray, candidates: np.ndarray, references: Sequence[np.ndarray]) -> dict[str, float]:
    """CLIPScore and RefCLIPScore (Hessel et al. 2021), means over N images.

    Args:
        images: embeddings (N, C) of the pictures.
        candidates: embeddings (N, C) of their captions.
        references: one array (R, C) per image, the embeddings of its true captions.
    """
    images, candidates = _unit(images), _unit(candidates)
    image_text = 2.5 * np.maximum((images * candidates).sum(1), 0)
    nearest = [max((_unit(texts) @ caption).max(), 0) for texts, caption in zip(references, candidates, strict=True)]
    total = image_text + nearest
    harmonic = 2 * image_text * nearest / np.where(total > 0, total, 1)
    return {"clip_score": float(image_text.mean()), "ref_clip_score": float(harmonic.mean())}


def _unit(embeddings: np.ndarray) -> np.ndarray:
    embeddings = np.asarray(embeddings, dtype=np.float64)
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=-1, keepdims=True), 1e-12)


def style(candidates: Sequence[Tokens], known: Collection[Tokens] = ()) -> dict[str, float]:
    """How the captions are written, whatever the pictures show. Shares are shares of captions, 0 to 1.

    distinct_1 and distinct_2 are different n-grams over all n-grams of the corpus (Li et al. 2016). A caption counts as
    "copied" if it is in `known`, the training captions as tuples of tokens.
    """
    count = max(len(candidates), 1)
    return {
        "distinct_1": _distinct(candidates, 1),
        "distinct_2": _distinct(candidates, 2),
        "mean_length": sum(map(len, candidates)) / count,
        "emoji": sum(any(EMOJI.search(token) for token in tokens) for tokens in candidates) / count,
        "hashtag": sum(any(_is_hashtag(token) for token in tokens) for tokens in candidates) / count,
        "copied": sum(tuple(tokens) in known for tokens in candidates if tokens) / count,
    }


def _is_hashtag(token: str) -> bool:
    return token[0] in "#\uff03" and not EMOJI.fullmatch(token)  # the keycap #️⃣ begins with one too


def _distinct(candidates: Sequence[Tokens], n: int) -> float:
    counts: Counter[NGram] = Counter()
    for tokens in candidates:
        counts.update(_ngrams(tokens, [n]))
    return len(counts) / max(counts.total(), 1)
