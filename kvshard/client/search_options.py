"""What a search may ask for besides its query, and the request that it becomes."""

from collections.abc import Mapping, Sequence
from typing import Final

from kvshard.aggregations.model import NOTHING, Aggregation
from kvshard.client.checks import check_min_versions, check_search_limit, check_wanted_nearest, invalid
from kvshard.client.options import ReadOverrides
from kvshard.client.shaping import Sort, counted_up_to, highlighting, sort_given
from kvshard.client.wire import statistics_choice
from kvshard.query.structured import Operator, Share, StructuredQuery
from kvshard.rpc.aggregation_convert import aggregations_to_proto
from kvshard.rpc.query_convert import operator_to_proto, structured_of_search
from kvshard.v1 import search_pb2, types_pb2
from kvshard.vectors import Nearest


class SearchOptions(ReadOverrides, total=False):
    """The keyword arguments of `Collection.search`, which says what they mean; absent ones have the defaults beside them."""

    matching: StructuredQuery | None  # None
    fields: Sequence[str]  # ()
    operator: Operator  # "or"
    minimum_should_match: Share | None  # None
    limit: int  # 10
    filters: Sequence[str]  # ()
    facets: Sequence[str]  # ()
    facet_limit: int  # 10
    aggs: Mapping[str, Aggregation]  # {}
    sort: Sort  # ""
    return_fields: Sequence[str]  # ()
    collapse: str  # ""
    track_total: bool | int  # True
    highlight: Sequence[str]  # ()
    fragments: int  # 1
    fragment_chars: int  # 150
    next: bytes | None  # None
    refresh: bool  # False
    keys_only: bool  # False
    shards: Sequence[int] | None  # None
    collections: Sequence[str]  # ()
    min_versions: bytes | Sequence[bytes]  # b""
    fuzziness: str | int  # 0
    nearest: Nearest | None  # None
    explain: bool  # False
    profile: bool  # False
    statistics: str  # "exact"


_READ: Final = frozenset(ReadOverrides.__annotations__)
_NAMES: Final = frozenset(SearchOptions.__annotations__) - _READ


def read_overrides(given: SearchOptions) -> ReadOverrides:
    """What the options say about how to read, and those that there are not: whoever reads them refuses them by name."""
    return {name: value for name, value in given.items() if name not in _NAMES}  # type: ignore[return-value]


def search_request(
    collection: str, query: str | StructuredQuery, given: SearchOptions, options: types_pb2.ReadOptions
) -> search_pb2.SearchRequest:
    """The request of a search. options: how to read. Raises InvalidArgument for what can be told to be wrong here."""
    for name in ("fields", "filters", "facets", "highlight", "return_fields", "collections"):
        if isinstance(given.get(name), str):
            raise invalid(f"{name} is a list of strings, not one string", name)
    minimum, nearest = given.get("minimum_should_match"), given.get("nearest")
    return search_pb2.SearchRequest(
        collection=collection,
        query=query if isinstance(query, str) else "",
        structured=structured_of_search(query, given.get("matching")),
        default_fields=given.get("fields", ()),
        minimum_should_match="" if minimum is None else str(minimum),
        default_operator=operator_to_proto(given.get("operator", "or"), "operator"),
        filters=given.get("filters", ()),
        limit=check_search_limit(given.get("limit", 10)),
        token=given.get("next") or b"",
        sort=sort_given(given.get("sort", "")),
        return_fields=given.get("return_fields", ()),
        collapse=given.get("collapse", ""),
        track_total=counted_up_to(given.get("track_total", True)),
        facets=given.get("facets", ()),
        facet_limit=given.get("facet_limit", 10),
        highlight=given.get("highlight", ()),
        highlight_options=highlighting(given.get("fragments", 1), given.get("fragment_chars", 150)),
        refresh=given.get("refresh", False),
        keys_only=given.get("keys_only", False),
        shards=given.get("shards"),
        collections=given.get("collections", ()),
        min_versions=check_min_versions(given.get("min_versions", b"")),
        fuzziness=str(given.get("fuzziness", 0)),
        nearest=None if nearest is None else search_pb2.NearestQuery(**check_wanted_nearest(nearest)._asdict()),
        explain=given.get("explain", False),
        profile=given.get("profile", False),
        statistics=statistics_choice(given.get("statistics", "exact")),
        options=options,
        aggregations=aggregations_to_proto(given.get("aggs", NOTHING)),
    )
