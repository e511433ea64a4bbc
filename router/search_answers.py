"""A search by its public message, whichever way that came: it into a search in domain terms, what was found into the answer.

Nothing is decided here; the checks are in `requests`, the work in `search` and `several`.
"""

from typing import Final

from kvshard.clock import Clock
from kvshard.query.fuzziness import check_fuzziness
from kvshard.rpc.aggregation_convert import aggregations_from_proto, results_to_proto
from kvshard.rpc.key_convert import coverage_to_proto, policy_of, timing_to_proto
from kvshard.rpc.query_convert import options_of
from kvshard.scatter.ledger import ReadTimes
from kvshard.scatter.merge import MergedFacet
from kvshard.scatter.min_versions import MinVersions
from kvshard.scatter.requests import DEFAULT_READ_POLICY, ReadPolicy, SearchQuery
from kvshard.v1 import search_pb2
from kvshard.vectors import Nearest
from router.profile_wire import profile_to_proto
from router.search import Found, SearchOperation
from router.search_wire import hits_to_proto, shape_of, sort_of, statistics_to_proto, total_relation_of
from router.several import SeveralSearch

DEFAULT_LIMIT: Final = 10
DEFAULT_FACET_LIMIT: Final = 10


class SearchAnswers:
    """Answers searches, over one collection or several."""

    def __init__(self, operation: SearchOperation, several: SeveralSearch, clock: Clock) -> None:
        self._operation = operation
        self._several = several
        self._clock = clock

    async def answer(self, request: search_pb2.SearchRequest, deadline: float, times: ReadTimes) -> search_pb2.SearchResponse:
        """What was found. times: the account of the read. Raises a KvShardError."""
        query = query_of(request)
        policy = policy_of(request.options) if request.HasField("options") else DEFAULT_READ_POLICY
        found, collections = await self._found(request, query, policy, deadline, times)
        is_timed = policy.is_timing_wanted or query.is_profile_wanted
        timing = times.timing(self._clock.monotonic()) if is_timed else None
        return search_pb2.SearchResponse(
            hits=hits_to_proto(found.hits, found.group_sizes, query.sort, collections),
            total=found.total,
            coverage=coverage_to_proto(found.coverage),
            facets=[_facet(facet) for facet in found.facets],
            next=found.next_token,
            aggregations=results_to_proto(found.aggregations),
            timing=timing_to_proto(timing) if timing is not None and policy.is_timing_wanted else None,
            profile=profile_to_proto(found.profiles, timing) if timing is not None and query.is_profile_wanted else None,
            unseen_age_ms=found.unseen_age_ms,
            total_relation=total_relation_of(found.is_total_exact),
            statistics=statistics_to_proto(found.statistics),
        )

    async def _found(
        self, request: search_pb2.SearchRequest, query: SearchQuery, policy: ReadPolicy, deadline: float, times: ReadTimes
    ) -> tuple[Found, list[str]]:
        """What was found, and the collection of each hit where several are searched."""
        if not request.collections:
            return await self._operation.search(request.collection, query, request.token, policy, deadline, times), []
        names = [request.collection, *request.collections]
        several = await self._several.search(names, query, request.token, policy, deadline, times)
        return several.rest, several.collections


def query_of(request: search_pb2.SearchRequest) -> SearchQuery:
    """What is asked for. Raises InvalidArgument."""
    return SearchQuery(
        query=request.query,
        filters=list(request.filters),
        limit=request.limit if request.HasField("limit") else DEFAULT_LIMIT,
        sort=sort_of(request),
        facets=list(request.facets),
        facet_limit=request.facet_limit or DEFAULT_FACET_LIMIT,
        highlight=list(request.highlight),
        is_refresh_wanted=request.refresh,
        is_keys_only=request.keys_only,
        shards=list(request.shards) or None,
        min_versions=MinVersions.decode_all(request.min_versions),
        fuzziness=check_fuzziness(request.fuzziness),
        aggregations=aggregations_from_proto(request.aggregations),
        nearest=_nearest(request),
        options=options_of(request),
        is_explanation_wanted=request.explain,
        is_profile_wanted=request.profile,
        shape=shape_of(request),
        is_local=request.statistics == search_pb2.STATISTICS_CHOICE_LOCAL,
    )


def _nearest(request: search_pb2.SearchRequest) -> Nearest | None:
    if not request.HasField("nearest"):
        return None
    return Nearest(request.nearest.field, list(request.nearest.vector), request.nearest.k)


def _facet(facet: MergedFacet) -> search_pb2.Facet:
    values = [search_pb2.FacetValue(value=value, count=count) for value, count in facet.values]
    return search_pb2.Facet(field=facet.field, values=values, error_bound=facet.error_bound)
