"""Which legs are alike in cost: latency is compared within a kind only, or a large batch would look like a stalled leaf.

Pure: imports only the standard library and other pure files.
"""

from kvshard.model import ShardRead, ShardScan, ShardSearch, ShardTerms, ShardWrite

BATCH_KEYS = (32, 512)
"""Bounds between batches that cost little beyond the round trip, some, and milliseconds."""

SCAN_KEYS = 64
"""A scan of up to so many keys is one look at the disk."""

WRITE = "Write"
"""The kind of writes. Their latency is pooled only to count those that would have been hedged, were they reads."""

SEARCH_HITS = 100
"""A page that ends so deep is mostly reading documents; a usual one is mostly finding them."""


def leg_kind(request: ShardRead | ShardScan | ShardSearch | ShardTerms | ShardWrite) -> str:
    """The kind of a leg: its method and, where legs of one method differ much, their class. There are fourteen."""
    if isinstance(request, ShardRead):  # By far the most frequent.
        keys = len(request.keys)
        return "Get" if keys == 1 else _BATCH_KINDS[(keys > _SMALL_BATCH) + (keys > _LARGE_BATCH)]
    match request:
        case ShardScan():
            return f"Scan/{SCAN_KEYS}" if request.limit <= SCAN_KEYS else "Scan/more"
        case ShardSearch():
            if request.suggest is not None:
                return "Search/suggest"
            if request.refresh or request.min_seqno:
                return "Search/refresh"
            if request.aggregations:
                return "Search/aggregations"
            if request.facets or request.highlight:
                return "Search/facets"
            ranked = 0 if request.sort else request.taken  # a page of another order costs the same wherever it begins
            return "Search" if ranked + request.limit <= SEARCH_HITS else "Search/deep"
        case ShardTerms():
            return "TermStats"
        case ShardWrite():
            return WRITE


_SMALL_BATCH, _LARGE_BATCH = BATCH_KEYS
_BATCH_KINDS = (f"BatchGet/{_SMALL_BATCH}", f"BatchGet/{_LARGE_BATCH}", "BatchGet/more")

LIGHT = frozenset({"Get", f"BatchGet/{BATCH_KEYS[0]}", f"Scan/{SCAN_KEYS}"})
"""Kinds of which the message to a leaf costs more than the work there."""
