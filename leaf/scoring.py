"""The order of a search by score, as one index of all shards would have it.

tantivy finds the documents and gives each a score that is nearly right: each scored part of the query is multiplied by its
weight over all shards divided by the one that tantivy gives it. What is left is the average length of a field, which is that of
the shard, deleted documents among it; `leaf/bm25.py` has the bounds within which the right score lies. So those that may stand
on the page are taken, and only for these the right score is computed, each from an explanation of the query; or, where it is
made of terms alone, of these (`leaf/term_scores.py`).

Let tantivy's scores be g, and the right ones between `least * g` and `most * g`. tantivy gives a window of its best documents,
down to a score of g'. Any other has a right score of at most `most * g'`: so those in the window with right scores above that
are in their right order, and none is missing between them. While too few are, the window is widened. And once as many right
scores are known as the page needs, only those documents are looked at whose `most * g` reaches the lowest of these. Of a page
that begins behind a score, documents with `least * g` above that are passed over: they are on earlier pages. And where a score
is known that all hits of the page reach (`leaf/joint_best.py`), those whose `most * g` does not are left out.

Documents with one given score and the same lengths have the same right score, so one explanation does for all of them: a
keyword that thousands of documents have would cost as many. (That two different ways to come by a score agree in all 24 bits,
with the same lengths, would change their order by the part of a percent that the bounds are apart.)

Where a document gets the best of several scores, the one given does not tell the others, and by the right average lengths
another may be the best. There documents that match more than one of those are explained each by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from heapq import heappush, heapreplace
from itertools import groupby, islice
from math import inf
from operator import itemgetter
from typing import Final, NamedTuple, TypeAlias

import tantivy
from tantivy import Occur, Query

from kvshard.limits import STATISTICS_MAX_TERMS
from kvshard.model import ShardSearch, TermStatistics
from leaf.bm25 import Bm25, Bounds, Part, ScoredTerms, average_length, bounds
from leaf.index_fields import length_of
from leaf.index_statistics import IndexStatistics, explained
from leaf.made_query import Part as QueryPart
from leaf.search_plan import CompiledSearch
from leaf.term_scores import TermScores, is_made_of_terms
from leaf.weighting import Boosted

EXPLAINED_MAX: Final = 2_000
"""Explanations of one page, at 10 to 60 us each. Usual pages need about as many as they have hits."""

ALONE_MAX: Final = 64
"""Explanations of one search before it is found out which documents have several scores to take the best of: some 3 ms."""

SEVERAL_MAX: Final = 20_000
"""Documents that are listed for having more: some 10 ms. Where there are so many, each is explained."""

_Hit: TypeAlias = tuple[float, tantivy.DocAddress]


class Ordered(NamedTuple):
    """Documents in their right order. certain: so many of them have none missing between or before them, but for those that
    surely stand before the page.

    is_cut: of all matches those are left out that do not reach the bar, and no others.
    """

    hits: list[_Hit]
    certain: int
    is_cut: bool = False


class ExactScores:
    """Right scores for one search.

    is_bounded: there were too many documents to look at; some may be out of place by what the bounds are apart.

    bm25: by these statistics. part: what of the query this index can match. several: of what the best counts, each time.

    keeps_order: tantivy's order is the right one. So it is of a single keyword: it stands in a document once, and the fewer
    keywords there are beside it, the more it counts, by whatever average length. Beside another one, or what has a score of
    its own, the average decides which is worth more. is_of_one_text: scores rest on one word or phrase and nothing else.
    """

    def __init__(
        self,
        index: IndexStatistics,
        statistics: TermStatistics,
        compiled: CompiledSearch,
        check: Callable[[], object],
        bm25: Bm25,
        part: QueryPart,
        several: Sequence[Sequence[Query]] = (),
    ) -> None:
        self._index = index
        self.statistics = statistics
        self._bm25 = bm25
        self._part = part
        self._compiled = compiled
        self._bounds = query_bounds(index, statistics, compiled.terms)
        self._lengths = [length_of(name) for name in compiled.terms if index.has_lengths(name)]
        self._several = several
        self._having_several: set[tuple[int, int]] | None = None
        self.keeps_order = compiled.is_of_one_text and len(compiled.terms) == 1 and not self._lengths and not compiled.has_best
        self._check = check
        self._known: dict[tuple[int, int], float] = {}
        self._explained = 0
        self.is_bounded = False

    @property
    def numbered(self) -> tuple[Query, list[Part]]:
        """The query that is explained, and its parts by number."""
        return self._compiled.numbered

    def least_scores(self, hits: Sequence[_Hit], after: float | None, count: int) -> list[float]:
        """What the best of these, at most so many, score at least. after: those that may not be below it do not count."""
        least, most = self._bounds.least, self._bounds.most
        behind = (given for given, _ in hits if after is None or given * most < after)
        return [given * least for given in islice(behind, count)]

    def order(self, hits: Sequence[_Hit], is_everything: bool, after: float | None, wanted: int, bar: float = -inf) -> Ordered:
        """The right order of what may be among the first `wanted` with right scores below `after`, or among those equal to it.

        hits: in tantivy's order. is_everything: there are no more of them. bar: no lower scores are wanted.
        """
        least, most = self._bounds.least, self._bounds.most
        first = 0
        while after is not None and first < len(hits) and hits[first][0] * least > after:
            first += 1
        best: list[float] = []
        found: list[_Hit] = []
        floor = -1.0 if is_everything or not hits else hits[-1][0] * most
        is_cut = False
        for given, members in groupby(hits[first:], key=itemgetter(0)):
            if given * most < bar:
                floor, is_cut = -1.0, True
                break
            if len(best) == wanted and given * most < best[0]:
                floor = -1.0  # What is left does not matter.
                break
            for hit in self.scored(list(members)):
                if after is not None and hit[0] > after:
                    continue
                found.append(hit)
                if hit[0] == after:
                    continue
                if len(best) < wanted:
                    heappush(best, hit[0])
                elif hit[0] > best[0]:
                    heapreplace(best, hit[0])
        found.sort(key=_descending)
        end = len(found)
        while end and found[end - 1][0] < bar:
            end -= 1
            is_cut = True
        del found[end:]
        while end and found[end - 1][0] <= floor:
            end -= 1
        return Ordered(found, end, is_cut and floor < 0.0)

    def scored(self, hits: Sequence[_Hit]) -> list[_Hit]:
        """The same documents with their right scores."""
        alike: dict[tuple[float | None, ...], float] = {}
        columns: list[Sequence[float | None]] = []
        if len(hits) > 1 and self._lengths:
            addresses = [address for _, address in hits]
            columns = [self._index.searcher.fast_field_values(field, addresses) for field in self._lengths]
        right: list[_Hit] = []
        for place, (given, address) in enumerate(hits):
            kind = (given, *(column[place] for column in columns))
            if self._compiled.has_best and self._is_alone(address):
                right.append((self._score(given, address), address))
                continue
            score = alike.get(kind)
            if score is None:
                score = alike[kind] = self._score(given, address)
            right.append((score, address))
        return right

    def _is_alone(self, address: tantivy.DocAddress) -> bool:
        """Whether a document's score may be another than that of one which is given the same and has the same lengths."""
        if self._explained < ALONE_MAX or (address.segment_ord, address.doc) in self._known:
            return True
        if self._having_several is None:
            self._check()
            more = [Query.boolean_query([(Occur.Should, each) for each in queries], 2) for queries in self._several]
            either = Query.const_score_query(Query.boolean_query([(Occur.Should, each) for each in more]), 1.0)
            hits = self._index.searcher.search(either, SEVERAL_MAX, count=False).hits
            self._having_several = {(found.segment_ord, found.doc) for _, found in hits}
        return len(self._having_several) == SEVERAL_MAX or (address.segment_ord, address.doc) in self._having_several

    def _score(self, given: float, address: tantivy.DocAddress) -> float:
        place = (address.segment_ord, address.doc)
        score = self._known.get(place)
        if score is None:
            if self._explained == EXPLAINED_MAX:
                self.is_bounded = True
                return given
            self._check()
            self._explained += 1
            score = self._known[place] = self._scorer(address)
        return score

    @cached_property
    def _scorer(self) -> Callable[[tantivy.DocAddress], float]:
        """Works out the right score of a match."""
        index = self._index
        if is_made_of_terms(self._part):
            return TermScores(self._part, self._bm25, index.fields, index.searcher, index.has_term).score
        query, parts = self.numbered
        explaining = Bm25(self.statistics, parts)
        return lambda address: explaining.score(explained(query, index.searcher, address))


def _descending(hit: _Hit) -> float:
    return -hit[0]


def boost_of(index: IndexStatistics, bm25: Bm25) -> Callable[[ScoredTerms], float]:
    """By what a part's score has to be multiplied for its weight to be the right one."""

    def boost(part: ScoredTerms) -> float:
        own = index.own_idf(part)
        return bm25.idf(part) / own if own > 0.0 else 1.0

    return boost


def query_bounds(index: IndexStatistics, statistics: TermStatistics, terms: Mapping[str, Sequence[str]]) -> Bounds:
    """How far off tantivy's scores of a query with these terms, by field, may be, with its parts boosted."""
    return bounds([(average_length(statistics, name), index.own_average(name, each)) for name, each in terms.items()])


class Weighed(NamedTuple):
    """A query to be searched. exact: gives its matches their right scores; None: tantivy's scores are meant.

    own: the shard's statistics for its terms, if scores rest on any.
    """

    query: Query
    exact: ExactScores | None
    own: TermStatistics | None


def weighed(
    compiled: CompiledSearch,
    statistics: IndexStatistics,
    request: ShardSearch,
    restricted: Callable[[Query], Query],
    last_slot: int,
    check: Callable[[], object],
) -> Weighed:
    """The query of a search, scored by what the request says. restricted: adds to a query all that only restricts it.

    last_slot: documents beyond it have left the shard.
    """
    shipped = request.statistics
    if (shipped is None and not request.is_alone) or compiled.term_count > STATISTICS_MAX_TERMS:
        return Weighed(restricted(compiled.plain), None, None)
    own = statistics.of(compiled.terms, last_slot)
    if not own.counts:
        return Weighed(restricted(compiled.plain), None, own)
    right = own if shipped is None or request.is_alone else completed(shipped, own)
    bm25 = Bm25(right, ())
    boosted, narrowed = Boosted(statistics.fields, boost_of(statistics, bm25)), compiled.query.among(statistics.has_term)
    query = restricted(narrowed.made(boosted))
    return Weighed(query, ExactScores(statistics, right, compiled, check, bm25, narrowed.part, boosted.several), own)


def completed(shipped: TermStatistics, own: TermStatistics) -> TermStatistics:
    """The shipped statistics, with what they lack: a term that nobody had heard of is weighted by how rare it is here."""
    if shipped.documents <= 0:
        return own
    if all(name in shipped.tokens and each.keys() <= shipped.counts.get(name, {}).keys() for name, each in own.counts.items()):
        return shipped
    scale = shipped.documents / max(own.documents, 1)
    tokens = {name: shipped.tokens.get(name, round(count * scale)) for name, count in own.tokens.items()}
    counts = {
        name: {term: shipped.counts.get(name, {}).get(term, round(count * scale)) for term, count in each.items()}
        for name, each in own.counts.items()
    }
    return TermStatistics(shipped.documents, tokens, counts)
