"""The service's limits, each with its reason. A request beyond one gets InvalidArgument that names it.

Pure: imports only the standard library.
"""

KEY_MAX_BYTES = 1024
"""Keys live in every index block, in tokens and in map lookups; beyond this they belong into the value."""

VALUE_MAX_BYTES = 8 * 1024 * 1024
"""One value must fit, several times over, into one gRPC message and into the log's group commit."""

BATCH_MAX_KEYS = 10_000
"""Bounds the per-key results that the router holds for one call (about 1 MB)."""

BATCH_MAX_BYTES = 32 * 1024 * 1024
"""Bounds what one call may make router and leaf hold, and stays under MESSAGE_MAX_BYTES with room for framing."""

MESSAGE_MAX_BYTES = 64 * 1024 * 1024
"""gRPC message limit on every channel: twice the largest batch, so that no legal answer is ever refused by it."""

SEARCH_MAX_LIMIT = 1_000
"""Hits of one page: each shard may have to deliver all of them."""

SEARCH_MAX_DEPTH = 10_000
"""Hits that may be paged through in relevance order: each leaf keeps this many in a heap."""

FACET_MAX_VALUES = 1_000
"""Values of one facet: each shard counts this many for the merge."""

QUERY_MAX_CHARS = 10_000
"""A longer query string is generated text; it would hold a leaf thread for the parse alone."""

SHARDS_MAX = 4_096
"""A map of this many shards still encodes to under 1 MB, and the 65,536 token slots still divide evenly enough."""

COLLECTION_NAME_MAX_CHARS = 64
"""Names stand in tables, metrics and tokens."""

SCHEMA_MAX_FIELDS = 256
"""Each field is a set of files in every index segment of every shard."""
