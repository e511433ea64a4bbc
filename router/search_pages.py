"""Where a page of a search begins and where the next one does: what tokens hold, and how deep they may lead."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kvshard import limits
from kvshard.clock import Clock
from kvshard.clustermap import Collection
from kvshard.collapsing import shown_after
from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.model import SearchAfter, ShardHit, ShardSearchReply
from kvshard.scatter.coverage import Coverage
from kvshard.scatter.min_versions import MinVersions
from kvshard.scatter.requests import SearchQuery
from kvshard.scatter.tokens import SearchPosition, TokenCodec, fingerprint, fits_token
from kvshard.sorting import KEY, Sorts, is_by_score
from router.ranking import StatisticsUsed
from router.search_legs import Sought


class SearchPages:
    """Reads and writes the tokens of searches."""

    def __init__(self, tokens: TokenCodec, clock: Clock) -> None:
        self._tokens = tokens
        self._clock = clock

    def position(self, token: bytes, collection: Collection, request_print: bytes) -> SearchPosition:
        """Where a page begins; of an empty token, the first one. Raises InvalidToken."""
        return self._tokens.decode_search(token, collection.id, request_print) if token else SearchPosition()

    def token_behind(
        self,
        sought: Sought,
        page: Sequence[tuple[int, ShardHit]],
        coverage: Coverage,
        replies: Mapping[int, ShardSearchReply],
        ranked: StatisticsUsed,
    ) -> bytes:
        """The token of what comes behind the last of these hits, with their shards; there is at least one."""
        before, hits = sought.position, [hit for _, hit in page]
        whole, at_ms = before.statistics, before.statistics_at_ms
        if whole is None and ranked.whole is not None and fits_token(ranked.whole):
            whole, at_ms = ranked.whole, self._clock.wall_ms() - round(ranked.age_s * 1_000)
        reached = SearchPosition(
            after=SearchAfter(hits[-1].sort_values, hits[-1].score, hits[-1].key),
            taken=before.taken + len(hits),
            is_incomplete=not coverage.is_complete,
            shown=shown_after(before.shown, hits) if sought.query.shape.collapse else b"",
            statistics=whole,
            statistics_at_ms=at_ms,
            seen=before.seen if before.after else {shard: reply.indexed_through for shard, reply in replies.items()},
        )
        return self._tokens.encode_search(sought.collection.id, sought.request_print, reached)


def print_of(query: SearchQuery, sorts: Sorts, collection: Collection) -> bytes:
    """What a token remembers of the request: a place in one order means nothing in that of another schema.

    An order by fields depends on their types alone, so that a scroll survives that a field is added.
    """
    if is_by_score(sorts):
        order = [f"schema {collection.version}"] if collection.version > 1 else []
    else:
        order = [f"{key.name} {collection.schema.get(key.name, '')}" for key in sorts]
    return fingerprint([*query.fingerprint_parts(), *(text.encode() for text in order)])


def seeing(query: SearchQuery, position: SearchPosition) -> SearchQuery:
    """The search as it must see at least what its first page saw."""
    if not position.seen:
        return query
    wanted = MinVersions(position.seen)
    wanted.want_all(query.min_versions)
    return replace(query, min_versions=wanted)


def check_depth(position: SearchPosition, query: SearchQuery, sorts: Sorts) -> None:
    """Raise InvalidArgument where the page would end deeper than such a search can be paged through."""
    if position.after is not None and query.nearest is not None:
        text = "the nearest are one page; ask for more of them with limit and nearest.k"
        raise InvalidArgument(text, ErrorDetails(field="token"))
    depth = position.taken + query.limit
    if query.shape.collapse:
        check_group_depth(depth)
    if is_by_score(sorts) and depth > limits.SEARCH_MAX_DEPTH:
        raise InvalidArgument(
            f"a ranking can be paged through {limits.SEARCH_MAX_DEPTH} hits deep, not {depth}; sort by fields or by {KEY}, "
            "which has no such limit, or narrow the query",
            ErrorDetails(field="token", limit=limits.SEARCH_MAX_DEPTH),
        )


def check_group_depth(depth: int) -> None:
    """Raise InvalidArgument where a collapsed page would end deeper than one can page through its groups."""
    if depth > limits.COLLAPSE_MAX_GROUPS:
        raise InvalidArgument(
            f"a collapsed search can be paged through {limits.COLLAPSE_MAX_GROUPS} groups deep, not {depth}; narrow the query, "
            "or ask for a facet",
            ErrorDetails(field="token", limit=limits.COLLAPSE_MAX_GROUPS),
        )
