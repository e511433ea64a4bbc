"""kvshard: a sharded, replicated key-value service with full-text search.

Only names live here. They are fetched on first use, so that `import kvshard` costs no import of grpc.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvshard.aggregations.model import (
        Aggregation,
        Cardinality,
        DateHistogram,
        Filter,
        Filters,
        Histogram,
        Missing,
        Percentiles,
        Ranges,
        Stats,
        Terms,
    )
    from kvshard.aggregations.results import Bucket, BucketsResult, CardinalityResult, PercentilesResult, StatsResult
    from kvshard.client.batch_results import DeleteResults, GetResults, PutResults
    from kvshard.client.client import Client
    from kvshard.client.collection import Collection
    from kvshard.client.direct_status import Detour, DirectLeaf, DirectStatus
    from kvshard.client.faults import ClearedFaults, FaultList, LeafFault
    from kvshard.client.keyspace import Keyspace
    from kvshard.client.results import (
        AttemptTiming,
        CollectionInfo,
        Coverage,
        Facet,
        FacetValue,
        FailedShard,
        Highlight,
        Hit,
        Item,
        LegTiming,
        ReadState,
        SearchPage,
        SlowRead,
        SlowReads,
        Timing,
    )
    from kvshard.client.retries import NO_RETRIES, RetryPolicy
    from kvshard.client.scan import Scan
    from kvshard.client.status import ClusterStatus, LeafStatus
    from kvshard.client.suggestions import Completion, CorrectedWord, Correction, Suggestions
    from kvshard.clustermap import ClusterMap
    from kvshard.errors import (
        AliasNotFound,
        Cancelled,
        ChangeConflict,
        CollectionExists,
        CollectionNotFound,
        Compacted,
        DataLoss,
        DeadlineExceeded,
        ErrorDetails,
        Expired,
        FailedPrecondition,
        Internal,
        InvalidArgument,
        InvalidToken,
        KvShardError,
        LeafNotFound,
        MalformedQuery,
        NotReady,
        ResourceExhausted,
        ShardNotFound,
        StaleEpoch,
        StorageFailed,
        Unavailable,
        Unimplemented,
        VersionConflict,
    )
    from kvshard.vectors import Nearest
    from kvshard.workers import WorkerStatus

__version__ = "0.1.0"

_NAMES_BY_MODULE = {
    "kvshard.aggregations.model": (
        "Aggregation",
        "Cardinality",
        "DateHistogram",
        "Filter",
        "Filters",
        "Histogram",
        "Missing",
        "Percentiles",
        "Ranges",
        "Stats",
        "Terms",
    ),
    "kvshard.aggregations.results": ("Bucket", "BucketsResult", "CardinalityResult", "PercentilesResult", "StatsResult"),
    "kvshard.client.batch_results": ("DeleteResults", "GetResults", "PutResults"),
    "kvshard.client.client": ("Client",),
    "kvshard.client.collection": ("Collection",),
    "kvshard.client.keyspace": ("Keyspace",),
    "kvshard.client.results": (
        "AttemptTiming",
        "CollectionInfo",
        "Coverage",
        "Facet",
        "FacetValue",
        "FailedShard",
        "Highlight",
        "Hit",
        "Item",
        "LegTiming",
        "ReadState",
        "SearchPage",
        "SlowRead",
        "SlowReads",
        "Timing",
    ),
    "kvshard.client.retries": ("NO_RETRIES", "RetryPolicy"),
    "kvshard.client.scan": ("Scan",),
    "kvshard.client.direct_status": ("Detour", "DirectLeaf", "DirectStatus"),
    "kvshard.client.faults": ("ClearedFaults", "FaultList", "LeafFault"),
    "kvshard.client.status": ("ClusterStatus", "LeafStatus"),
    "kvshard.client.suggestions": ("Completion", "CorrectedWord", "Correction", "Suggestions"),
    "kvshard.clustermap": ("ClusterMap",),
    "kvshard.vectors": ("Nearest",),
    "kvshard.workers": ("WorkerStatus",),
    "kvshard.errors": (
        "AliasNotFound",
        "Cancelled",
        "ChangeConflict",
        "CollectionExists",
        "CollectionNotFound",
        "Compacted",
        "DataLoss",
        "DeadlineExceeded",
        "ErrorDetails",
        "Expired",
        "FailedPrecondition",
        "Internal",
        "InvalidArgument",
        "InvalidToken",
        "KvShardError",
        "LeafNotFound",
        "MalformedQuery",
        "NotReady",
        "ResourceExhausted",
        "ShardNotFound",
        "StaleEpoch",
        "StorageFailed",
        "Unavailable",
        "Unimplemented",
        "VersionConflict",
    ),
}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}

__all__ = [
    "NO_RETRIES",
    "Aggregation",
    "AliasNotFound",
    "AttemptTiming",
    "Bucket",
    "BucketsResult",
    "Cancelled",
    "Cardinality",
    "CardinalityResult",
    "ChangeConflict",
    "ClearedFaults",
    "Client",
    "ClusterMap",
    "ClusterStatus",
    "Collection",
    "CollectionExists",
    "CollectionInfo",
    "CollectionNotFound",
    "Compacted",
    "Completion",
    "CorrectedWord",
    "Correction",
    "Coverage",
    "DataLoss",
    "DateHistogram",
    "DeadlineExceeded",
    "DeleteResults",
    "Detour",
    "DirectLeaf",
    "DirectStatus",
    "ErrorDetails",
    "Expired",
    "Facet",
    "FacetValue",
    "FailedPrecondition",
    "FailedShard",
    "FaultList",
    "Filter",
    "Filters",
    "GetResults",
    "Highlight",
    "Histogram",
    "Hit",
    "Internal",
    "InvalidArgument",
    "InvalidToken",
    "Item",
    "Keyspace",
    "KvShardError",
    "LeafFault",
    "LeafNotFound",
    "LeafStatus",
    "LegTiming",
    "MalformedQuery",
    "Missing",
    "Nearest",
    "NotReady",
    "Percentiles",
    "PercentilesResult",
    "PutResults",
    "Ranges",
    "ReadState",
    "ResourceExhausted",
    "RetryPolicy",
    "Scan",
    "SearchPage",
    "ShardNotFound",
    "SlowRead",
    "SlowReads",
    "StaleEpoch",
    "Stats",
    "StatsResult",
    "StorageFailed",
    "Suggestions",
    "Terms",
    "Timing",
    "Unavailable",
    "Unimplemented",
    "VersionConflict",
    "WorkerStatus",
    "__version__",
]


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(module), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
