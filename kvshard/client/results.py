"""What the client hands back for keys, batches and searches: plain immutable data.

Nothing here does anything: no grpc, no asyncio.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import msgspec

from kvshard.aggregations.results import AggregationResult, Bucket, BucketsResult
from kvshard.clustermap import HEDGED_AS_THE_ROUTER_SAYS, Hedging, SchemaChange
from kvshard.errors import KvShardError

K = TypeVar("K", bound=str | bytes)
"""Type of the keys that a client gives back: str or bytes."""
V = TypeVar("V")
"""Type of the values: bytes, or dict for documents."""

Document = dict[str, Any]
"""A JSON object."""


@dataclass(frozen=True, slots=True)
class ReadState:
    """Which state of a shard a stale read saw: the one after the write with this sequence number.

    age_ms: it holds every write acknowledged before that many milliseconds ago; None: the replica could not tell.
    """

    shard: int
    seqno: int
    age_ms: int | None

    def older(self, other: "ReadState") -> "ReadState":
        """What both states together can promise."""
        age_ms = None if self.age_ms is None or other.age_ms is None else max(self.age_ms, other.age_ms)
        return ReadState(self.shard, min(self.seqno, other.seqno), age_ms)


class Item(msgspec.Struct, Generic[K, V], frozen=True):
    """A key with its value. version: sequence number of its last write. expires_at_ms: milliseconds since 1970, 0 for never.

    timing: where the time of a single read went, when explain_timing was set. state: of a single stale read. A Struct, since a
    batch makes thousands of them and a frozen dataclass takes ten times as long to make.
    """

    key: K
    value: V
    version: int
    expires_at_ms: int = 0
    timing: "Timing | None" = None
    state: ReadState | None = None

    @property
    def expires_at(self) -> datetime | None:
        """The instant at which the key vanishes; None for never."""
        return datetime.fromtimestamp(self.expires_at_ms / 1000, UTC) if self.expires_at_ms else None


@dataclass(frozen=True, slots=True)
class FailedShard:
    """A shard that is missing from a gathered answer, with the reason; error.details.replicas_tried: the leaves asked."""

    shard: int
    error: KvShardError


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of what had to be asked did answer. fraction = documents_considered / documents_total."""

    complete: bool
    documents_considered: int
    documents_total: int
    fraction: float
    legs: int
    legs_ok: int
    failed: tuple[FailedShard, ...] = ()


@dataclass(frozen=True, slots=True)
class AttemptTiming:
    """One try of a leg. began_us, ended_us: microseconds from the leg's start. kind: "first", "hedge", "retry", "failover".

    outcome: "won", "cancelled", or the reason of its error in lower case.
    """

    leaf: str
    kind: str
    began_us: int
    ended_us: int
    outcome: str


@dataclass(frozen=True, slots=True)
class LegTiming:
    """Where the time of one shard's part went, in microseconds. leaf: whose answer was used, empty when the leg failed.

    total_us: from the first attempt to the outcome. queue_us, service_us: of the winning attempt, at its leaf. network_us:
    what it took from that attempt's start on beyond these, on the wire and in either process; what is missing to the total
    went by before it. tries: the attempts, empty when the first one answered and nothing else happened. refused: why hedges
    were not sent.
    """

    shard: int
    leaf: str
    attempts: int
    total_us: int
    queue_us: int
    service_us: int
    network_us: int = 0
    tries: tuple[AttemptTiming, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a whole answer went, in microseconds, seen at the router.

    straggler_shard: the shard that was waited for last. legs_omitted: legs that are not listed, faster than those that are.
    before_us: what went by before the first leg was sent: for a newer map, or for statistics of a search's words that no answer
    had told yet; 0 of a scan, and from older routers.
    """

    legs: tuple[LegTiming, ...]
    total_us: int
    merge_us: int
    straggler_shard: int
    legs_omitted: int = 0
    before_us: int = 0

    @property
    def first_legs(self) -> "tuple[LegTiming, ...]":
        """The first leg of each shard: a page of a search may ask a shard again, after all of these."""
        firsts: dict[int, LegTiming] = {}
        for leg in self.legs:
            firsts.setdefault(leg.shard, leg)
        return tuple(firsts.values())

    @property
    def straggler(self) -> LegTiming | None:
        """The leg that was waited for last; None when there was no leg, or it is not listed."""
        legs = (leg for leg in self.legs if leg.shard == self.straggler_shard)
        return max(legs, key=lambda leg: leg.total_us, default=None)


@dataclass(frozen=True, slots=True)
class SlowRead:
    """A read of the slow log. at_ms: when it ended, in milliseconds since 1970.

    method: "Get", "BatchGet", "Scan", "Search", "Suggest". detail: what was asked, shortened. code: canonical status name, "OK"
    for one that succeeded. worker: the router process that answered it.
    """

    at_ms: int
    method: str
    collection: str
    detail: str
    code: str
    timing: Timing
    worker: str = ""

    @property
    def at(self) -> datetime:
        """When it ended."""
        return datetime.fromtimestamp(self.at_ms / 1000, UTC)


class SlowReads(list[SlowRead]):
    """Slow reads, the slowest first. silent: processes of the router that did not answer; what they have is missing."""

    def __init__(self, reads: Iterable[SlowRead], silent: Iterable[str] = ()) -> None:
        super().__init__(reads)
        self.silent = tuple(silent)


@dataclass(frozen=True, slots=True)
class Highlight:
    """Part of a text field; spans are (start, end) of the matches in characters of the fragment."""

    field: str
    fragment: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a value came about: the description says what it is, and what is done with the details."""

    value: float
    description: str
    details: tuple["Explanation", ...] = ()


@dataclass(frozen=True, slots=True)
class ProfiledTerm:
    """A term of a query in one shard. documents: of its index that have it, deleted ones included that are not merged away."""

    field: str
    term: str
    documents: int


@dataclass(frozen=True, slots=True)
class LegProfile:
    """What one leg of a search looked for, and where its time went. phases_us: name -> microseconds, in order.

    indexed_through: its index holds the writes through this version. documents: live ones in it. matches, hits: of these found,
    and delivered. collection: where several were searched.
    """

    shard: int
    leaf: str
    terms: tuple[ProfiledTerm, ...]
    phases_us: Mapping[str, int]
    indexed_through: int
    segments: int
    documents: int
    matches: int
    hits: int
    collection: str = ""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a search did: each leg at its leaf, and where the time went between the router and the leaves."""

    legs: tuple[LegProfile, ...]
    timing: Timing


@dataclass(frozen=True, slots=True)
class Collapsed:
    """What a hit of a collapsed search stands for: the matches with this value; None: those without one.

    count: how many they are; at least as many if not is_exact.
    """

    value: int | str | None
    count: int
    is_exact: bool


@dataclass(frozen=True, slots=True)
class Hit(Generic[K]):
    """A document found. document: None when only keys were asked for. score: 0 when sorted without it.

    sort_values: one for each sort key, in order, None where the document has none; empty when sorted by score alone. Dates are
    microseconds since 1970, UTC; booleans 0 or 1. collapsed: set in a collapsed search. collection: which it is in, where
    several were searched.
    """

    key: K
    score: float
    document: Document | None
    version: int
    shard: int
    highlights: tuple[Highlight, ...] = ()
    explanation: Explanation | None = None
    sort_values: tuple[int | float | str | bytes | None, ...] = ()
    collapsed: Collapsed | None = None
    collection: str = ""


@dataclass(frozen=True, slots=True)
class FacetValue:
    """A value of a facet and how many matches have it."""

    value: str
    count: int


@dataclass(frozen=True, slots=True)
class Facet:
    """Values of one keyword field over all matches, most frequent first. error_bound: how much too low a count may be.

    facet["rpc"]: the count of one of these values.
    """

    field: str
    values: tuple[FacetValue, ...]
    error_bound: int = 0

    def __getitem__(self, value: str) -> int:
        for row in self.values:
            if row.value == value:
                return row.count
        raise KeyError(value)

    def as_buckets(self) -> BucketsResult:
        """The same as the answer to `Terms` of the field."""
        return BucketsResult(tuple(Bucket(row.value, row.count) for row in self.values), self.error_bound)


@dataclass(frozen=True, slots=True)
class SearchStatistics:
    """What the scores of a page rest on. kind: "exact": on all documents, so that the order is that of one index; "cached": the
    same, but as some shards were last heard, age_ms ago at most; "local": on each shard's own, at least for a part of the
    query; "": it has no scores.

    extra_round_trips: made for statistics alone. bounded_shards: had so many documents with nearly the same score that not all
    were looked at.
    """

    kind: str = ""
    age_ms: int = 0
    extra_round_trips: int = 0
    bounded_shards: int = 0


NO_STATISTICS = SearchStatistics()


@dataclass(frozen=True, slots=True)
class SearchPage(Generic[K]):
    """One page of hits, in order. total: matches in the shards that answered; at least as many if not is_total_exact.

    next: token of the next page, if any.

    unseen_age_ms: milliseconds since the oldest committed write was made that the page does not show yet, as far as the
    replicas know; 0: it shows all; None: one of them could not tell. statistics: what the scores rest on.
    aggregations: by name.
    """

    hits: list[Hit[K]]
    total: int
    coverage: Coverage
    facets: Mapping[str, Facet] = field(default_factory=dict)
    next: bytes = b""
    timing: Timing | None = None
    unseen_age_ms: int | None = None
    statistics: SearchStatistics = NO_STATISTICS
    aggregations: Mapping[str, AggregationResult] = field(default_factory=dict)
    profile: Profile | None = None
    is_total_exact: bool = True

    @property
    def complete(self) -> bool:
        """True when every shard answered."""
        return self.coverage.complete


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection. schema maps field names to types; empty for plain values. id: never used again after a drop.

    hedging: how its reads are hedged where they do not say; what is empty in it is as the router has it. aliases: its further
    names, where all collections were asked for. synonyms: its rules. version: of the schema. change: the schema that it is to
    get, whose index is being built; None: none.
    """

    name: str
    schema: Mapping[str, str] = field(default_factory=dict)
    id: int = 0
    hedging: Hedging = HEDGED_AS_THE_ROUTER_SAYS
    aliases: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()
    version: int = 1
    change: SchemaChange | None = None
