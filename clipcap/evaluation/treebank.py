"""Captions as Penn Treebank words without punctuation, in which published tables of COCO count.

The words are those of Marcus et al. 1993, "Building a Large Annotated Corpus of English: The Penn Treebank": ca n't,
it 's, gon na, and -lrb- for a bracket; an abbreviation keeps its full stop; 3.5, 10:30, 1/2 and half-eaten stay whole,
and so do links, mail addresses, @handles and #hashtags. Where the convention leaves a choice, the rules are those that
explain what pycocoevalcap 1.2 gives for captions. It runs PTBTokenizer of Stanford CoreNLP 3.4.1 (`-preserveLines
-lowerCase`) and drops punctuation, but not brackets, nor "!!" or "?!"; emoji beyond Unicode's first 65,536 characters
belong to no word.

What differs: some symbols and quotes without a blank between them, rare abbreviations, elisions and scripts, and the
end of a caption, where the program reads on into the next one to see whether the stop behind a single letter ("plan
B.") ends a sentence.
"""

from __future__ import annotations

import regex

# These keep their full stop whatever follows, and these in front of a number.
_ABBREVIATIONS = (
    r"mr|mrs|ms|messrs|dr|st|prof|rev|hon|jr|sr|esq|gen|col|capt|lt|sgt|maj|cpl|pvt|adm|gov|sen|rep|pres|ave|blvd|rd|mt"
    r"|ft|sq|rt|ct|inc|co|corp|ltd|bros|dept|bldg|univ|assn|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|tues"
    r"|wed|thu|thurs|fri|vs|etc|al|cf|est|ext|tel|ph\.d|calif|fla"
)
_NUMBERED = "no|nos|fig|figs|art|pp"
# A single letter keeps it too, unless one of these follows and begins a sentence.
_STARTERS = (
    "A|About|After|An|As|At|But|He|Her|Here|However|If|In|It|Many|More|Now|Once|One|Other|Our|She|Since|So|Some|Such"
    "|That|The|Their|Then|There|These|They|This|We|What|When|While|You"
)

_LETTER = r"[[\p{L}\p{Mn}\p{Mc}]--[\uFE00-\uFE0F]]"
_CHAR = r"[[\p{L}\p{Mn}\p{Mc}\p{Nd}]--[\uFE00-\uFE0F]]"  # of a word
_END = rf"(?!{_CHAR})"
_HYPHENATED = rf"(?:[-\u2010\u2011](?:(?:[A-Z]\.){{2,}}|{_CHAR}+))*"  # how a word goes on
_CLITIC = rf"(?i:s|m|d|re|ve|ll){_END}"
_OF_LINK = r'[^\s"“”<>|(){}]'
_OF_MAIL = r'[^\s"“”<>|(){}.?]'
_LINK_END = r'[^\s"“”<>|(){}.,!?-]'
_SYMBOL = (
    r"[[[\p{S}\p{P}\p{No}]&&[!-~\u00A1-\u06FF\u0964\u0E3F\u2016-\u2BFF\u3001\u3002\u30FB\uFF01-\uFFE6]]"
    r"--[!\"'`,.:;?\-_«»‹›‼‽\u2018\u2019\u201B-\u201D\u2024-\u2027\u2047-\u205E\u20A1-\u20AB\u20AD-\u20BF]]"
)

# At each place the first line that fits gives a word; what fits none is dropped: quotes, dashes, commas, other stops.
_WORD = regex.compile(
    rf"""(?i:https?://|www\.)[\w-]+\.[\w.-]*\w(?:/(?:{_OF_LINK}*{_LINK_END})?)?
    | [A-Za-z]\w+(?:\.\w+)*\.(?i:com|net|org|edu)/{_OF_LINK}+{_LINK_END}
    | {_CHAR}[\w.+-]*@{_CHAR}(?:[.?]*{_OF_MAIL})*
    | @[A-Za-z_][A-Za-z0-9_]* | \#{_LETTER}+ | </?[A-Za-z][^<>!/:]*/?>
    # smileys
    | >?[:;=](?:['’]|[-o]?)[dpDOP()@\\|\[\]{{]{_END} | [-<=>^~]_[-<=>^~]
    # apostrophes: it 's, ca n't, 'n', 'em, '90s, 't is, y' all, ol', c'mon, O'Neil, D'Arcy, De'Andre, l'eau, ma'am
    | (?P<contraction>['’]{_CLITIC} | (?i:n['’`]t){_END})
    | ['’](?i:n['’] | (?:em|till?|cause|n){_END} | \d0s{_END} | \d\d(?=\s|$)) | '(?i:t)(?=(?i:is|was){_END})
    | (?:j|[yY])['’](?=[aeiouhkn]) | (?i:ol['’]{_END} | (?:c['’]mon|c['’]est|cap['’]n|li['’]l|s'mores){_END})
    | (?:[dlno]['’] | [A-HJ-XZ]['’](?=[A-Za-z]) | [A-Z][a-z]['’](?=[A-Z]) | {_LETTER}+(?i:[aeiou]['’](?=[aeiou])))
      (?!{_CLITIC}){_CHAR}+
    # two words in one
    | (?i:can(?=not) | gon(?=na) | wan(?=na) | got(?=ta) | lem(?=me) | gim(?=me))(?=\p{{L}}{{2,3}}(?!-?{_CHAR}))
    # numbers: 1,000.50, 3.5-inch, 10:30, .5, -5, (555) 123-4567
    | \d+(?:[.,]\d+)+{_HYPHENATED} | (?<!-)[-+]?(?:\d+(?:[.,:]\d+)+ | [.,:]\d+(?:[.,:]\d+)*) | (?<!-)[-+]\d+
    | \(\d{{2,3}}\)\ ?\d{{3,4}}[-\ ]\d{{4}}
    # abbreviations
    | (?:[A-Za-z]\.){{2,}}{_END}{_HYPHENATED} | (?i:{_ABBREVIATIONS})\.(?!{_LETTER}){_HYPHENATED}
    | (?i:{_NUMBERED})\.(?=\s?\d) | [A-Za-z]\.(?!{_LETTER}|\s+(?:{_STARTERS})\b){_HYPHENATED}
    # words: kylie.com and wow!that, R&B, US$, snake_case, and/or; a stop stays in front of a comma
    | {_LETTER}{_CHAR}*(?:[.!?]{_LETTER}{_CHAR}*)+{_HYPHENATED} | [A-Z]+(?:&[A-Z]+|\$)
    | {_CHAR}+(?:_{_CHAR}+)+{_HYPHENATED}
    | [A-Za-z0-9]+(?:-[A-Za-z0-9]+)*(?:/[A-Za-z0-9]+(?:-[A-Za-z]\w*)*){{1,2}}{_END}
    | {_CHAR}+{_HYPHENATED}(?:\.(?=[,;:]))?
    | [!?]{{2,}} | \*+ | _+ | \#+ | <<? | >>? | {_SYMBOL}
    """,
    regex.VERBOSE | regex.VERSION1,
)
_NEGATION = regex.compile(rf"(?i)(?<=\p{{L}})(?<!\#\p{{L}}+)(?=n['’`]t{_END})")  # in front of the n of "can't"
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " "}
_RENAMED = {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "£": "#", "€": "$", "¢": "cents"}
_RENAMED |= {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}


def tokenize(caption: str) -> list[str]:
    """Caption -> lower-case words: "Isn't it the dog's toy (new)?" -> is n't it the dog 's toy -lrb- new -rrb-."""
    text = regex.sub("[^\0-\uffff]", " ", caption).replace("\u00ad", "")  # emoji, and where a word may be divided
    text = regex.sub("&[a-z]+;", lambda found: _ENTITIES.get(found[0], found[0]), text)
    words = []
    for found in _WORD.finditer(_NEGATION.sub(" ", text)):
        word = found[0].replace("’", "'") if found["contraction"] else found[0]
        words += _RENAMED.get(word, word).replace("(", "-lrb-").replace(")", "-rrb-").lower().split()
    return words
