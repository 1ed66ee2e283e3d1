"""The text between image and caption (prompted strategy): a template, filled with a literal caption, as token ids."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipcap.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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
