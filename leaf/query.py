"""Turns a query into a tantivy query.

What the language means where a parser cannot know:
- A word without a field is looked for in every text field (if the schema has none, in every keyword field), or in the fields
  that the request names; a document gets the score of its best field.
- A word of a text field is cut as the index cuts its text. One that falls apart, like `asyncio.gather` or `run_in_executor`,
  is the phrase of its parts, which is what whoever wrote it means.
- A word without any letter or digit cannot be in a text: the clause is dropped. If nothing else is asked for, nothing matches.
- A prefix of several words (`"asyncio gath"*` does not exist, but `asyncio.gath*` does) finds at most 50 endings of its last
  word in each segment: tantivy's bound.
- A pattern with wildcards, or a regular expression, is compared with single words as the index has them, lower case.
- Words in text and keywords score by BM25. Prefixes, patterns, fuzzy words, ranges, numbers, dates and booleans score 1: a
  score of theirs would depend on the words that one shard happens to hold.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import tantivy
from tantivy import Occur as TantivyOccur
from tantivy import Query

from kvshard.analyzers import NGRAM
from kvshard.clustermap import TOKEN_SLOTS
from kvshard.query import (
    Alike,
    AnyOf,
    Best,
    Boost,
    Chosen,
    Constant,
    Exists,
    Fuzzy,
    Group,
    Interval,
    Keys,
    MatchAll,
    MatchNone,
    Node,
    Occur,
    Phrase,
    Prefix,
    Range,
    Regex,
    Wildcard,
    Within,
    Word,
    default_fields,
    interval_of,
    print_query,
)
from kvshard.query.bounds import fuzzy_distance
from kvshard.query.regex import parse_regex
from kvshard.schema import FLOAT, KEYWORD, TEXT, VECTOR, Schema, base_type, text_type
from leaf.analysis import END, WORD_STEP, query_terms, word_terms, words_and_terms
from leaf.expansions import Expansions, WordLists
from leaf.index_fields import (
    EXPIRES,
    KEY,
    PRESENT,
    key_text,
    keyword_term,
    marked_in,
    searched,
    slots,
    sorted_by,
    vector_id,
    whole_words,
)
from leaf.likeness import settled
from leaf.made_query import (
    BestPart,
    BoostPart,
    FixedPart,
    GroupPart,
    MadeQuery,
    Part,
    PhrasePart,
    RequiredPart,
    TermPart,
    made,
)
from leaf.marked_words import folded_regex, fuzzy_stem, lower_pattern, marked_words
from leaf.query_traits import holds_not
from leaf.weighting import Weighting

_OCCURS = {Occur.MUST: TantivyOccur.Must, Occur.SHOULD: TantivyOccur.Should}

_SearchedFor: TypeAlias = Word | Phrase | Prefix | Wildcard | Regex | Fuzzy


@dataclass(frozen=True, slots=True)
class _Scope:
    """What a node is compiled for. fields: (field, boost) that words without a field are looked for in.

    check: ends the search, by raising. considered: (field, term) that are thought of, also for unscored parts.
    """

    searcher: tantivy.Searcher
    fields: tuple[tuple[str, float], ...]
    check: Callable[[], object]
    lists: WordLists
    considered: list[tuple[str, str]] = field(default_factory=list)


class QueryCompiler:
    """Compiles queries for one index. They must have been checked against the schema (`kvshard.query.check_query`)."""

    def __init__(self, schema: Schema, index: tantivy.Index) -> None:
        self._schema = schema
        self._index = index
        self._fields = index.schema
        self._defaults = tuple((name, 1.0) for name in default_fields(schema))
        self._expansions = Expansions(index.schema)
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
        searcher: tantivy.Searcher | None = None,
        check: Callable[[], object] = lambda: None,
    ) -> Query:
        """The query, restricted to what the filters match, without documents whose time had passed at expired_at_ms, and
        without those beyond last_slot, which have left the shard by a split.

        weighting: makes its scored parts. searcher: the snapshot that will be searched; None: the present one. check: called
        now and then where compiling takes long; ends it by raising. Raises InvalidArgument for a prefix or wildcard that stands
        for too many words.
        """
        query = self.part(node, searcher, check).made(weighting or self._weighting)
        return self.restricted(query, self.unscored(filters, searcher, check), expired_at_ms, last_slot)

    def restricted(
        self, query: Query, filters: Sequence[Query], expired_at_ms: int | None, last_slot: int = TOKEN_SLOTS - 1
    ) -> Query:
        """The same of a query and filters that were compiled before."""
        clauses = [(TantivyOccur.Must, query), *((TantivyOccur.Must, each) for each in filters)]
        if expired_at_ms is not None:
            expired = Query.range_query(self._fields, EXPIRES, tantivy.FieldType.Unsigned, 0, expired_at_ms)
            clauses.append((TantivyOccur.MustNot, expired))
        if last_slot < TOKEN_SLOTS - 1:
            clauses.append((TantivyOccur.MustNot, slots(self._fields, last_slot + 1, TOKEN_SLOTS - 1)))
        return query if len(clauses) == 1 else Query.boolean_query(clauses)

    def scored(
        self,
        node: Node,
        weighting: Weighting,
        searcher: tantivy.Searcher | None = None,
        check: Callable[[], object] = lambda: None,
    ) -> Query:
        """The query alone, with its scored parts made by this weighting, which notes them; the rest as for `compile`."""
        return self.part(node, searcher, check).made(weighting)

    def part(
        self, node: Node, searcher: tantivy.Searcher | None = None, check: Callable[[], object] = lambda: None
    ) -> MadeQuery:
        """The query alone, with its scored parts left to be made. It fits every index of this schema, unless `needs_index`."""
        if isinstance(node, MatchAll):
            return MadeQuery(Query.all_query())  # Alone it needs no score, and is counted without a look at the documents.
        scope = self._scope(searcher, check)
        found = self._compile(node, scope)
        return MadeQuery(Query.empty_query() if found is None else found, scope.considered)

    def unscored(
        self, filters: Sequence[Node], searcher: tantivy.Searcher | None = None, check: Callable[[], object] = lambda: None
    ) -> list[Query]:
        """What these match, without a score."""
        scope = self._scope(searcher, check)
        return [made(self._unscored(each, scope), self._weighting) for each in filters]

    def _scope(self, searcher: tantivy.Searcher | None, check: Callable[[], object]) -> _Scope:
        used = searcher or self._index.searcher()
        return _Scope(used, self._defaults, check, WordLists(used))

    def _unscored(self, node: Node, scope: _Scope) -> Part:
        found = self._fixed(node, 0.0, scope)
        return Query.empty_query() if found is None else found

    def _fixed(self, node: Node, score: float, scope: _Scope) -> Part | None:
        """What a node matches, with this score."""
        found = self._compile(node, scope)
        if found is None:
            return None
        return FixedPart(found, score) if holds_not(node) else Query.const_score_query(made(found, self._weighting), score)

    def _compile(self, node: Node, scope: _Scope) -> Part | None:
        """None: it asks for words that no document can have."""
        match node:
            case MatchAll():
                return _scoring_one(Query.all_query())
            case MatchNone():
                return Query.empty_query()
            case Group():
                return self._group(node, scope)
            case Best() | Boost() | Constant() | Within():
                return self._wrapped(node, scope)
            case Exists():
                return self._exists(node.field)
            case Range():
                return self._range(node)
            case AnyOf():
                return self._any_of(node)
            case Keys():
                return Query.term_set_query(self._fields, KEY, [key_text(key) for key in node.keys])
            case Alike():
                return self._compile(settled(node, self._schema, scope.searcher), scope)
            case Chosen():
                return self._chosen(node, scope)
            case Word() | Phrase() | Prefix() | Wildcard() | Regex() | Fuzzy():
                return self._term(node, scope)

    def _wrapped(self, node: Best | Boost | Constant | Within, scope: _Scope) -> Part | None:
        if isinstance(node, Within):
            return self._compile(node.node, replace(scope, fields=node.fields))
        if isinstance(node, Best):
            found = [query for query in (self._compile(each, scope) for each in node.nodes) if query is not None]
            return _best_of(found, node.tie_breaker) if found else None
        if isinstance(node, Constant):
            return self._fixed(node.node, node.score, scope)
        inner = self._compile(node.node, scope)
        return None if inner is None else BoostPart(inner, node.factor)

    def _group(self, group: Group, scope: _Scope) -> Part | None:
        wanted: list[tuple[TantivyOccur, Part]] = []
        unwanted: list[Part] = []
        optional = 0
        for clause in group.clauses:
            if clause.occur is Occur.FILTER:
                filtered = self._unscored(clause.node, scope)
                wanted.append((TantivyOccur.Must, RequiredPart(filtered) if holds_not(clause.node) else filtered))
                continue
            if clause.occur is Occur.MUST_NOT:
                query = self._compile(clause.node, scope)
                unwanted += [query] if query is not None else []
                continue
            query = self._compile(clause.node, scope)
            if query is not None:
                if clause.occur is Occur.MUST and holds_not(clause.node):
                    query = RequiredPart(query)
                wanted.append((_OCCURS[clause.occur], query))
                optional += clause.occur is Occur.SHOULD
        if not wanted:
            if any(clause.occur is not Occur.MUST_NOT for clause in group.clauses):
                return None  # what was asked for cannot be in any document; "everything but" was not asked for
            wanted.append((TantivyOccur.Must, _scoring_one(Query.all_query())))
        minimum = 0 if group.minimum is None else group.minimum.of(optional)
        return GroupPart(wanted, unwanted, minimum)

    def _chosen(self, node: Chosen, scope: _Scope) -> Part | None:
        scope.considered.extend(node.considered)
        found = [(TantivyOccur.Should, _best_of([self._term_part(name, term) for name in names])) for term, names in node.words]
        minimum = 0 if node.minimum is None else node.minimum.of(len(found))
        return GroupPart(found, (), max(1, minimum)) if found else None

    def _term(self, node: _SearchedFor, scope: _Scope) -> Part | None:
        if node.field is not None:
            return self._term_in(node.field, node, scope)
        found: list[Part] = []
        for name, boost in scope.fields:
            part = self._term_in(name, node, scope)
            if part is not None:
                found.append(part if boost == 1.0 else BoostPart(part, boost))
        if not found:
            return None
        return _best_of(found)

    def _term_in(self, name: str, node: _SearchedFor, scope: _Scope) -> Part | None:
        field_type = base_type(self._schema[name])
        if isinstance(node, Wildcard):
            return self._wildcard(name, node, scope)
        if isinstance(node, Regex):
            return self._regex(name, node, scope)
        if field_type == TEXT:
            return self._text_term(name, node, scope)
        if field_type == KEYWORD:
            if isinstance(node, Prefix):
                shown = print_query(node)
                return self._expansions.prefix(scope.searcher, searched(name), keyword_term(node.text), shown)
            if isinstance(node, Fuzzy):  # a keyword beside the texts that it is looked for in: keywords are exact
                return Query.term_set_query(self._fields, searched(name), [keyword_term(node.text)])
            return self._term_part(name, keyword_term(node.text))
        interval = _interval(field_type, node.text)
        return self._numbers(name, interval, interval, True, True)

    def _text_term(self, name: str, node: Word | Phrase | Prefix | Fuzzy, scope: _Scope) -> Part | None:
        match node:
            case Prefix():
                return self._text_prefix(name, node, scope)
            case Fuzzy():
                return self._fuzzy(name, node)
            case Phrase():
                return self._text(name, node.text, node.slop)
            case Word():
                return self._text(name, node.text)

    def _text(self, name: str, text: str, slop: int = 0) -> Part | None:
        tokens = query_terms(self._schema[name], text)
        if not tokens:
            return None
        if len(tokens) == 1:
            return self._word(name, tokens[0].text)
        first, step = tokens[0].position, self._step(name)
        placed = [((token.position - first) * step, token.text) for token in tokens]
        return PhrasePart(name, placed, slop * step)

    def _step(self, name: str) -> int:
        """Places from one word to the next in this field."""
        return WORD_STEP if self._cuts_beginnings(name) else 1

    def _term_part(self, name: str, term: str) -> Part:
        """The documents with this term in this field, scored by BM25.

        Every scored term, phrase and best of several is a part of these kinds: what is made as a query here is not scored by
        the statistics of all shards, or not rightly.
        """
        return TermPart(name, term, self._index_options[name])

    def _word(self, name: str, word: str) -> Part:
        """What one word, as cut by the field's analyzer, finds there."""
        if not self._cuts_beginnings(name):
            return self._term_part(name, word)
        begun, whole = (self._term_part(name, term) for term in (word, word + END))
        return GroupPart([(TantivyOccur.Must, begun), (TantivyOccur.Should, whole)], (), 0)  # the word itself comes first

    def _begun_word(self, name: str, word: str, scope: _Scope) -> Part:
        if self._cuts_beginnings(name):
            return self._word(name, word)
        return self._expansions.prefix(scope.searcher, whole_words(name, self._schema[name]), word, f"{word}*")

    def _cuts_beginnings(self, name: str) -> bool:
        """Whether every beginning of a word is a term of this field."""
        return self._schema[name] == text_type(NGRAM)

    def _text_prefix(self, name: str, node: Prefix, scope: _Scope) -> Part | None:
        tokens = word_terms(self._schema[name], node.text)
        if not tokens:
            return None
        if tokens[-1].char_offset_to != len(node.text):
            return self._text(name, node.text)  # the word is over before the star, as in `asyncio.*`: any may follow
        if len(tokens) == 1:
            return self._begun_word(name, tokens[0].text, scope)
        if self._cuts_beginnings(name):
            return self._text(name, node.text)
        first = tokens[0].position
        words: list[str | tuple[int, str]] = [(token.position - first, token.text) for token in tokens]
        return Query.const_score_query(
            Query.phrase_prefix_query(self._fields, whole_words(name, self._schema[name]), words), 1.0
        )

    def _wildcard(self, name: str, node: Wildcard, scope: _Scope) -> Query:
        is_keyword = base_type(self._schema[name]) == KEYWORD
        pattern = node.pattern if is_keyword else lower_pattern(node.pattern, self._schema[name])
        field, searcher, shown = whole_words(name, self._schema[name]), scope.searcher, print_query(node)
        return self._expansions.wildcard(searcher, scope.lists, field, pattern, is_keyword, scope.check, shown)

    def _regex(self, name: str, node: Regex, scope: _Scope) -> Query:
        is_keyword = base_type(self._schema[name]) == KEYWORD
        regex = parse_regex(node.pattern) if is_keyword else folded_regex(node.pattern, self._schema[name])
        field, shown = whole_words(name, self._schema[name]), print_query(node)
        return self._expansions.regex(scope.searcher, scope.lists, field, regex, is_keyword, scope.check, shown)

    def _fuzzy(self, name: str, node: Fuzzy) -> Query | None:
        """All the words that the text falls apart into, each as fuzzy as its length allows."""
        field_type = self._schema[name]
        terms = dict(words_and_terms(field_type, node.text))
        queries: list[Query] = []
        for word in (token.text for token in word_terms(field_type, node.text)):
            distance = fuzzy_distance(node.distance, len(word))
            near = Query.fuzzy_term_query(self._fields, whole_words(name, field_type), word, distance=distance)
            stem = fuzzy_stem(field_type, terms.get(word, ""), distance)
            if stem is not None:
                of_stem = Query.fuzzy_term_query(self._fields, searched(name), stem[0], distance=stem[1])
                near = Query.disjunction_max_query([near, of_stem])
            queries.append(near)
        if len(queries) < 2:
            return queries[0] if queries else None
        return Query.const_score_query(Query.boolean_query([(TantivyOccur.Must, query) for query in queries]), 1.0)

    def _exists(self, name: str) -> Query:
        if base_type(self._schema[name]) == TEXT:
            return Query.const_score_query(Query.term_query(self._fields, PRESENT, name, "basic"), 1.0)
        return _scoring_one(Query.exists_query(vector_id(name) if base_type(self._schema[name]) == VECTOR else sorted_by(name)))

    def _any_of(self, node: AnyOf) -> Query:
        field, field_type = searched(node.field), base_type(self._schema[node.field])
        if not node.values:
            return Query.empty_query()
        if field_type == KEYWORD:
            return Query.term_set_query(self._fields, field, [keyword_term(value) for value in node.values])
        intervals = [_interval(field_type, value) for value in node.values]
        single = [each.first for each in intervals if each.first == each.last]
        longer = [self._numbers(node.field, each, each, True, True) for each in intervals if each.first != each.last]
        found = [Query.term_set_query(self._fields, field, single)] if single else []
        either = Query.boolean_query([(TantivyOccur.Should, query) for query in [*found, *longer]])
        return Query.const_score_query(either, 1.0)

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
        has_low, has_high = includes_lower or low is None, includes_upper or high is None  # An open end excludes nothing.
        return _scoring_one(Query.range_query(self._fields, searched(name), kind, low, high, has_low, has_high))

    def has_one_score(self, node: Node, fields: tuple[tuple[str, float], ...] | None = None) -> bool:
        """Whether all matches of the query surely have the same score. fields: as in `_Scope`."""
        searched_in = self._defaults if fields is None else fields
        match node:
            case MatchAll() | MatchNone() | Exists() | Range() | AnyOf() | Keys() | Constant():
                return True
            case Boost():
                return self.has_one_score(node.node, fields)
            case Within():
                return self.has_one_score(node.node, node.fields)
            case Group():
                scoring = [clause for clause in node.clauses if clause.occur in {Occur.MUST, Occur.SHOULD}]
                return all(clause.occur is Occur.MUST and self.has_one_score(clause.node, fields) for clause in scoring)
            case Prefix() | Wildcard() | Regex() | Fuzzy():
                names = {field for field, _ in searched_in} if node.field is None else {node.field}
                boosts = {boost for _, boost in searched_in} if node.field is None else {1.0}
                is_one = not isinstance(node, Prefix) or all(self._has_one_prefix_score(name, node.text) for name in names)
                return is_one and len(boosts) == 1
            case Word() | Phrase():
                return node.field is not None and base_type(self._schema[node.field]) not in {TEXT, KEYWORD}
            case Best() | Alike() | Chosen():
                return False

    def _has_one_prefix_score(self, name: str, text: str) -> bool:
        if base_type(self._schema[name]) == KEYWORD:
            return True
        terms = word_terms(self._schema[name], text)
        is_prefix = len(terms) == 1 and terms[0].char_offset_to == len(text) and not self._cuts_beginnings(name)
        return not terms or is_prefix  # a phrase or a word otherwise

    def highlight_query(self, node: Node, name: str, texts: Callable[[], Sequence[str]]) -> Query | None:
        """The words of the query that may stand in a text field, as one query; None if there are none.

        texts: gives those of the field that will be marked, where the words are that a prefix or a fuzzy word stands for.
        """
        words = marked_words(node, name, self._schema[name], texts)
        if not words:
            return None
        field = marked_in(name, self._schema[name])
        return Query.boolean_query(
            [(TantivyOccur.Should, Query.term_query(self._fields, field, word, "basic")) for word in sorted(words)]
        )


def _best_of(parts: Sequence[Part], tie_breaker: float = 0.0) -> Part:
    """The documents that match one of these, with the score of the best."""
    return parts[0] if len(parts) == 1 else BestPart(parts, tie_breaker)


def _scoring_one(query: Query) -> Query:
    """For what may match all of a segment: beside other clauses tantivy leaves a bare one out there, score and all."""
    return Query.const_score_query(query, 1.0)


def _interval(field_type: str, text: str) -> Interval:
    interval = interval_of(field_type, text)
    assert interval is not None, "the query was checked against the schema"
    return interval


def _number(value: str | float) -> float:
    assert not isinstance(value, str), "only keywords are text, and they have ranges of their own"
    return value
