"""What routers and leaves say to each other, as plain data.

The lane (`kvshard/rpc/lane.py`) carries these as msgpack maps. Several keys are columns (parallel lists), not an object a key.
A field may be added with a default; none may be renamed or change its meaning, since the two ends may run different versions.

What every read, write, scan and search consists of is a struct of msgspec's: the same bytes on the wire as of a dataclass, made
and encoded in an eighth of the time. They hold no cycles, so the garbage collector need not look at them.

Pure: imports only the standard library, other pure files, and the base of the structs.
"""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from msgspec import Struct, structs

from kvshard.aggregations.model import Aggregation
from kvshard.aggregations.partial import Partial
from kvshard.errors import ErrorRecord
from kvshard.search_accounts import LegProfile, ScoreExplanation
from kvshard.suggest_messages import SuggestPart, SuggestReply
from kvshard.term_model import ShardTerms as ShardTerms
from kvshard.term_model import ShardTermsReply as ShardTermsReply
from kvshard.term_model import TermStatistics as TermStatistics

changed = structs.replace
"""A copy of one of the structs, with some fields set anew: what `dataclasses.replace` is for the others."""

NEVER = 0
"""expires_at_ms of a key that does not expire."""

ABSENT = 0
"""Version of a key that is not there; as a condition: the key must be absent (etcd's convention for mod_revision)."""

UNKNOWN_AGE = -1
"""age_ms of a state that nobody can tell the age of: the replica has not heard a primary since it started."""

Refresh: TypeAlias = bool | Literal["wait"]
"""When a write answers. False: when it is durable; True: when a search sees it, for which its index is refreshed out of turn;
"wait": when a search sees it after the next refresh in turn."""


class ShardRead(Struct, frozen=True, gc=False):
    """Read keys of one shard. epoch: the replica set the sender routed by; a leaf with an older one looks for a newer map.

    is_stale_ok: any replica may answer with the committed state it has; else only one that holds a lease (a strong read).
    cuts: the splits that took a part of the shard, as the sender knows it (`clustermap.ShardConfig`); where the replica has
    applied another number, or it is None, each key is looked at: one that has left the shard fails with SHARD_MOVED. max_bytes:
    of the values; 0: what the leaf allows, which is the most in any case. Keys beyond it fail with RESOURCE_EXHAUSTED.
    """

    shard: int
    epoch: int
    collection_id: int
    keys: list[bytes]
    is_stale_ok: bool = False
    cuts: int | None = None
    max_bytes: int = 0


class ShardReadReply(Struct, frozen=True, gc=False):
    """Columns parallel to the keys. values: None where the key is absent (or failed). versions: ABSENT likewise.

    expires_at_ms is empty when no returned key expires. errors maps a key's index to why it could not be read.
    documents: live keys of the collection in this shard, for coverage. seqno: the state read is the one after this entry.
    age_ms: the state holds every write acknowledged before that long ago; UNKNOWN_AGE: not known.
    """

    values: list[bytes | None]
    versions: list[int]
    expires_at_ms: list[int] = []
    errors: dict[int, ErrorRecord] = {}
    documents: int = 0
    seqno: int = 0
    age_ms: int = 0


class ShardWrite(Struct, frozen=True, gc=False):
    """Write keys of one shard, in order. Columns parallel to the keys; an optional column is empty when unused.

    values: None deletes. ttl_ms: length of life (0: for ever). conditions: the version the key must have (ABSENT: it must not
    be there), None: unconditional. wait_for_refresh: answer only when a search sees the writes; next_refresh: which then is not
    hurried for it.

    client, number: the request id, which makes the write take effect once however often it is sent; empty client: none.
    since: a committed seqno of the shard that the sender knew before it first sent the write (0: none); see
    `leaf/replication/dedup.py`.

    positions, total: where the keys stand in the write that the id names, and how many keys that has (empty, 0: these are all
    of them, in order). After a split, or at another router, the same write may come in other parts: what was done of it is
    found by position. cuts: as in ShardRead.
    """

    shard: int
    epoch: int
    collection_id: int
    keys: list[bytes]
    values: list[bytes | None]
    ttl_ms: list[int] = []
    conditions: list[int | None] = []
    wait_for_refresh: bool = False
    client: str = ""
    number: int = 0
    since: int = 0
    positions: list[int] = []
    total: int = 0
    cuts: int | None = None
    next_refresh: bool = False


class ShardWriteReply(Struct, frozen=True, gc=False):
    """Columns parallel to the keys. versions: the new version, 0 where it failed or deleted an absent key.

    existed: the key was there before. errors maps a key's index to why its operation did nothing; the others are durable.
    seqno: the state holds the write from this entry on (0: nothing was written).
    """

    versions: list[int]
    existed: list[bool]
    errors: dict[int, ErrorRecord] = {}
    seqno: int = 0


class ShardScan(Struct, frozen=True, gc=False):
    """Read live keys in [start, end) of one shard, ascending; end None: no upper end. At most limit keys.

    is_stale_ok: as in ShardRead. cuts: the splits that took a part of the shard, as the sender knows it. A replica that has
    applied more answers SHARD_MOVED, one that has applied fewer NOT_READY; None: it is not looked at. max_bytes: of keys and
    values together, but for a first one that is larger; 0: what the leaf allows, which is the most in any case.
    """

    shard: int
    epoch: int
    collection_id: int
    start: bytes
    end: bytes | None
    limit: int
    keys_only: bool = False
    is_stale_ok: bool = False
    cuts: int | None = None
    max_bytes: int = 0


class ShardScanReply(Struct, frozen=True, gc=False):
    """Columns of what was found, keys ascending. has_more: the leaf stopped at the limit or its size bound, not at the end.

    A chunk may be shorter than the limit, even empty, while has_more is true; `resume` is then the start of the next
    request. documents: live keys of the collection in this shard.
    """

    keys: list[bytes]
    values: list[bytes]
    versions: list[int]
    expires_at_ms: list[int]
    has_more: bool
    resume: bytes
    documents: int = 0
    seqno: int = 0
    age_ms: int = 0


SortValue: TypeAlias = int | float | str | None
"""A field's value by which a hit is sorted; None: the document has none. Dates are UTC microseconds, booleans 0 or 1."""


class SearchAfter(Struct, frozen=True, gc=False):
    """A position in the order of a search, right behind a hit: its sort values (of the fields in the sort), score and key."""

    values: list[SortValue]
    score: float
    key: bytes


class NearestRecord(Struct, frozen=True, gc=False):
    """The k documents whose vector in this field is nearest to the given one. vector: as 32-bit floats, the low byte first."""

    field: str
    vector: bytes
    k: int


class SearchShape(Struct, frozen=True, gc=False, omit_defaults=True):
    """How the hits of a search are given.

    fields: only these of the document's, dotted paths among them; empty: all. fragments, fragment_chars: of each highlighted
    field, at most. collapse: only the first hit of each value of this field; empty: all. shown: of the values that earlier
    pages had, one digest after the other (`kvshard/collapsing.py`). count_up_to: matches need not be counted further; None:
    all are.
    """

    fields: list[str] = []
    fragments: int = 1
    fragment_chars: int = 150
    collapse: str = ""
    shown: bytes = b""
    count_up_to: int | None = None


USUAL_SHAPE = SearchShape()
"""That of a search which says nothing about it."""


class ShardSearch(Struct, frozen=True, gc=False):
    """Search one shard. limit: hits wanted; 0 only counts. after: they come behind this position; None: from the first on.

    schema_version: by which the query was read. A leaf whose map has a newer one answers SCHEMA_CHANGED, one that does not know
    it NOT_READY; 0: it is not looked at.

    min_seqno: answer only when the index holds the writes through this entry (0: as it is). cuts: as in ShardScan.

    sort: see `kvshard/sorting.py`; empty: by score. facets: keyword fields to count, facet_limit values each. taken: hits that
    earlier pages had, of all shards together: tells how far behind the first hit of a ranking the position may be. explain,
    profile: tell how the scores came about, and what the search did.

    fuzziness: of the query's plain words, see `kvshard/query/fuzziness.py`. synonyms: rules that it and the filters heed.

    suggest: find no documents, but words and values; of the rest, what says which documents count is heeded (the filters too).

    statistics: of all shards, which scores are to rest on; None: on what the index itself has. is_alone: on the shard's own,
    since there is no other.
    nearest: find these too, of all that match the filters, whatever the query says.
    tree: the query where a query string does not say it all (`kvshard/query/tree.py`); `query` then is one that is refused.
    together: of an order by score, hits that the page takes of all shards: tell what is not among the hits (`complete_to`).
    Where legs of the same search have found so many in other shards of the leaf, what scores less may be left out. 0: neither.
    """

    shard: int
    epoch: int
    collection_id: int
    query: str
    filters: list[str]
    limit: int
    sort: str = ""
    facets: list[str] = []
    facet_limit: int = 10
    highlight: list[str] = []
    refresh: bool = False
    keys_only: bool = False
    min_seqno: int = 0
    cuts: int | None = None
    after: SearchAfter | None = None
    taken: int = 0
    suggest: SuggestPart | None = None
    fuzziness: str = ""
    aggregations: dict[str, Aggregation] = {}
    statistics: TermStatistics | None = None
    is_alone: bool = False
    nearest: NearestRecord | None = None
    tree: str = ""
    explain: bool = False
    profile: bool = False
    synonyms: list[str] = []
    shape: SearchShape = USUAL_SHAPE
    schema_version: int = 0
    together: int = 0


class HighlightFragment(Struct, frozen=True, gc=False):
    """Part of a text field; spans are (start, end) of the matches in characters of the fragment."""

    field: str
    fragment: str
    spans: list[tuple[int, int]]


class ShardHit(Struct, frozen=True, gc=False):
    """A document found. sort_values: its value of each field in the sort. score: 0 where the sort has no score.

    group: its value of the field by which the search is collapsed; group_size: the shard's matches with that value.
    """

    key: bytes
    score: float
    document: bytes
    version: int
    sort_values: list[SortValue] = []
    highlights: list[HighlightFragment] = []
    explanation: ScoreExplanation | None = None
    group: SortValue = None
    group_size: int = 0


class ShardSearchReply(Struct, frozen=True, gc=False):
    """Hits in the order of the search. total: documents of the shard that match, or as many at least if not is_total_exact.
    documents: live ones in the shard. has_more: more hits come behind these.

    facets: field -> value -> matches. facet_errors: field -> the most by which a count missing here may be too low.
    unseen_age_ms: of the oldest committed write that the index did not show yet, 0: it showed all; UNKNOWN_AGE: not known.
    suggested: the answer to `suggest`.
    aggregations: by the names of the request.

    statistics: the shard's for the terms of the query, if scores rest on any. is_bounded: too many documents scored nearly
    alike for all to be looked at; some may be out of place by the part of a percent.
    nearest: of the vector that was asked for, nearest first; nearest_total: documents that have one and match the filters.
    complete_to: whatever scores as much or more is among the hits; told where `ShardSearch.together` asks for it and has_more
    is true, if it is known.
    """

    hits: list[ShardHit]
    total: int
    documents: int
    facets: dict[str, dict[str, int]] = {}
    facet_errors: dict[str, int] = {}
    indexed_through: int = 0
    has_more: bool = False
    unseen_age_ms: int = UNKNOWN_AGE
    suggested: SuggestReply | None = None
    aggregations: dict[str, Partial] = {}
    statistics: TermStatistics | None = None
    is_bounded: bool = False
    nearest: list[ShardHit] = []
    nearest_total: int = 0
    profile: LegProfile | None = None
    is_total_exact: bool = True
    complete_to: float | None = None


@dataclass(frozen=True, slots=True)
class LeafStatusRequest:
    """Report the leaf's state."""


@dataclass(frozen=True, slots=True)
class CollectionCountRecord:
    """Live keys and their bytes of one collection in one shard.

    schema_version: the newest of which the index here is ready (0: none). rebuilt, to_rebuild: documents of an index that is
    being built, those that are in it, and all; both 0 when there is none. misfits: field -> documents whose value the newest
    index left out when it was built, since it does not fit the field's type; "": those that are no JSON object.
    """

    collection_id: int
    documents: int
    bytes: int
    indexed_through: int = 0
    schema_version: int = 0
    rebuilt: int = 0
    to_rebuild: int = 0
    misfits: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CatchUpRecord:
    """Progress of a learner, as its primary sees it. lag: entries it lacks. Bytes: of a snapshot, 0 without one."""

    leaf: str
    lag: int
    bytes_sent: int = 0
    bytes_total: int = 0
    bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SplitRecord:
    """A split that is wanted or not wound up, at one replica. walked, total: keys of the shard looked at for the copy, and all.

    is_copied: the child's part is copied. is_done: the split is in the log and applied; what is left is to clean up.
    """

    child: int
    at_slot: int
    walked: int
    total: int
    is_copied: bool
    is_done: bool


@dataclass(frozen=True, slots=True)
class ReplicaStatusRecord:
    """State of one replica. role: "primary", "secondary", "learner", "idle", "confirming", "recovering" or "failed".

    error says why it does not serve. catching_up: of a primary, its learners. split: None while there is none.
    """

    shard: int
    epoch: int
    role: str
    committed: int
    applied: int
    collections: list[CollectionCountRecord]
    error: str = ""
    catching_up: list[CatchUpRecord] = field(default_factory=list)
    split: SplitRecord | None = None


@dataclass(frozen=True, slots=True)
class LeafStatusReply:
    """State of one leaf."""

    leaf: str
    replicas: list[ReplicaStatusRecord]
    pid: int
    uptime_s: float
    resident_bytes: int
    disk_bytes: int
    software_version: str
