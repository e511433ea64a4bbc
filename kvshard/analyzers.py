"""What may be done to a text before it is indexed, by name: "text(english)" names one, "text" alone is WORDS.

What a schema may say; `leaf/analysis.py` does it.

Pure: imports only the standard library.
"""

from typing import Final

WORDS: Final = "words"
"""Words of letters and digits, lower case. It has no name in a schema: it is what "text" means."""

ASCII: Final = "ascii"
"""Words, with accents and other marks taken off: "Café" is found as "cafe". Greek, Cyrillic and others stay as they are."""

NGRAM: Final = "ngram"
"""Words, and all their beginnings, so that half a word finds the whole one: for search as you type."""

KEYWORD_LOWER: Final = "keyword"
"""The whole value as one term, lower case."""

CJK: Final = "cjk"
"""Chinese, Japanese and Korean character by character, since they are not written in words; what is next to each other in a
query has to be so in the text. Other scripts as WORDS."""

LANGUAGES: Final = (
    "arabic",
    "danish",
    "dutch",
    "english",
    "finnish",
    "french",
    "german",
    "greek",
    "hungarian",
    "italian",
    "norwegian",
    "portuguese",
    "romanian",
    "russian",
    "spanish",
    "swedish",
    "tamil",
    "turkish",
)
"""Words cut down to their stems, so that "running" finds "runs"; the language's most common words are left out."""

LANGUAGES_WITHOUT_STOP_WORDS: Final = frozenset(("arabic", "greek", "romanian", "tamil", "turkish"))
"""Of these the library knows no list of common words: all words are indexed."""

ANALYZERS: Final = (ASCII, CJK, KEYWORD_LOWER, NGRAM, *LANGUAGES)
"""Those that a schema may name."""
