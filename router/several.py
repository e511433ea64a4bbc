"""A search over several collections: each is searched as if alone, all of them at once, and their hits become one page.

Scores rest on the statistics of the collection that a hit is in, as Elasticsearch has it: a word that is rare in a small
collection counts for more there. Equal places in the order go to the collection that is named first. The token of a page holds
that of each collection, behind the last of its hits that was shown. What could not be merged exactly is refused.

Collapsed, a group is on one page only, by the first of its hits in whatever collection: the token holds the digests of all
groups that were shown, and no collection is asked for hits of these.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import merge, nsmallest
from typing import Final

from kvshard.aggregations.model import fields_of
from kvshard.clustermap import Collection
from kvshard.collapsing import DIGEST_BYTES, GroupSize, shown_after
from kvshard.model import ShardHit, SortValue
from kvshard.scatter.coverage import Coverage
from kvshard.scatter.ledger import ReadTimes
from kvshard.scatter.merge import MergedFacet
from kvshard.scatter.requests import ReadPolicy, SearchQuery, refuse
from kvshard.scatter.routes import MapSource, resolve
from kvshard.scatter.tokens import SEVERAL_TOKENS_MAX, TokenCodec, fingerprint
from kvshard.sorting import parse_sort, place_of
from router.ranking import NO_SCORES, StatisticsUsed
from router.search import PAGE_MAX_BYTES, Found, SearchOperation
from router.search_aggregations import aggregated
from router.search_pages import check_group_depth
from router.statistics import Kind

COLLECTIONS_MAX: Final = SEVERAL_TOKENS_MAX
"""Each is a search of its own on every shard."""

_KINDS: Final = (None, Kind.EXACT, Kind.CACHED, Kind.LOCAL)
"""From the best that scores can rest on to the least."""


@dataclass(frozen=True, slots=True)
class FoundInSeveral:
    """A page over several collections. collections: of each hit, its name. used: of each collection, how many of its hits are
    on the page, or are passed over for one of their group. has_more: there are hits behind it. rest: everything else.
    """

    rest: Found
    collections: list[str] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    has_more: bool = False


class SeveralSearch:
    """Search over several collections in domain terms."""

    def __init__(self, maps: MapSource, operation: SearchOperation, tokens: TokenCodec) -> None:
        self._maps = maps
        self._operation = operation
        self._tokens = tokens

    async def search(
        self,
        names: Sequence[str],
        query: SearchQuery,
        token: bytes,
        policy: ReadPolicy,
        deadline: float,
        times: ReadTimes | None = None,
    ) -> FoundInSeveral:
        """One page of hits of the collections of these names. Raises as a search of each of them alone does."""
        check_several(names, query)
        collections = [(await resolve(self._maps, name))[1] for name in names]
        if len({each.id for each in collections}) < len(collections):
            refuse("a collection stands twice in the search, by its name or an alias", "collections")
        check_types(query, collections)
        is_collapsed = bool(query.shape.collapse)
        request_print = fingerprint([each.id.to_bytes(4) for each in collections] + [b"collapsed"] * is_collapsed)
        before, is_incomplete, groups = [b""] * len(collections), False, b""
        if token:
            before, is_incomplete = self._tokens.decode_several(token, request_print)
            if is_collapsed:
                groups = before.pop()
                check_groups(groups, query)
        searches = [
            self._operation.search(each.name, query_for(query, each, collections), begin, policy, deadline, times, groups)
            for each, begin in zip(collections, before, strict=True)
        ]
        # All of them are waited for: none may go on by itself when another has failed.
        outcomes = await asyncio.gather(*searches, return_exceptions=True)
        found = [each for each in outcomes if isinstance(each, Found)]
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        several = merged([each.name for each in collections], found, query)
        parts = [part for each in found for part in each.parts]
        aggregations = await aggregated(query.aggregations, parts, collections[0].schema)
        coverage = several.rest.coverage
        coverage = replace(coverage, is_complete=coverage.is_complete and not is_incomplete)
        next_token = b""
        if several.has_more:
            begins = tokens_behind(several, found, before)
            if is_collapsed:
                begins.append(shown_after(groups, (hit for _, hit in several.rest.hits)))
            next_token = self._tokens.encode_several(request_print, begins, not coverage.is_complete)
        rest = replace(several.rest, aggregations=aggregations, coverage=coverage, next_token=next_token)
        return replace(several, rest=rest)


def check_several(names: Sequence[str], query: SearchQuery) -> None:
    """Raise InvalidArgument for what a search over several collections cannot do."""
    if len(names) > COLLECTIONS_MAX:
        refuse(f"a search goes over at most {COLLECTIONS_MAX} collections, not {len(names)}", "collections", COLLECTIONS_MAX)
    if query.nearest is not None:
        refuse("nearest does not go over several collections; search each of them by itself", "nearest")


def check_groups(shown: bytes, query: SearchQuery) -> None:
    """Raise InvalidArgument where a collapsed page would end deeper than one can page. shown: digests of the groups before."""
    check_group_depth(len(shown) // DIGEST_BYTES + query.limit)


def check_types(query: SearchQuery, collections: Sequence[Collection]) -> None:
    """Raise InvalidArgument where a field of the aggregations is not of one type, or that of the groups not everywhere."""
    name = query.shape.collapse
    if name and any(each.schema.get(name) != collections[0].schema.get(name) for each in collections):
        found = ", ".join(f"{each.schema.get(name, 'none')} in {each.name}" for each in collections)
        refuse(
            f"several collections are collapsed by a field that is of one type in all of them; {name} is {found}", "collapse"
        )
    for name in sorted(fields_of(query.aggregations)):
        types = {each.schema[name] for each in collections if name in each.schema}
        if len(types) > 1:
            refuse(
                f"{name} is of type {' and '.join(sorted(types))} here and there; search each collection by itself",
                "aggregations",
            )


def query_for(query: SearchQuery, collection: Collection, collections: Sequence[Collection]) -> SearchQuery:
    """The search as this collection is asked: it need not have the fields that another has."""
    elsewhere = {name: kind for each in collections for name, kind in each.schema.items()}

    def known_here(names: Sequence[str]) -> list[str]:
        return [name for name in names if name in collection.schema or name not in elsewhere]

    return replace(query, elsewhere=elsewhere, facets=known_here(query.facets), highlight=known_here(query.highlight))


def merged(names: Sequence[str], found: Sequence[Found], query: SearchQuery) -> FoundInSeveral:
    """One page of those of several collections."""
    hits, used = _hits(found, query)
    statistics = [each.statistics for each in found]
    ages = [each.unseen_age_ms for each in found]
    known_ages = [age for age in ages if age is not None]
    rest = Found(
        hits=[(shard, hit) for _, shard, hit in hits],
        total=sum(each.total for each in found),
        coverage=_coverage([each.coverage for each in found]),
        facets=[_facet(name, found, query.facet_limit) for name in query.facets],
        next_token=b"",
        unseen_age_ms=max(known_ages, default=0) if len(known_ages) == len(ages) else None,
        statistics=_statistics(statistics),
        profiles=[leg._replace(collection=name) for name, each in zip(names, found, strict=True) for leg in each.profiles],
        is_total_exact=all(each.is_total_exact for each in found),
        group_sizes=_group_sizes((hit for _, _, hit in hits), found) if query.shape.collapse else (),
    )
    is_more_left = any(each.next_token or len(each.hits) > count for each, count in zip(found, used, strict=True))
    return FoundInSeveral(rest, [names[at] for at, _, _ in hits], used, bool(hits) and is_more_left)


def tokens_behind(page: FoundInSeveral, found: Sequence[Found], before: Sequence[bytes]) -> list[bytes]:
    """The token of each collection behind what a page used of theirs. before: those that they were asked with."""
    return [each.token_behind(used) if used else begin for each, used, begin in zip(found, page.used, before, strict=True)]


def _hits(found: Sequence[Found], query: SearchQuery) -> tuple[list[tuple[int, int, ShardHit]], list[int]]:
    """The hits of the page, each with the place of its collection and its shard; and `FoundInSeveral.used`."""
    place = place_of(parse_sort(query.sort))
    is_collapsed = bool(query.shape.collapse)
    used = [0] * len(found)
    page: list[tuple[int, int, ShardHit]] = []
    groups: set[SortValue] = set()
    size = 0
    streams = [_numbered(at, each) for at, each in enumerate(found)]
    for at, shard, hit in merge(*streams, key=lambda each: (place(each[2].sort_values, each[2].score, each[2].key), each[0])):
        if not is_collapsed or hit.group not in groups:
            size += len(hit.document) + len(hit.key)
            if len(page) >= query.limit or (size > PAGE_MAX_BYTES and page):
                break
            page.append((at, shard, hit))
            groups.add(hit.group)
        used[at] += 1
        is_short = is_collapsed or len(found[at].hits) < query.limit
        if used[at] == len(found[at].hits) and found[at].next_token and is_short:
            break  # It has kept back what may come next.
    return page, used


def _group_sizes(hits: Iterable[ShardHit], found: Sequence[Found]) -> list[GroupSize]:
    """The size of each hit's group over all collections: one that has more hits than it delivered may have some of it."""
    known = [{size.value: size for size in each.group_sizes} for each in found]
    sizes: list[GroupSize] = []
    for hit in hits:
        parts = [sizes_of.get(hit.group) for sizes_of in known]
        is_exact = all(not each.next_token if part is None else part.is_exact for part, each in zip(parts, found, strict=True))
        sizes.append(GroupSize(hit.group, sum(part.count for part in parts if part is not None), is_exact))
    return sizes


def _numbered(at: int, found: Found) -> Iterator[tuple[int, int, ShardHit]]:
    return ((at, shard, hit) for shard, hit in found.hits)


def _coverage(parts: Sequence[Coverage]) -> Coverage:
    return Coverage(
        is_complete=all(each.is_complete for each in parts),
        documents_considered=sum(each.documents_considered for each in parts),
        documents_total=sum(each.documents_total for each in parts),
        legs=sum(each.legs for each in parts),
        legs_ok=sum(each.legs_ok for each in parts),
        failed=tuple(sorted((leg for each in parts for leg in each.failed), key=lambda leg: leg.shard)),
    )


def _facet(name: str, found: Sequence[Found], limit: int) -> MergedFacet:
    """The values of a facet added up. A value that a collection did not return counts there as much as the last one at most."""
    counts: dict[str, int] = {}
    certain: dict[str, int] = {}
    uncertain = 0
    for facet in (each for one in found for each in one.facets if each.field == name):
        error = facet.error_bound + (facet.values[-1][1] if len(facet.values) >= limit else 0)
        uncertain += error
        for value, count in facet.values:
            counts[value] = counts.get(value, 0) + count
            certain[value] = certain.get(value, 0) + error - facet.error_bound
    best = nsmallest(limit, counts.items(), key=lambda item: (-item[1], item[0]))
    return MergedFacet(name, best, max((uncertain - certain[value] for value, _ in best), default=0))


def _statistics(parts: Sequence[StatisticsUsed]) -> StatisticsUsed:
    if not parts:
        return NO_SCORES
    return StatisticsUsed(
        kind=max((each.kind for each in parts), key=_KINDS.index),
        age_s=max(each.age_s for each in parts),
        extra_trips=sum(each.extra_trips for each in parts),
        bounded=sum(each.bounded for each in parts),
    )
