"""Turns a parsed query into a tantivy query.

What the language means where a parser cannot know:
- A word without a field is looked for in every text field (if the schema has none, in every keyword field); a document gets
  the score of its best field.
- A word of a text field is cut as the index cuts its text. One that falls apart, like `asyncio.gather` or `run_in_executor`,
  is the phrase of its parts, which is what whoever wrote it means.
- A word without any letter or digit cannot be in a text: the clause is dropped. If nothing else is asked for, nothing matches.
- A prefix of several words (`"asyncio gath"*` does not exist, but `asyncio.gath*` does) finds at most 50 endings of its last
  word in each segment: tantivy's bound.
- Words in text and keywords score by BM25. Prefixes, ranges, numbers, dates and booleans score 1.
"""

from collections.abc import Sequence
from copy import copy

import tantivy
from tantivy import Occur as TantivyOccur
from tantivy import Query

from kvshard.analyzers import NGRAM
from kvshard.clustermap import TOKEN_SLOTS
from kvshard.query import (
    Boost,
    Clause,
    Exists,
    Group,
    Interval,
    MatchAll,
    Node,
    Occur,
    Phrase,
    Prefix,
    Range,
    Word,
    default_fields,
    interval_of,
)
from kvshard.schema import FLOAT, KEYWORD, TEXT, Schema, base_type, text_type
from leaf.analysis import NGRAM_MAX_CHARS, prefix_terms, query_terms
from leaf.index_fields import EXPIRES, PRESENT, keyword_term, searched, slots, sorted_by
from leaf.weighting import Weighting

HIGHLIGHT_MAX_PREFIX_WORDS = 32
"""Words a prefix is spelled out to for highlighting: the most frequent ones of the shard; the rest is found but not marked."""

_OCCURS = {Occur.MUST: TantivyOccur.Must, Occur.SHOULD: TantivyOccur.Should, Occur.MUST_NOT: TantivyOccur.MustNot}


class QueryCompiler:
    """Compiles queries for one index. They must have been checked against the schema (`kvshard.query.check_query`)."""

    def __init__(self, schema: Schema, index: tantivy.Index) -> None:
        self._schema = schema
        self._index = index
        self._fields = index.schema
        self._defaults = default_fields(schema)
        self._weighting = Weighting(self._fields, is_noting=False)
        self._index_options = {
            name: "position" if base_type(field_type) == TEXT else "basic" for name, field_type in schema.items()
        }

    def compile(
        self,
        node: Node,
        filters: Sequence[Node],
        expired_at_ms: int | None,
        last_slot: int = TOKEN_SLOTS - 1,
        weighting: Weighting | None = None,
    ) -> Query:
        """The query, restricted to what the filters match, without documents whose time had passed at expired_at_ms, and
        without those beyond last_slot, which have left the shard by a split. weighting: makes its scored parts.
        """
        query = self.scored(node, weighting or self._weighting)
        clauses = [(TantivyOccur.Must, query)]
        for each in filters:
            compiled = self._compile(each) or Query.empty_query()
            clauses.append((TantivyOccur.Must, Query.const_score_query(compiled, 0.0)))
        if expired_at_ms is not None:
            expired = Query.range_query(self._fields, EXPIRES, tantivy.FieldType.Unsigned, 0, expired_at_ms)
            clauses.append((TantivyOccur.MustNot, expired))
        if last_slot < TOKEN_SLOTS - 1:
            clauses.append((TantivyOccur.MustNot, slots(self._fields, last_slot + 1, TOKEN_SLOTS - 1)))
        return query if len(clauses) == 1 else Query.boolean_query(clauses)

    def scored(self, node: Node, weighting: Weighting) -> Query:
        """The query alone, with its scored parts made by this weighting, which notes them."""
        weighted = copy(self)
        weighted._weighting = weighting
        return weighted._compile(node) or Query.empty_query()

    def _compile(self, node: Node) -> Query | None:
        match node:
            case MatchAll():
                return Query.all_query()
            case Group():
                return self._compile_group(node.clauses)
            case Boost():
                inner = self._compile(node.node)
                return None if inner is None else Query.boost_query(inner, node.factor)
            case Exists():
                return self._exists(node.field)
            case Range():
                return self._range(node)
            case Word() | Phrase() | Prefix():
                return self._term(node)

    def _compile_group(self, clauses: Sequence[Clause]) -> Query | None:
        compiled = [(clause.occur, self._compile(clause.node)) for clause in clauses]
        kept = [(_OCCURS[occur], query) for occur, query in compiled if query is not None]
        if all(occur == TantivyOccur.MustNot for occur, _ in kept):
            if any(clause.occur is not Occur.MUST_NOT for clause in clauses):
                return None  # what was asked for cannot be in any document; "everything but" was not asked for
            kept.append((TantivyOccur.Must, Query.all_query()))
        return Query.boolean_query(kept)

    def _term(self, node: Word | Phrase | Prefix) -> Query | None:
        if node.field is not None:
            return self._term_in(node.field, node)
        found = [query for query in (self._term_in(name, node) for name in self._defaults) if query is not None]
        if not found:
            return None
        return self._best_of(found)

    def _term_in(self, name: str, node: Word | Phrase | Prefix) -> Query | None:
        field_type = base_type(self._schema[name])
        field = searched(name)
        if field_type == TEXT:
            return self._text_prefix(name, node.text) if isinstance(node, Prefix) else self._text(name, node.text)
        if field_type == KEYWORD:
            if isinstance(node, Prefix):
                return self._prefix(field, keyword_term(node.text))
            return self._term_query(name, keyword_term(node.text))
        interval = _interval(field_type, node.text)
        return self._numbers(name, interval, interval, True, True)

    def _text(self, name: str, text: str) -> Query | None:
        tokens = query_terms(self._schema[name], text)
        if not tokens:
            return None
        if len(tokens) == 1:
            return self._word(name, tokens[0].text)
        first = tokens[0].position
        return self._phrase_query(name, [(token.position - first, token.text) for token in tokens])

    def _term_query(self, name: str, term: str) -> Query:
        """The documents with this term in this field, scored by BM25.

        Every scored term, phrase and best of several is made by one of these three: what is made elsewhere is not scored by the
        statistics of all shards, or not rightly.
        """
        return self._weighting.term(name, term, self._index_options[name])

    def _phrase_query(self, name: str, words: Sequence[tuple[int, str]], slop: int = 0) -> Query:
        """The documents with these (position, term) in this field, scored by BM25."""
        return self._weighting.phrase(name, words, slop)

    def _best_of(self, queries: Sequence[Query], tie_breaker: float = 0.0) -> Query:
        """The documents that match one of these, with the score of the best."""
        return queries[0] if len(queries) == 1 else self._weighting.best_of(queries, tie_breaker)

    def _word(self, name: str, word: str) -> Query:
        """What one word, as cut by the field's analyzer, finds there."""
        if len(word) > NGRAM_MAX_CHARS and self._cuts_beginnings(name):
            return self._prefix(searched(name), word)
        return self._term_query(name, word)

    def _begun_word(self, name: str, word: str) -> Query:
        if self._cuts_beginnings(name):
            return self._word(name, word)
        begun, stems = self._prefix(searched(name), word), query_terms(self._schema[name], word)
        if len(stems) != 1 or stems[0].text == word:
            return begun
        # Of "running" the index may hold only "run", which does not begin with it.
        stem = Query.const_score_query(Query.term_query(self._fields, searched(name), stems[0].text, "basic"), 1.0)
        return self._best_of([begun, stem])

    def _cuts_beginnings(self, name: str) -> bool:
        """Whether every beginning of a word is a term of this field."""
        return self._schema[name] == text_type(NGRAM)

    def _text_prefix(self, name: str, text: str) -> Query | None:
        field, tokens = searched(name), prefix_terms(self._schema[name], text)
        if not tokens:
            return None
        if tokens[-1].char_offset_to != len(text):
            return self._text(name, text)  # the word is over before the star, as in `asyncio.*`: any word may follow
        if len(tokens) == 1:
            return self._begun_word(name, tokens[0].text)
        first = tokens[0].position
        words: list[str | tuple[int, str]] = [(token.position - first, token.text) for token in tokens]
        return Query.phrase_prefix_query(self._fields, field, words)

    def _prefix(self, field: str, text: str) -> Query:
        # Distance 0 makes it exact. A regular expression would do as well, but tantivy bounds those at 1,000 states.
        return Query.fuzzy_term_query(self._fields, field, text, distance=0, prefix=True)

    def _exists(self, name: str) -> Query:
        if base_type(self._schema[name]) == TEXT:
            return Query.const_score_query(Query.term_query(self._fields, PRESENT, name, "basic"), 1.0)
        return Query.exists_query(sorted_by(name))

    def _range(self, node: Range) -> Query:
        if node.lower is None and node.upper is None:
            return self._exists(node.field)
        field_type = base_type(self._schema[node.field])
        if field_type == KEYWORD:
            return self._keyword_range(node)
        lower = None if node.lower is None else _interval(field_type, node.lower)
        upper = None if node.upper is None else _interval(field_type, node.upper)
        return self._numbers(node.field, lower, upper, node.includes_lower, node.includes_upper)

    def _keyword_range(self, node: Range) -> Query:
        lower = "*" if node.lower is None else keyword_term(node.lower)
        upper = "*" if node.upper is None else keyword_term(node.upper)
        opening, closing = "[" if node.includes_lower else "{", "]" if node.includes_upper else "}"
        return self._index.parse_query(f"{searched(node.field)}:{opening}{lower} TO {upper}{closing}")

    def _numbers(
        self, name: str, lower: Interval | None, upper: Interval | None, includes_lower: bool, includes_upper: bool
    ) -> Query:
        """A day is an interval: it is included whole, and excluded whole."""
        low = None if lower is None else _number(lower.first if includes_lower else lower.last)
        high = None if upper is None else _number(upper.last if includes_upper else upper.first)
        kind = tantivy.FieldType.Float if self._schema[name] == FLOAT else tantivy.FieldType.Integer
        return Query.range_query(self._fields, searched(name), kind, low, high, includes_lower, includes_upper)

    def has_one_score(self, node: Node) -> bool:
        """Whether all matches of the query surely have the same score."""
        match node:
            case MatchAll() | Exists() | Range():
                return True
            case Boost():
                return self.has_one_score(node.node)
            case Group():
                must = [clause for clause in node.clauses if clause.occur is not Occur.MUST_NOT]
                return all(clause.occur is Occur.MUST and self.has_one_score(clause.node) for clause in must)
            case Prefix():
                names = self._defaults if node.field is None else [node.field]
                return all(self._has_one_prefix_score(name, node.text) for name in names)
            case Word() | Phrase():
                return node.field is not None and base_type(self._schema[node.field]) not in {TEXT, KEYWORD}

    def _has_one_prefix_score(self, name: str, text: str) -> bool:
        if base_type(self._schema[name]) == KEYWORD:
            return True
        terms = prefix_terms(self._schema[name], text)
        is_prefix = len(terms) == 1 and terms[0].char_offset_to == len(text) and not self._cuts_beginnings(name)
        return not terms or is_prefix  # a phrase or a word otherwise

    def highlight_query(self, node: Node, name: str, searcher: tantivy.Searcher) -> Query | None:
        """The words of the query that may stand in a text field, as one query; None if there are none."""
        field = searched(name)
        words: set[str] = set()
        for text, is_prefix in _texts_for(node, name):
            words.update(term.text for term in query_terms(self._schema[name], text))
            begun = prefix_terms(self._schema[name], text)
            if (is_prefix or self._cuts_beginnings(name)) and begun:
                words.update(term.text for term in begun)
                found = searcher.terms_with_prefix(field, begun[-1].text, limit=HIGHLIGHT_MAX_PREFIX_WORDS)
                words.update(word for word, _ in found)
        if not words:
            return None
        return Query.boolean_query(
            [(TantivyOccur.Should, Query.term_query(self._fields, field, word)) for word in sorted(words)]
        )


def _texts_for(node: Node, name: str) -> list[tuple[str, bool]]:
    """(text, is a prefix) of all that is looked for, not excluded, in a text field."""
    match node:
        case Group():
            inner = [_texts_for(clause.node, name) for clause in node.clauses if clause.occur is not Occur.MUST_NOT]
            return [text for texts in inner for text in texts]
        case Boost():
            return _texts_for(node.node, name)
        case Word() | Phrase() | Prefix():
            return [(node.text, isinstance(node, Prefix))] if node.field in {None, name} else []
        case _:
            return []


def _interval(field_type: str, text: str) -> Interval:
    interval = interval_of(field_type, text)
    assert interval is not None, "the query was checked against the schema"
    return interval


def _number(value: str | float) -> float:
    assert not isinstance(value, str), "only keywords are text, and they have ranges of their own"
    return value
