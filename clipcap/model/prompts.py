"""The text between image and caption (prompted strategy): a template, filled with a literal caption, as token ids.

The literal caption comes from a frozen ClipCap, the literal captioner, that sees the same CLIP embedding.

Shapes: N images, C CLIP width.
"""

from __future__ import annotations

import string
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from clipcap.decoding.options import Decoding
from clipcap.errors import UserError
from clipcap.model.gpt2 import tokenizer_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from clipcap.model.clipcap import ClipCap

LITERAL = Decoding()  # how a literal captioner is asked, in training and afterwards
BATCH = 64
PROMPTS = {
    "template": " is a picture of {literal} and a social media post would caption it",
    "literal": "{literal}",
    "none": None,
}


def check_template(template: str) -> None:
    """Raise a UserError unless the template's only braces are "{literal}" (or doubled ones, for themselves)."""
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(f"the prompt template {template!r} cannot be read ({error}); write {{{{ for a brace") from None
    unknown = sorted(set(fields) - {"literal"})
    if unknown:
        shown = ", ".join("{" + name + "}" for name in unknown)
        raise UserError(f"the prompt template {template!r} holds {shown}; the only field is {{literal}}")
    try:
        template.format(literal="a dog")
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise UserError(
            f"the prompt template {template!r} cannot be filled ({error}); write plain {{literal}}"
        ) from None


def needs_literal(template: str | None) -> bool:
    """Whether the template must be filled with a literal caption."""
    return template is not None and any(name == "literal" for _, name, _, _ in string.Formatter().parse(template))


def encode_prompts(tokenizer: Tokenizer, template: str, literals: Sequence[str]) -> list[list[int]]:
    """Literal captions -> the token ids of their prompts; a caption's final full stop does not end the sentence."""
    texts = [template.format(literal=literal.strip().removesuffix(".")) for literal in literals]
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def caption_embeddings(
    model: ClipCap,
    embeddings: np.ndarray | Tensor,
    decoding: Decoding,
    prompts: Sequence[Sequence[int]] | None = None,
    batch_size: int = BATCH,
    progress: str | None = None,
) -> list[str]:
    """Embeddings (N, C) -> N captions; `progress` names them in a progress bar."""
    tokenizer = tokenizer_of(model.config)
    captions: list[str] = []
    hidden = progress is None
    with tqdm(
        total=len(embeddings), desc=progress, unit="captions", leave=False, disable=hidden, file=sys.stderr
    ) as bar:
        for start in range(0, len(embeddings), batch_size):
            part = slice(start, start + batch_size)
            batch = torch.tensor(np.asarray(embeddings[part]), device=model.device)
            found = model.generate(batch, decoding, prompts and prompts[part])
            captions += [tokenizer.decode(ids).strip() for ids in found]
            bar.update(len(found))
    return captions


def literal_captions(model: ClipCap, embeddings: np.ndarray | Tensor, batch_size: int = BATCH) -> list[str] | None:
    """What the literal captioner inside prompted weights says of each embedding (N, C); None where no prompt asks.

    Raises:
        UserError: the prompt asks for a literal caption and the weights hold no literal captioner.
    """
    if not needs_literal(model.config.prompt):
        return None
    if model.literal_captioner is None:
        raise UserError("these weights want a literal caption in their prompt, and hold no literal captioner")
    return caption_embeddings(model.literal_captioner, embeddings, LITERAL, batch_size=batch_size)


def prompts_for(
    model: ClipCap, tokenizer: Tokenizer, count: int, literals: Sequence[str] | None
) -> list[list[int]] | None:
    """The prompts of `count` images, token ids; None where the weights put nothing between image and caption."""
    if model.config.prompt is None:
        return None
    return encode_prompts(tokenizer, model.config.prompt, [""] * count if literals is None else literals)
