"""Captions as Penn Treebank words without punctuation, by which published tables of COCO count.

The words are those of Marcus et al. 1993, "Building a Large Annotated Corpus of English: The Penn Treebank": ca n't, it 's,
gon na and -lrb- for a bracket; an abbreviation keeps its full stop; 3.5, 10:30, 1/2 and half-eaten stay whole, and so do
links, mail addresses, @handles and #hashtags. Where the convention leaves a choice, the rules are those that explain what
pycocoevalcap 1.2 gives, which runs PTBTokenizer of Stanford CoreNLP 3.4.1 (`-preserveLines -lowerCase`) and drops
punctuation. Like it, they keep runs of "!" and "?" and brackets, and drop emoji beyond Unicode's first 65,536 characters.

They differ from it in symbols without a blank between them, beyond the commonest smileys, and at the end of a caption: the
program reads on into the next one to see whether the stop behind a single letter ("plan B.") ends a sentence.
"""

from __future__ import annotations

import regex

# What keeps its full stop, whatever follows; and what does so in front of a number.
_ABBREVIATIONS = r"""mr mrs ms messrs dr st prof rev hon jr sr esq gen col capt lt sgt maj cpl pvt adm gov sen rep pres ave blvd
    rd mt ft sq rt ct inc co corp ltd bros dept bldg univ assn jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues
    wed thu thurs fri vs etc al cf est ext tel ph\.d calif fla""".split()
_NUMBERED = "no nos fig figs art pp".split()
# A single letter keeps its full stop too, unless one of these begins a sentence behind it.
_STARTERS = """A About After An As At But He Her Here However If In It Many More Now Once One Other Our She Since So Some
    Such That The Their Then There These They This We What When While You""".split()

_LETTER = r"[[\p{L}\p{Mn}\p{Mc}]--[\uFE00-\uFE0F]]"
_WORD = r"[[\p{L}\p{Mn}\p{Mc}\p{Nd}]--[\uFE00-\uFE0F]]"  # a letter, a mark or a digit
_NO_WORD = rf"(?!{_WORD})"
_PARTS = rf"(?:[-\u2010\u2011](?:(?:[A-Z]\.){{2,}}|{_WORD}+))*"  # what follows in a word with hyphens
_LINKED = r"""[^\s"“”<>|(){}]"""
_LINK_END = r"""[^\s"“”<>|(){}.,!?-]"""
_SYMBOLS = (
    r"[[[\p{S}\p{P}\p{No}]&&[!-~\u00A1-\u06FF\u0964\u2016-\u2BFF\u3001\u3002\u30FB\uFF01-\uFFE6]]"
    r"--[!\"'`,.:;?\-_«»‹›‼‽\u2018\u2019\u201B-\u201D\u2024-\u2027\u2047-\u205E\u20A1-\u20AB\u20AD-\u20BF]]"
)

_TOKEN = regex.compile(
    rf"""
    # links, mail, handles, hashtags, markup
      (?i:https?://{_LINKED}+\.{_LINKED}*{_LINK_END} | www\.[\w.-]*\w(?:/{_LINKED}+{_LINK_END})?)
    | [A-Za-z]\w+(?:\.\w+)*\.(?i:com|net|org|edu)/{_LINKED}+{_LINK_END}
    | \w[\w.+-]*@{_WORD}(?:[.?]*[^\s"“”<>|(){{}}.?])*
    | @[A-Za-z_][A-Za-z0-9_]* | \#{_LETTER}+ | </?[A-Za-z][\w./="\ -]*>
    # smileys
    | >?[:;=](?:['’]|[-o]?)[dpDOP()@\\|\[\]{{]{_NO_WORD} | [-<=>^~]_[-<=>^~]
    # words with an apostrophe
    | (?P<contraction> ['’](?i:s|m|d|re|ve|ll){_NO_WORD} | (?i:n['’`]t){_NO_WORD} )
    | ['’](?i:n['’] | (?:em|till?|cause|n){_NO_WORD} | \d0s{_NO_WORD} | \d\d(?=\s|$))
    | (?i:'t(?=(?:is|was){_NO_WORD}) | [jy]['’](?=[aeiou]|know) | ol['’]{_NO_WORD})
    | (?i:c['’]mon|c['’]est|cap['’]n|li['’]l|s'mores){_NO_WORD}
    | (?: (?i:[dlno])['’] | [A-HJ-XZ][a-z]?['’](?=[A-Z]) | {_LETTER}+(?i:[aeiou]['’](?=[aeiou])) ){_WORD}+{_PARTS}
    # two words in one
    | (?i:can(?=not) | gon(?=na) | wan(?=na) | got(?=ta) | lem(?=me) | gim(?=me))(?=\p{{L}}{{2,3}}(?!-?\w))
    # numbers
    | \d+(?:[.,]\d+)+{_PARTS} | (?<!-)[-+]?(?:\d+(?:[.,:]\d+)+ | [.,:]\d+(?:[.,:]\d+)*) | (?<!-)[-+]\d+
    | \(\d{{2,3}}\)\ ?\d{{3,4}}[-\ ]\d{{4}}
    # abbreviations
    | (?:[A-Za-z]\.){{2,}}{_NO_WORD}{_PARTS} | (?i:{"|".join(_ABBREVIATIONS)})\.(?!{_LETTER}){_PARTS}
    | (?i:{"|".join(_NUMBERED)})\.(?=\s?\d) | [A-Za-z]\.(?!{_LETTER}|\s+(?:{"|".join(_STARTERS)})\b){_PARTS}
    # words
    | {_LETTER}{_WORD}*(?:[.!?]{_LETTER}{_WORD}*)+{_PARTS}
    | [A-Z]+&[A-Z]+ | [A-Z]+\$ | {_WORD}+(?:_{_WORD}+)+{_PARTS}
    | [A-Za-z0-9]+(?:-[A-Za-z0-9]+)*(?:/[A-Za-z0-9]+(?:-[A-Za-z]\w*)*){{1,2}}{_NO_WORD} | {_WORD}+{_PARTS}
    # what is left of punctuation
    | [!?]{{2,}} | \*+ | _+ | \#+ | <<? | >>? | {_SYMBOLS}
    """,
    regex.VERBOSE | regex.VERSION1,
)
_NEGATION = regex.compile(rf"(?i)(?<=\p{{L}})(?<!\#\p{{L}}+)(?=n['’`]t{_NO_WORD})")  # in front of the n of "can't"
_WRITTEN = str.maketrans({"\u00AD": "", "\uFE0F": ""} | {chr(0): " "})
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " "}
_RENAMED = {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "£": "#", "€": "$", "¤": "$", "¢": "cents"}
_RENAMED |= {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}


def tokenize(caption: str) -> list[str]:
    """Caption -> lower-case words: "The dog's 3.5 m leash (new!) can't snap." -> the dog 's 3.5 m leash -lrb- new -rrb- ca n't snap."""
    text = regex.sub("[\U00010000-\U0010FFFF\u200d]", " ", caption).translate(_WRITTEN)
    text = regex.sub("&(?:amp|lt|gt|quot|apos|nbsp);", lambda found: _ENTITIES[found[0]], text)
    words = []
    for found in _TOKEN.finditer(_NEGATION.sub(" ", text)):
        word = found[0].replace("’", "'") if found["contraction"] else found[0]
        word = _RENAMED.get(word, word).replace("(", "-lrb-").replace(")", "-rrb-")
        words += word.lower().split()
    return words
