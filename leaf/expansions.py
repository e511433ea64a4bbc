"""Prefixes, wildcards and regular expressions: many words of an index as one query, and the bound on how many.

What costs is each word that begins as the pattern does: about 0.1 us to look at it, 0.2 us and more to take its documents. A
tantivy call cannot be stopped, so such words are counted before. Counting costs some 0.5 us a word, and its outcome stays
(`_Verdict`) until the index has grown or shrunk by a tenth: a pattern that is too wide is refused at once the next time.

A simple pattern is looked for by tantivy, as a regular expression. Of others the automaton may take a third of a second to
build, all that time with the interpreter's lock, only to be refused for its size: those are matched here, word by word.
"""

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Final

import tantivy
from tantivy import Query

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.query.automaton import Automaton
from kvshard.query.glob import expression_of, literal_prefix, parts_of
from kvshard.query.regex import Regex, prefix_of
from leaf.index_fields import keyword_of, keyword_term

EXPANSION_MAX_WORDS: Final = 65_536
"""Words of one field in one shard that may begin as a pattern does. Searching so many takes 20 to 50 ms of a search thread;
ordinary texts have about as many different words in a million, so that `*ing` works for them."""

_VERDICTS_MAX: Final = 256
"""Prefixes remembered for an index; one is some 200 bytes."""

_GROWTH: Final = 0.1
"""Of the documents: the vocabulary grows more slowly than they do."""

_SIMPLE_MAX_STARS: Final = 2
_SIMPLE_MAX_CHARS: Final = 24
"""Patterns within these, and without `?`, make automata of some hundred states, in about a millisecond."""

_CHUNK_CHARS: Final = 4_096
"""Characters of words matched between two looks at whether the search is still wanted, or is to give way: some 0.3 ms, and 40
where keywords are long and the expression is made to be slow."""


_LISTS_MAX: Final = 4
"""Lists of words kept for one query: a list may take 6 MB. Patterns without a field look at a list for each text field."""


class WordLists:
    """The words of a snapshot that the patterns of one query look at. To list so many takes the interpreter's lock for some 20
    ms, in one piece; a query has up to 64 patterns, which mostly look at the same words.
    """

    def __init__(self, searcher: tantivy.Searcher) -> None:
        self._searcher = searcher
        self._lists: OrderedDict[tuple[str, str], list[str]] = OrderedDict()

    def beginning(self, field: str, prefix: str) -> list[str]:
        """The terms of an index field that begin so, at most EXPANSION_MAX_WORDS."""
        words = self._lists.get((field, prefix))
        if words is None:
            found = self._searcher.terms_with_prefix(field, prefix, limit=EXPANSION_MAX_WORDS + 1)
            words = self._lists[field, prefix] = [word for word, _ in found]
            if len(self._lists) > _LISTS_MAX:
                self._lists.popitem(last=False)
        self._lists.move_to_end((field, prefix))
        return words


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Whether a prefix was too wide, when the index had so many documents."""

    is_too_wide: bool
    documents: int


class Expansions:
    """Of one index. Searches on several threads may use it at once."""

    def __init__(self, fields: tantivy.Schema) -> None:
        self._fields = fields
        self._verdicts: OrderedDict[tuple[str, str], _Verdict] = OrderedDict()
        self._lock = Lock()

    def prefix(self, searcher: tantivy.Searcher, field: str, prefix: str, shown: str) -> Query:
        """The documents with a term of the index field that begins so. shown: what an error calls it."""
        self._check(searcher, field, prefix, shown)
        # Distance 0 makes it exact. A regular expression would do as well, but tantivy bounds those at 1,000 states.
        return Query.fuzzy_term_query(self._fields, field, prefix, distance=0, prefix=True)

    def wildcard(
        self,
        searcher: tantivy.Searcher,
        lists: WordLists,
        field: str,
        pattern: str,
        is_keyword: bool,
        check: Callable[[], object],
        shown: str,
    ) -> Query:
        """The documents with a term that the pattern (`glob`) matches. check: ends the search, by raising."""
        prefix = keyword_term(literal_prefix(pattern)) if is_keyword else literal_prefix(pattern)
        self._check(searcher, field, prefix, shown)
        if _is_simple(pattern):
            return Query.regex_query(self._fields, field, _automaton(pattern, is_keyword))
        return self._matching(lists.beginning(field, prefix), field, expression_of(pattern).fullmatch, is_keyword, check)

    def regex(
        self,
        searcher: tantivy.Searcher,
        lists: WordLists,
        field: str,
        regex: Regex,
        is_keyword: bool,
        check: Callable[[], object],
        shown: str,
    ) -> Query:
        """The documents with a term that the regular expression matches. check: ends the search, by raising."""
        prefix = keyword_term(prefix_of(regex)) if is_keyword else prefix_of(regex)
        self._check(searcher, field, prefix, shown)
        return self._matching(lists.beginning(field, prefix), field, Automaton(regex).matches, is_keyword, check)

    def _matching(
        self,
        words: list[str],
        field: str,
        matches: Callable[[str], object],
        is_keyword: bool,
        check: Callable[[], object],
    ) -> Query:
        """The documents with one of these terms that matches."""
        found: list[str] = []
        unchecked = _CHUNK_CHARS
        for word in words:
            unchecked += len(word)
            if unchecked >= _CHUNK_CHARS:
                check()
                unchecked = 0
            if matches(keyword_of(word) if is_keyword else word):
                found.append(word)
        return Query.term_set_query(self._fields, field, found) if found else Query.empty_query()

    def _check(self, searcher: tantivy.Searcher, field: str, prefix: str, shown: str) -> None:
        with self._lock:
            verdict = self._verdicts.get((field, prefix))
        documents = searcher.num_docs
        if verdict is None or abs(documents - verdict.documents) > verdict.documents * _GROWTH:
            found = searcher.terms_with_prefix(field, prefix, limit=EXPANSION_MAX_WORDS + 1)
            verdict = _Verdict(len(found) > EXPANSION_MAX_WORDS, documents)
            with self._lock:
                self._verdicts[field, prefix] = verdict
                while len(self._verdicts) > _VERDICTS_MAX:
                    self._verdicts.popitem(last=False)
        if verdict.is_too_wide:
            details = ErrorDetails(field="query", limit=EXPANSION_MAX_WORDS)
            message = f"{shown} has to look at more than {EXPANSION_MAX_WORDS:,} words of a shard"
            raise InvalidArgument(f"{message}; let it begin with more characters", details)


def _is_simple(pattern: str) -> bool:
    wild = [char for char, is_wild in parts_of(pattern) if is_wild]
    return "?" not in wild and len(wild) <= _SIMPLE_MAX_STARS and len(pattern) <= _SIMPLE_MAX_CHARS


def _automaton(pattern: str, is_keyword: bool) -> str:
    """A pattern with stars as a regular expression over the terms of a text field, or of a keyword field (hexadecimal)."""
    if is_keyword:
        return "k" + "".join("(?:..)*" if is_wild else char.encode().hex() for char, is_wild in parts_of(pattern))
    return "".join("(?s:.)*" if is_wild else re.escape(char) for char, is_wild in parts_of(pattern))
