"""What a search means, worked out once for all the shards of a leaf, and for whoever asks the same again.

A leaf gets each query once for every shard it holds, and popular ones come again and again. What the query's text, the schema
and the rules say of it is the same each time: the nodes, and what they are compiled to, up to the scored parts. Only queries
with prefixes, wildcards or texts to be like are compiled anew: the words of the very index decide what they are.

All methods may be called on several threads at once: what is made twice is made alike.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Final

import tantivy
from tantivy import Query

from kvshard.clustermap import Collection
from kvshard.meaning import meant
from kvshard.model import ShardSearch, TermStatistics
from kvshard.query import Node, prepare
from kvshard.query.scored import is_of_one_text
from kvshard.schema import Schema
from leaf.bm25 import Part
from leaf.likeness import settled
from leaf.made_query import MadeQuery, holds_best
from leaf.query import QueryCompiler
from leaf.query_traits import needs_index
from leaf.weighting import Numbered, Weighting

PLANS_MAX: Final = 256
"""Searches remembered, as many as texts of queries are (`kvshard/query/literals.py`); each a few kB."""

PLAN_MAX_CHARS: Final = 2_048
"""Of all that a plan is made from. Longer ones are rare, and so many of the longest would hold tens of megabytes."""


class CompiledSearch:
    """The query of a search, compiled for indexes with one schema. node: what was compiled. filters: compiled too."""

    def __init__(
        self, node: Node, query: MadeQuery, filters: Sequence[Query], has_one_score: bool, fields: tantivy.Schema
    ) -> None:
        self.node = node
        self.query = query
        self.filters = filters
        self.has_one_score = has_one_score
        self.fields = fields
        self.terms = {name: sorted(terms) for name, terms in query.terms.items()}
        self.term_count = sum(map(len, self.terms.values()))
        self.has_best = holds_best(query.part)
        self.is_of_one_text = is_of_one_text(node)

    @cached_property
    def plain(self) -> Query:
        """Scored by tantivy's own statistics of the index."""
        return self.query.made(Weighting(self.fields, is_noting=False))

    @cached_property
    def numbered(self) -> tuple[Query, list[Part]]:
        """What is explained (`leaf/bm25.py`), and its parts by number."""
        weighting = Numbered(self.fields)
        return self.query.made(weighting), weighting.parts


class SearchPlan:
    """What one search means by one schema. Raises InvalidArgument where the request does not fit that."""

    def __init__(self, request: ShardSearch, schema: Schema) -> None:
        synonyms = tuple(request.synonyms)
        node = prepare(request.query, schema, tree=request.tree)
        self.node = meant(node, schema, synonyms, request.fuzziness)
        filters = [prepare(text, schema, f"filters[{at}]") for at, text in enumerate(request.filters)]
        self.filters = [meant(each, schema, synonyms) for each in filters]
        self._schema = schema
        self._is_lasting = not any(map(needs_index, (self.node, *self.filters)))
        self._compiled: CompiledSearch | None = None

    def compiled(
        self,
        compiler: QueryCompiler,
        fields: tantivy.Schema,
        searcher: tantivy.Searcher,
        statistics: TermStatistics | None,
        check: Callable[[], object],
    ) -> CompiledSearch:
        """The query for an index with these fields. statistics: of all shards, if they came. check: ends it by raising."""
        known = self._compiled
        if known is not None and known.fields == fields:
            return known
        node = self.node if self._is_lasting else settled(self.node, self._schema, searcher, statistics)
        query, filters = compiler.part(node, searcher, check), compiler.unscored(self.filters, searcher, check)
        compiled = CompiledSearch(node, query, filters, compiler.has_one_score(node), fields)
        if self._is_lasting:
            self._compiled = compiled
        return compiled


class SearchPlans:
    """The plans of the last PLANS_MAX different searches of a leaf."""

    def __init__(self) -> None:
        self._plans: dict[tuple[object, ...], SearchPlan] = {}

    def __repr__(self) -> str:
        return f"SearchPlans({len(self._plans)})"

    def of(self, request: ShardSearch, collection: Collection) -> SearchPlan:
        """The plan of a search. Raises InvalidArgument."""
        texts = (request.query, request.tree, request.fuzziness, *request.filters, *request.synonyms)
        if sum(map(len, texts)) > PLAN_MAX_CHARS:
            return SearchPlan(request, collection.schema)
        key = (collection.id, collection.version, len(request.filters), texts)
        plan = self._plans.pop(key, None)
        if plan is None:
            plan = SearchPlan(request, collection.schema)
            while len(self._plans) >= PLANS_MAX:
                self._plans.pop(next(iter(self._plans), key), None)
        self._plans[key] = plan  # The last one in order: the first is the one that nobody has asked for the longest.
        return plan
