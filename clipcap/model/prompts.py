"""The text between image and caption (prompted strategy): a template, filled with a literal caption, as token ids.

What captions are asked for follows behind it, see `clipcap.model.controls`.

The literal caption comes from a frozen ClipCap, the literal captioner, that sees the same CLIP embedding.

Shapes: N images, C CLIP width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from clipcap.cli.progress import ProgressBar
from clipcap.decoding.options import Decoding
from clipcap.errors import UserError
from clipcap.model.controls import Request, ask
from clipcap.model.language_model import end_of_text, tokenizer_of, up_to_end
from clipcap.text import check_fields, has_field

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from clipcap.model.clipcap import ClipCap

LITERAL = Decoding()  # how a literal captioner decodes, in training and afterwards
LONGEST = 4000  # characters of a template, about as many as fit into GPT-2's 1024 positions
PROMPTS = {
    "template": " is a picture of {literal} and a social media post would caption it",
    "literal": "{literal}",
    "none": None,
}


def check_template(template: str) -> None:
    """Raise a UserError unless the template's only braces are "{literal}" (or doubled ones, for themselves)."""
    if len(template) > LONGEST:
        raise UserError(
            f"the prompt template has {len(template):,} characters, and GPT-2 has no room for over {LONGEST}"
        )
    check_fields("the prompt template", template, ["literal"])


def needs_literal(template: str | None) -> bool:
    """Whether the template must be filled with a literal caption."""
    return template is not None and has_field(template, "literal")


def encode_prompts(
    tokenizer: Tokenizer, template: str, literals: Sequence[str], running_text: bool = True
) -> list[list[int]]:
    """Literal captions -> the token ids of their prompts.

    With `running_text` they are followed by a blank and a caption, see ClipCapConfig: blanks at the end of the template
    are left out. Without it, as in older files, the literal captions lose their full stops.
    """
    if running_text:
        texts = [template.format(literal=literal.strip()).rstrip(" ") for literal in literals]
    else:
        texts = [template.format(literal=literal.strip().removesuffix(".")) for literal in literals]
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


class Rows(Protocol):
    """What is indexed like an array in its first axis: an array, a tensor, or embeddings that lie on the disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


def caption_embeddings(
    model: ClipCap,
    embeddings: Rows,
    decoding: Decoding,
    prompts: Sequence[Sequence[int]] | None = None,
    batch_size: int | None = None,
    progress: str | None = None,
) -> list[str]:
    """Embeddings (N, C) -> N captions, the best of each search.

    Args:
        model: the captioner.
        embeddings: (N, C).
        decoding: how to search.
        prompts: token ids between image and caption, one list per embedding; None for none.
        batch_size: embeddings decoded at a time; None: `decoding.batch`.
        progress: the title of a progress bar; None shows no bar.
    """
    tokenizer = tokenizer_of(model.config)
    end = end_of_text(tokenizer, model.config.end_of_text)
    captions: list[str] = []
    hidden, batch_size = progress is None, batch_size or decoding.batch
    with ProgressBar(total=len(embeddings), desc=progress, unit="captions", leave=False, disable=hidden) as bar:
        for start in range(0, len(embeddings), batch_size):
            part = slice(start, start + batch_size)
            rows = embeddings[part]  # NumPy has none of a GPU's memory
            batch = torch.as_tensor(rows if isinstance(rows, Tensor) else np.array(rows), device=model.device)
            found = model.generate_all(batch, decoding, prompts and prompts[part])
            captions += [tokenizer.decode(up_to_end(best, end)).strip() for best, *_ in found]
            bar.update(len(found))
    return captions


def literal_captions(model: ClipCap, embeddings: Rows, batch_size: int | None = None) -> list[str] | None:
    """N literal captions of embeddings (N, C), from the captioner inside prompted weights; None if none are needed.

    Raises:
        UserError: the prompt asks for a literal caption and the weights hold no literal captioner.
    """
    if not needs_literal(model.config.prompt):
        return None
    if model.literal_captioner is None:
        raise UserError(
            "the prompt of these weights holds a literal caption, and the file holds no literal captioner to write it: "
            "use the file that prompt_finetuning.py wrote"
        )
    return caption_embeddings(model.literal_captioner, embeddings, LITERAL, batch_size=batch_size)


def prompts_for(
    model: ClipCap,
    tokenizer: Tokenizer,
    count: int,
    literals: Sequence[str] | None,
    request: Request | None = None,
) -> list[list[int]] | None:
    """Token ids of the prompts of `count` images; None if nothing stands between image and caption.

    Raises:
        UserError: the weights have not learned what `request` asks for.
    """
    asked = ask(tokenizer, model.config.controls, request) if request else []
    if model.config.prompt is None and not asked:
        return None
    literals = [""] * count if literals is None else literals
    prompts = encode_prompts(tokenizer, model.config.prompt or "", literals, model.config.running_text)
    return [[*prompt, *asked] for prompt in prompts]
