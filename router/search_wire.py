"""What is asked of a search beside its query, and its hits: between wire messages and domain terms."""

from collections.abc import Iterable

from kvshard.collapsing import GroupSize
from kvshard.model import SearchShape, ShardHit, SortValue
from kvshard.scatter.requests import refuse
from kvshard.sorting import BY_SCORE, KEY, SCORE, SortKey, Sorts, parse_sort, sort_text, sorts_of
from kvshard.v1 import search_pb2
from router.profile_wire import explanation_to_proto
from router.ranking import StatisticsUsed
from router.statistics import Kind

_USUAL_FRAGMENTS = SearchShape().fragments
_USUAL_FRAGMENT_CHARS = SearchShape().fragment_chars


def sort_of(request: search_pb2.SearchRequest) -> str:
    """The sort, written out, whichever way it came. Raises InvalidArgument."""
    if not request.sorts:
        return request.sort
    if request.sort:
        refuse("sort and sorts are two ways to say the same; use one", "sorts")
    keys = [SortKey(each.field, each.descending or each.field == SCORE, each.missing_first) for each in request.sorts]
    return sort_text(sorts_of(keys))


def shape_of(request: search_pb2.SearchRequest) -> SearchShape:
    """How the hits are to be given."""
    options = request.highlight_options
    return SearchShape(
        fields=list(request.return_fields),
        fragments=options.fragments or _USUAL_FRAGMENTS,
        fragment_chars=options.fragment_chars or _USUAL_FRAGMENT_CHARS,
        collapse=request.collapse,
        count_up_to=request.track_total if request.HasField("track_total") else None,
    )


def hits_to_proto(
    hits: Iterable[tuple[int, ShardHit]], sizes: Iterable[GroupSize], sort: str, collections: Iterable[str] = ()
) -> list[search_pb2.Hit]:
    """The hits with their shards. sizes: of their groups, when the search is collapsed. sort: what they were sorted by.

    collections: of each hit, where several were searched.
    """
    sorts = parse_sort(sort)
    messages = [_hit(shard, hit, sorts) for shard, hit in hits]
    for message, size in zip(messages, sizes, strict=False):
        message.collapsed.count = size.count
        message.collapsed.is_lower_bound = not size.is_exact
        message.collapsed.value.CopyFrom(_sort_value(size.value))
    for message, collection in zip(messages, collections, strict=False):
        message.collection = collection
    return messages


def total_relation_of(is_exact: bool) -> search_pb2.TotalRelation.ValueType:
    """How a total compares to what there is."""
    return search_pb2.TOTAL_RELATION_EQUAL if is_exact else search_pb2.TOTAL_RELATION_GREATER_OR_EQUAL


_STATISTICS_KINDS = {
    None: search_pb2.SearchStatistics.KIND_UNSPECIFIED,
    Kind.EXACT: search_pb2.SearchStatistics.KIND_EXACT,
    Kind.CACHED: search_pb2.SearchStatistics.KIND_CACHED,
    Kind.LOCAL: search_pb2.SearchStatistics.KIND_LOCAL,
}


def statistics_to_proto(used: StatisticsUsed) -> search_pb2.SearchStatistics:
    """What the scores of an answer rest on."""
    return search_pb2.SearchStatistics(
        kind=_STATISTICS_KINDS[used.kind],
        age_ms=round(used.age_s * 1_000),
        extra_round_trips=used.extra_trips,
        bounded_shards=used.bounded,
    )


def _hit(shard: int, hit: ShardHit, sorts: Sorts) -> search_pb2.Hit:
    return search_pb2.Hit(
        key=hit.key,
        score=hit.score,
        document=hit.document,
        version=hit.version,
        shard=shard,
        highlights=[
            search_pb2.Highlight(
                field=each.field,
                fragment=each.fragment,
                starts=[start for start, _ in each.spans],
                ends=[end for _, end in each.spans],
            )
            for each in hit.highlights
        ],
        explanation=None if hit.explanation is None else explanation_to_proto(hit.explanation),
        sort_values=() if sorts == BY_SCORE else _sort_values(hit, sorts),
    )


def _sort_values(hit: ShardHit, sorts: Sorts) -> list[search_pb2.SortValue]:
    given = iter(hit.sort_values)
    found: list[search_pb2.SortValue] = []
    for key in sorts:
        if key.name == SCORE:
            found.append(search_pb2.SortValue(number=hit.score))
        elif key.name == KEY:
            found.append(search_pb2.SortValue(key=hit.key))
        else:
            found.append(_sort_value(next(given)))
    return found


def _sort_value(value: SortValue) -> search_pb2.SortValue:
    if value is None:
        return search_pb2.SortValue()
    if isinstance(value, str):
        return search_pb2.SortValue(keyword=value)
    return search_pb2.SortValue(number=value) if isinstance(value, float) else search_pb2.SortValue(integer=value)
