"""What the analyzers of `kvshard/analyzers.py` do to a text: when it is indexed, and when it is looked for.

They are tantivy's. Its n-grams are of a whole text, though, so a text of an NGRAM field is cut into its words here, and each of
them becomes a value of its own, with END behind it: its terms are all its beginnings, and the whole word with END. tantivy
leaves a place free between two values: words that stand side by side are WORD_STEP places apart. A query for half a word is not
cut: it is a beginning already. The words as they are stand in a field beside it, for all that is about whole words; so do those
of a text whose terms are stems.
"""

from functools import cache
from typing import Final

import tantivy
from tantivy import Filter, TextAnalyzer, TextAnalyzerBuilder, Token, Tokenizer

from kvshard.analyzers import ASCII, CJK, KEYWORD_LOWER, LANGUAGES, LANGUAGES_WITHOUT_STOP_WORDS, NGRAM, WORDS
from kvshard.schema import TEXT, Schema, analyzer_of, base_type

WORD_MAX_BYTES: Final = 40
"""Words of so many and more are left out, as tantivy's own default does: they are data in disguise, each a term of its own."""

END: Final = "="
"""Behind the whole words of NGRAM, which would else be taken for beginnings of others: no word contains it."""

WORD_STEP: Final = 2
"""From one word of an NGRAM field to the next."""

_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}"
_CJK_WORDS: Final = rf"[{_CJK}]|[[\p{{Alphabetic}}\p{{N}}]&&[^{_CJK}]]+"
_MARKED_WORDS: Final = r"[\p{Alphabetic}\p{N}\p{M}]+"
"""Words of scripts whose marks are no letters to tantivy's own tokenizer, which would cut words at them."""

_MARKED = frozenset(("tamil",))
_WORDS_BESIDE = frozenset((NGRAM, *LANGUAGES))

_KEEPING_ALL_WORDS = frozenset((WORDS, ASCII, CJK, *LANGUAGES_WITHOUT_STOP_WORDS))
"""Analyzers that make one term of each word, and of an ASCII text the same words: its runs of letters and digits."""

_LETTER = b"a"
_LETTERS: Final = bytes(_LETTER[0] if byte < 128 and chr(byte).isalnum() else ord(" ") for byte in range(256))
_TOO_LONG: Final = _LETTER * WORD_MAX_BYTES


@cache
def _uncut(name: str) -> TextAnalyzer:
    """The words of a language as they are, lower case: neither stems nor without the most common ones."""
    tokenizer = Tokenizer.regex(_MARKED_WORDS) if name in _MARKED else Tokenizer.simple()
    return TextAnalyzerBuilder(tokenizer).filter(Filter.remove_long(WORD_MAX_BYTES)).filter(Filter.lowercase()).build()


@cache
def analyzer(name: str) -> TextAnalyzer:
    """The analyzer of that name: for queries, and for the texts of all but NGRAM."""
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


def words_tokenizer_name(field_type: str) -> str:
    """The same for the field beside it that holds the words as they are."""
    return f"kvshard_words_{analyzer_of(field_type)}"


def register(index: tantivy.Index, schema: Schema) -> None:
    """Make the analyzers of a schema known to an index: it does not keep them."""
    for field_type in {each for each in schema.values() if base_type(each) == TEXT}:
        index.register_tokenizer(tokenizer_name(field_type), _indexing(field_type))
        if has_words_beside(field_type):
            index.register_tokenizer(words_tokenizer_name(field_type), _uncut(analyzer_of(field_type)))


def has_words_beside(field_type: str) -> bool:
    """Whether the terms of such a text are no words as they are written, so that these stand in a field beside it."""
    return base_type(field_type) == TEXT and analyzer_of(field_type) in _WORDS_BESIDE


def _indexing(field_type: str) -> TextAnalyzer:
    if analyzer_of(field_type) != NGRAM:
        return analyzer_in(field_type)
    return TextAnalyzerBuilder(Tokenizer.ngram(1, WORD_MAX_BYTES + len(END), prefix_only=True)).build()


def query_terms(field_type: str, text: str) -> list[Token]:
    """The terms that a text of a query is looked for as; none where it has nothing that such a field would hold."""
    return analyzer_in(field_type).pre_tokenize(text).tokens


def word_terms(field_type: str, text: str) -> list[Token]:
    """The words of a text as they are, of a language neither as stems nor without the most common ones: half a word has no
    stem, nor has a misspelt one."""
    name = analyzer_of(field_type)
    return (_uncut(name) if name in LANGUAGES else analyzer(name)).pre_tokenize(text).tokens


def words_and_terms(field_type: str, text: str) -> list[tuple[str, str]]:
    """Each word of a text as it is, with the term that the field has for it; those without one are left out."""
    terms = {term.position: term.text for term in query_terms(field_type, text)}
    return [(word.text, terms[word.position]) for word in word_terms(field_type, text) if word.position in terms]


def begun_words(text: str) -> list[str]:
    """The values as which an NGRAM field gets a text."""
    return [word + END for word in analyzer(NGRAM).analyze(text)]


def term_count(field_type: str, text: str) -> int:
    """How many terms a text is indexed as: its length as scores see it."""
    name = analyzer_of(field_type)
    if name == NGRAM:
        return sum(map(len, begun_words(text)))
    if name in _KEEPING_ALL_WORDS and text.isascii():
        return _ascii_word_count(text)
    return len(analyzer(name).analyze(text))


def _ascii_word_count(text: str) -> int:
    """Where words begin, counted: to cut them costs a third of what it takes to make an index document."""
    letters = b" " + text.encode().translate(_LETTERS)
    if _TOO_LONG in letters:
        return sum(len(word) < WORD_MAX_BYTES for word in letters.split())
    return letters.count(b" " + _LETTER)
