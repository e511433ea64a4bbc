"""What the analyzers of `kvshard/analyzers.py` do to a text: when it is indexed, and when it is looked for.

They are tantivy's, all but NGRAM when it indexes: there each beginning of a word stands at the word's own position, so that
phrases work, while tantivy's n-grams are of the whole text. So these texts are cut here and given to tantivy as terms. A query
for half a word is not cut: it is a beginning already.
"""

from functools import cache
from typing import Final

import tantivy
from tantivy import Filter, TextAnalyzer, TextAnalyzerBuilder, Token, Tokenizer

from kvshard.analyzers import ASCII, CJK, KEYWORD_LOWER, LANGUAGES, LANGUAGES_WITHOUT_STOP_WORDS, NGRAM, WORDS
from kvshard.schema import TEXT, Schema, analyzer_of, base_type

WORD_MAX_BYTES: Final = 40
"""Longer words are left out, as tantivy's own default does: they are data in disguise, each a term of its own."""

NGRAM_MAX_CHARS: Final = 15
"""Beginnings of this length are terms. Longer ones are looked for among the whole words, which are terms as well."""

WHOLE_MARK: Final = "="
"""Stands before the whole words of NGRAM, which would else be taken for beginnings: no word contains it."""

_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}"
_CJK_WORDS: Final = rf"[{_CJK}]|[[\p{{Alphabetic}}\p{{N}}]&&[^{_CJK}]]+"
_MARKED_WORDS: Final = r"[\p{Alphabetic}\p{N}\p{M}]+"
"""Words of scripts whose marks are no letters to tantivy's own tokenizer, which would cut words at them."""

_MARKED = frozenset(("tamil",))


@cache
def _uncut(name: str) -> TextAnalyzer:
    """The words of a language as they are, lower case: neither stems nor without the most common ones."""
    tokenizer = Tokenizer.regex(_MARKED_WORDS) if name in _MARKED else Tokenizer.simple()
    return TextAnalyzerBuilder(tokenizer).filter(Filter.remove_long(WORD_MAX_BYTES)).filter(Filter.lowercase()).build()


@cache
def analyzer(name: str) -> TextAnalyzer:
    """The analyzer of that name, for queries and, where `index_terms` has nothing to say, for texts."""
    if name == KEYWORD_LOWER:
        return TextAnalyzerBuilder(Tokenizer.raw()).filter(Filter.lowercase()).build()
    tokenizer = Tokenizer.simple()
    if name == CJK or name in _MARKED:
        tokenizer = Tokenizer.regex(_CJK_WORDS if name == CJK else _MARKED_WORDS)
    words = TextAnalyzerBuilder(tokenizer).filter(Filter.remove_long(WORD_MAX_BYTES)).filter(Filter.lowercase())
    if name == ASCII:
        return words.filter(Filter.ascii_fold()).build()
    if name in {WORDS, CJK, NGRAM}:
        return words.build()
    if name not in LANGUAGES_WITHOUT_STOP_WORDS:
        words = words.filter(Filter.stopword(name))
    return words.filter(Filter.stemmer(name)).build()


def analyzer_in(field_type: str) -> TextAnalyzer:
    """The analyzer of a type of text field."""
    return analyzer(analyzer_of(field_type))


def tokenizer_name(field_type: str) -> str:
    """What the index calls the analyzer of a type of text field; `register` makes it known."""
    return f"kvshard_{analyzer_of(field_type)}"


def register(index: tantivy.Index, schema: Schema) -> None:
    """Make the analyzers of a schema known to an index: it does not keep them."""
    for field_type in {each for each in schema.values() if base_type(each) == TEXT}:
        index.register_tokenizer(tokenizer_name(field_type), analyzer_in(field_type))


def query_terms(field_type: str, text: str) -> list[Token]:
    """The terms that a text of a query is looked for as; none where it has nothing that such a field would hold."""
    return analyzer_in(field_type).pre_tokenize(text).tokens


def prefix_terms(field_type: str, text: str) -> list[Token]:
    """The same of a text whose last word is only begun: that one keeps its letters, since the stem of half a word is none."""
    terms, name = query_terms(field_type, text), analyzer_of(field_type)
    if name not in LANGUAGES:
        return terms
    words = _uncut(name).pre_tokenize(text).tokens
    return [term for term in terms if term.position < words[-1].position] + words[-1:] if words else []


def index_terms(field_type: str, text: str) -> list[Token] | None:
    """The terms that a text is indexed as; None where tantivy cuts it by itself, by the analyzer of its field."""
    if analyzer_of(field_type) != NGRAM:
        return None
    terms: list[Token] = []
    for word in analyzer(NGRAM).pre_tokenize(text).tokens:
        whole, place = word.text, (word.position, word.char_offset_from, word.char_offset_to)
        terms += [Token(whole[:length], *place) for length in range(1, min(len(whole), NGRAM_MAX_CHARS) + 1)]
        terms.append(Token(WHOLE_MARK + whole, *place))
    return terms


_ALPHANUMERIC: Final = bytes(97 if byte < 128 and chr(byte).isalnum() else 32 for byte in range(256))
"""Each byte of ASCII text as "a" where it belongs to a word, else as a blank."""

_TOO_LONG: Final = b"a" * WORD_MAX_BYTES


def _ascii_word_count(text: str) -> int:
    """How many words an ASCII text has; -1: some may be too long. Ten times as quick as to cut it, for each document counts."""
    letters = text.encode().translate(_ALPHANUMERIC)
    return -1 if _TOO_LONG in letters else letters.count(b" a") + letters.startswith(b"a")


def term_count(field_type: str, text: str) -> int:
    """How many terms a text is indexed as: its length as scores see it."""
    if text.isascii() and analyzer_of(field_type) in {WORDS, ASCII}:
        count = _ascii_word_count(text)
        if count >= 0:
            return count
    terms = index_terms(field_type, text)
    return len(analyzer_in(field_type).analyze(text)) if terms is None else len(terms)
