"""What is told of a search to whoever asked: how each hit's score came about, and what the search did."""

from collections.abc import Callable, Sequence
from functools import partial

import tantivy
from tantivy import Query

from kvshard.model import ShardHit, ShardSearchReply, changed
from kvshard.query import Node
from kvshard.schema import KEYWORD, Schema, base_type
from kvshard.search_accounts import LegPhase, LegProfile, ScoreExplanation
from kvshard.sorting import SCORE, parse_sort
from leaf.explanations import Explainer
from leaf.index_fields import KEY, key_text, keyword_of, searched
from leaf.index_statistics import explained
from leaf.scoring import Weighed
from leaf.search_plan import CompiledSearch
from leaf.search_profile import profiled_terms
from leaf.text_index import TextIndex
from leaf.weighting import Weighting


def explained_hits(
    sort: str,
    hits: list[ShardHit],
    index: TextIndex,
    searcher: tantivy.Searcher,
    compiled: CompiledSearch,
    ranked: Weighed,
    check: Callable[[], object],
) -> list[ShardHit]:
    """The hits, each with how its score came about. check: called before each; ends it by raising."""
    if all(key.name != SCORE for key in parse_sort(sort)):
        unscored = ScoreExplanation(0.0, f"sorted by {sort}, without a score")
        return [changed(hit, explanation=unscored) for hit in hits]
    query, parts = compiled.numbered
    statistics = None if ranked.exact is None else ranked.exact.statistics
    explainer = Explainer(parts, statistics, partial(_shown, index.schema))
    telling: list[ShardHit] = []
    for hit in hits:
        check()
        found = searcher.search(Query.term_query(compiled.fields, KEY, key_text(hit.key), "basic"), 1).hits
        told = explainer.explain(explained(query, searcher, found[0][1]))
        telling.append(changed(hit, explanation=told))
    return telling


def profile_of(
    reply: ShardSearchReply,
    nodes: Sequence[Node],
    index: TextIndex,
    searcher: tantivy.Searcher,
    took: list[LegPhase],
    check: Callable[[], object],
) -> LegProfile:
    """What a search did. nodes: of its query and its filters. check: called now and then; ends it by raising."""
    weighting = Weighting(index.fields)
    for node in nodes:
        index.compiler.scored(node, weighting, searcher, check)
    return LegProfile(
        terms=profiled_terms(
            weighting.parts, lambda name, term: int(searcher.doc_freq(searched(name), term)), partial(_shown, index.schema)
        ),
        phases=took,
        indexed_through=reply.indexed_through,
        segments=searcher.num_segments,
        documents=searcher.num_docs,
        matches=reply.total,
        hits=len(reply.hits),
    )


def _shown(schema: Schema, name: str, term: str) -> str:
    return keyword_of(term) if base_type(schema[name]) == KEYWORD else term
