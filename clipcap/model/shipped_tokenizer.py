"""GPT-2's tokenizer as it comes with the package, so that captions need no hub for it.

Only its merges are stored, in gpt2_tokenizer/merges.txt (https://github.com/openai/gpt-2, licence beside it). The
vocabulary follows from them: the 256 bytes, what each merge makes, and end-of-text.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MERGES = Path(__file__).parent / "gpt2_tokenizer" / "merges.txt"
# They all have this tokenizer.
NAMES = {"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2"}
NAMES |= {f"openai-community/{name}" for name in NAMES} | {"distilbert/distilgpt2"}


def gpt2_tokenizer() -> Tokenizer:
    """The tokenizer of every model in NAMES: 50257 tokens."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import GPT2Tokenizer

    _, *lines = MERGES.read_text(encoding="utf-8").splitlines()
    merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
    tokens = [*sorted(ByteLevel.alphabet()), *(left + right for left, right in merges), "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer: Tokenizer = GPT2Tokenizer(vocab=vocabulary, merges=merges).backend_tokenizer  # type: ignore[arg-type]  # pairs will do
    return tokenizer
