"""What one index has to suggest for a text: words that go on as its last one, and words near to those it does not have.

Words are counted by the documents that have them, among those that a search would find now. tantivy cannot be stopped while it
looks through the words with a prefix (about 1 us each, with the interpreter free); the deadline is looked at in between.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import Final

import tantivy
from tantivy import Occur, Query

from kvshard.analyzers import WORDS
from kvshard.query.bounds import fuzzy_distance
from kvshard.schema import KEYWORD, Schema
from kvshard.suggest_messages import SuggestedWord, SuggestPart, SuggestReply
from kvshard.suggestions import CORRECTIONS_ASKED, FEW_DOCUMENTS, WORDS_MAX, keeps_words, nearest
from leaf.analysis import analyzer, word_terms
from leaf.index_fields import keyword_of, keyword_term, searched, whole_words

NEAR_MAX: Final = 20_000
"""Words with the right first letter that are compared with a misspelt one: the most frequent ones, in some 20 ms."""


class Suggester:
    """Looks into one snapshot of an index. live: the documents that count. check: ends the search by raising."""

    def __init__(
        self,
        schema: Schema,
        fields: tantivy.Schema,
        searcher: tantivy.Searcher,
        live: Query,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self._schema = schema
        self._fields = fields
        self._searcher = searcher
        self._live = live
        self._check = check

    def suggest(self, part: SuggestPart) -> SuggestReply:
        """The answer of this index."""
        completions, missed = self._completions(part) if part.limit else ([], 0)
        words = self._words(part, is_going_on=bool(completions)) if part.wants_corrections else []
        return SuggestReply(completions, missed, words)

    def _completions(self, part: SuggestPart) -> tuple[list[tuple[str, int]], int]:
        """Whole texts with their documents, and how many a text may have that is not among them."""
        counts: dict[str, int] = {}
        missed = 0
        for name in part.fields:
            self._check()
            found, left = self._completions_in(name, part)
            missed += left
            for text, documents in found:
                counts[text] = max(documents, counts.get(text, 0))
        if len(part.fields) > 1:
            # A document that has a word in two fields is one document.
            counts = {text: self._documents_with(text, part) for text in counts}
        ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
        cut_off = ordered[part.limit][1] if len(ordered) > part.limit else 0
        return ordered[: part.limit], max(missed, cut_off)

    def _completions_in(self, name: str, part: SuggestPart) -> tuple[list[tuple[str, int]], int]:
        field_type, limit = self._schema[name], part.limit
        if field_type == KEYWORD:
            found = self._terms(name, keyword_term(part.text), self._live, limit)
            return [(keyword_of(term), documents) for term, documents in found], _left(found, limit)
        terms = word_terms(field_type, part.text)
        if not terms or terms[-1].char_offset_to != len(part.text):
            return [], 0  # No word is being typed.
        head = part.text[: terms[-1].char_offset_from]
        among = self._live
        if part.has_context:
            names = [each for each in part.fields if keeps_words(self._schema[each])]
            context = [self._word_query(names, term.text) for term in terms[:-1]]
            among = Query.boolean_query([(Occur.Must, each) for each in [self._live, *context]])
        found = self._terms(name, terms[-1].text, among, limit)
        return [(head + term, documents) for term, documents in found], _left(found, limit)

    def _documents_with(self, text: str, part: SuggestPart) -> int:
        """The documents that have the last word of a completion, or all of it where values are whole, in any of the fields."""
        self._check()
        queries = [(Occur.Must, self._live)]
        found: list[Query] = []
        for name in part.fields:
            field_type = self._schema[name]
            if field_type == KEYWORD:
                found.append(Query.term_query(self._fields, searched(name), keyword_term(text), "basic"))
                continue
            terms = word_terms(field_type, text)
            if terms:
                names = [each for each in part.fields if keeps_words(self._schema[each])]
                words = [self._word_query(names, term.text) for term in terms[:-1]] if part.has_context else []
                last = self._term_query(name, terms[-1].text)
                found.append(Query.boolean_query([(Occur.Must, each) for each in [*words, last]]))
        queries.append((Occur.Must, Query.boolean_query([(Occur.Should, each) for each in found])))
        return self._count(Query.boolean_query(queries))

    def _words(self, part: SuggestPart, is_going_on: bool) -> list[SuggestedWord]:
        """is_going_on: the last word has completions. It is no mistake then; this is the case at nearly every key stroke."""
        names = [name for name in part.fields if keeps_words(self._schema[name])]
        tokens = analyzer(WORDS).pre_tokenize(part.text).tokens[-WORDS_MAX:] if names else []
        words: list[SuggestedWord] = []
        for token in tokens:
            self._check()
            among = Query.boolean_query([(Occur.Must, self._live), (Occur.Must, self._word_query(names, token.text))])
            documents = self._count(among)
            is_right = documents > FEW_DOCUMENTS or (is_going_on and token.char_offset_to == len(part.text))
            near = [] if is_right else self._near(names, token.text)
            words.append(SuggestedWord(token.text, token.char_offset_from, token.char_offset_to, documents, near))
        return words

    def _near(self, names: Sequence[str], word: str) -> list[tuple[str, int, int]]:
        if fuzzy_distance(None, len(word)) == 0 or any(char.isdigit() for char in word):
            return []  # Another number is no correction of a number.
        best: dict[str, tuple[str, int, int]] = {}
        for name in names:
            terms = word_terms(self._schema[name], word)
            known = self._terms(name, terms[0].text[0], self._live, NEAR_MAX) if terms else []
            for each in nearest(terms[0].text, known, CORRECTIONS_ASKED, self._check) if known else []:
                best[each[0]] = max(each, best.get(each[0], each), key=lambda row: row[1])
        chosen = heapq.nsmallest(CORRECTIONS_ASKED, best.values(), key=lambda each: (each[2], -each[1], each[0]))
        if len(names) == 1:
            return chosen
        counted = []
        for text, _, distance in chosen:
            self._check()
            among = Query.boolean_query([(Occur.Must, self._live), (Occur.Must, self._word_query(names, text))])
            counted.append((text, self._count(among), distance))
        return counted

    def _word_query(self, names: Sequence[str], word: str) -> Query:
        """The documents that have this word, whole, in any of these fields of words."""
        found = [self._term_query(name, terms[0].text) for name in names if (terms := word_terms(self._schema[name], word))]
        return Query.boolean_query([(Occur.Should, each) for each in found]) if found else Query.empty_query()

    def _term_query(self, name: str, term: str) -> Query:
        return Query.term_query(self._fields, whole_words(name, self._schema[name]), term, "basic")

    def _terms(self, name: str, prefix: str, among: Query, limit: int) -> list[tuple[str, int]]:
        """Terms that begin so, with the documents among these that have them; the most frequent ones first."""
        field = whole_words(name, self._schema[name])
        return self._searcher.terms_with_prefix(field, prefix, filter_query=among, limit=limit)

    def _count(self, query: Query) -> int:
        count: int = self._searcher.search(query, 1).count  # type: ignore[attr-defined]  # missing in tantivy's stubs
        return count


def _left(found: Sequence[tuple[str, int]], limit: int) -> int:
    """The most documents that a term may have which the limit has cut off."""
    return found[-1][1] if len(found) >= limit else 0
