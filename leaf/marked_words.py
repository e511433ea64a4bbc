"""Which words of a text a query looks for: what highlighting marks."""

from collections.abc import Callable, Sequence
from typing import Final

from kvshard.analyzers import ASCII, NGRAM
from kvshard.query import (
    Best,
    Boost,
    Chosen,
    Constant,
    Fuzzy,
    Group,
    Node,
    Occur,
    Phrase,
    Prefix,
    Regex,
    Wildcard,
    Within,
    Word,
)
from kvshard.query.automaton import Automaton
from kvshard.query.bounds import fuzzy_distance
from kvshard.query.edits import is_within
from kvshard.query.glob import expression_of, parts_of, pattern_of
from kvshard.query.regex import Regex as RegexNode
from kvshard.query.regex import parse_regex
from kvshard.schema import analyzer_of
from leaf.analysis import analyzer_in, has_words_beside, query_terms, word_terms, words_and_terms

STEM_MIN_CHARS: Final = 4
"""Of a stem that may have slips: "run" would be near to "sun" and "gun"."""

MARKED_MAX_WORDS: Final = 1_024
"""Different words that are marked on a page: each is looked for in every text of it."""


def marked_words(node: Node, name: str, field_type: str, texts: Callable[[], Sequence[str]]) -> set[str]:
    """The words, as the field's index has them. texts: gives those of the field that will be marked."""
    found: set[str] = set()
    tests: list[Callable[[str], object]] = []
    stem_tests: list[Callable[[str], object]] = []
    is_begun = analyzer_of(field_type) == NGRAM  # every word is looked for as a beginning there
    for leaf in _looked_for(node, name, True):
        if isinstance(leaf, Chosen):
            found.update(term for term, names in leaf.words if name in names)
            continue
        if isinstance(leaf, Wildcard):
            tests.append(expression_of(lower_pattern(leaf.pattern, field_type)).fullmatch)
            continue
        if isinstance(leaf, Regex):
            tests.append(Automaton(folded_regex(leaf.pattern, field_type)).matches)
            continue
        words = [word.text for word in word_terms(field_type, leaf.text)]
        if isinstance(leaf, Fuzzy):
            tests += [_alike(word, leaf.distance) for word in words]
            for word, term in words_and_terms(field_type, leaf.text):
                stem = fuzzy_stem(field_type, term, fuzzy_distance(leaf.distance, len(word)))
                stem_tests += [_alike(*stem)] if stem is not None else []
            continue
        found.update(term.text for term in query_terms(field_type, leaf.text))
        if words and (isinstance(leaf, Prefix) or is_begun):
            tests.append(_begins(words[-1]))
    if tests:
        pairs = {pair for text in texts() for pair in words_and_terms(field_type, text)}
        found.update(term for word, term in pairs if any(test(word) for test in tests))
        found.update(term for _, term in pairs if any(test(term) for test in stem_tests))
    return set(sorted(found)[:MARKED_MAX_WORDS])


def fuzzy_stem(field_type: str, stem: str, distance: int) -> tuple[str, int] | None:
    """The stem of a fuzzy word, and how many letters of it may be wrong: "latncies" is near to "latency" by its stem alone.

    None where terms are no stems, and for short ones: there is always one near to them.
    """
    if not has_words_beside(field_type) or analyzer_of(field_type) == NGRAM or len(stem) < STEM_MIN_CHARS:
        return None
    return stem, min(distance, fuzzy_distance(None, len(stem)))


def lower_pattern(pattern: str, field_type: str) -> str:
    """A pattern as the words of such a text field are: lower case, and without marks where those are taken off."""
    if analyzer_of(field_type) != ASCII:
        return pattern.lower()
    fold = analyzer_in(field_type).analyze
    return pattern_of(
        [(part, is_wild) for char, is_wild in parts_of(pattern) for part in (char if is_wild else "".join(fold(char)) or char)]
    )


def folded_regex(pattern: str, field_type: str) -> RegexNode:
    """A regular expression as the words of such a text field are: lower case, and without marks where those are taken off."""
    if analyzer_of(field_type) != ASCII:
        return parse_regex(pattern, str.lower)
    fold = analyzer_in(field_type).analyze
    return parse_regex(pattern, lambda char: "".join(fold(char)) or char)


def _begins(prefix: str) -> Callable[[str], object]:
    return lambda word: word.startswith(prefix)


def _alike(wanted: str, distance: int | None) -> Callable[[str], object]:
    edits = fuzzy_distance(distance, len(wanted))
    return lambda word: is_within(wanted, word, edits)


def _looked_for(node: Node, name: str, is_default: bool) -> list[Word | Phrase | Prefix | Wildcard | Regex | Fuzzy | Chosen]:
    """All that is looked for, not excluded, in a text field. is_default: words without a field are looked for in it."""
    match node:
        case Group():
            nodes = [clause.node for clause in node.clauses if clause.occur is not Occur.MUST_NOT]
        case Best():
            nodes = list(node.nodes)
        case Boost() | Constant():
            nodes = [node.node]
        case Within():
            return _looked_for(node.node, name, any(field == name for field, _ in node.fields))
        case Chosen():
            return [node]
        case Word() | Phrase() | Prefix() | Wildcard() | Regex() | Fuzzy():
            return [node] if node.field == name or (node.field is None and is_default) else []
        case _:
            nodes = []
    return [leaf for each in nodes for leaf in _looked_for(each, name, is_default)]
