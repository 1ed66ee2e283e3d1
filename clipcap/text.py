"""What counts as an emoji, a hashtag, a mention.

Each has two definitions, since they serve two purposes. What counts or keeps them needs whole ones, as a person sees
them: an emoji with its skin tone, a hashtag that Instagram would link. What removes them from a caption needs every
trace (`*_TRACE`), even of half-written ones: a lone "#", or a variation selector without its emoji.
"""

from __future__ import annotations

import re

import regex

# One whole emoji (a flag, a keycap, or pictograms with modifiers and joiners), for use inside a VERBOSE pattern.
# The signs © ® ™ are pictograms in Unicode, but readers take them for text.
EMOJI_PATTERN = r"""(?: \p{RI}\p{RI} | [0-9\#*]\uFE0F?\u20E3
  | [\p{Extended_Pictographic}--[©®™]][\uFE0F\p{Emoji_Modifier}]*
    (?: \u200D\p{Extended_Pictographic}[\uFE0F\p{Emoji_Modifier}]* )* )"""
EMOJI = regex.compile(EMOJI_PATTERN, regex.VERBOSE | regex.VERSION1)

# As Instagram links them. A hashtag needs a letter, and may hold letters with combining marks (Devanagari to Thai).
# Neither a hashtag nor a mention may swallow the digit of a keycap emoji that follows it. They use `re`, not `regex`,
# because \w of `regex` also matches marks and variation selectors. A time ("@7pm", "@9:30") is no mention.
_NO_KEYCAP = r"(?![\uFE0F\u20E3])"
HASHTAG = re.compile(rf"(?<![\w&])#(?=\d*[^\W\d])[\w\u0300-\u036F\u0591-\u065F\u0900-\u0E7F]+{_NO_KEYCAP}")
MENTION = re.compile(
    rf"(?<!\w)@(?!\d{{1,2}}(?:[ap]m|h)?\b)[a-z0-9_](?:[a-z0-9_.]*[a-z0-9_])?{_NO_KEYCAP}", re.IGNORECASE | re.ASCII
)
PLACEHOLDER = "@user"  # stands for a mention in training captions, so that the sentence stays whole

# What is removed from a caption that must not hold any of them.
EMOJI_TRACE = regex.compile(
    r"(?:[0-9#*]\uFE0F?\u20E3|[\p{Extended_Pictographic}\p{Regional_Indicator}\p{Emoji_Modifier}\uFE0F])"
    r"[\uFE0E\uFE0F\u200D\u20E3\p{Emoji_Modifier}\U000E0020-\U000E007F]*"
)
HASHTAG_TRACE = regex.compile(r"[#\uFF03](?!\uFE0F?\u20E3)[\w\p{M}\u200C\u200D]*")
MENTION_TRACE = regex.compile(r"(?<![\w.])@[\w.]*")
