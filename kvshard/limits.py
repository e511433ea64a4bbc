"""The service's limits, each with its reason. A request beyond one gets InvalidArgument that names it.

Pure: imports only the standard library and other pure files.
"""

from kvshard.errors import ErrorDetails, InvalidArgument

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

SUGGEST_MAX_LIMIT = 100
"""Suggestions of one answer; a list that nobody reads costs every shard a look at each entry."""


COLLAPSE_MAX_GROUPS = 4_000
"""Groups that may be paged through in a collapsed search: each token and each leg carries 8 bytes for every one before."""

RETURN_FIELDS_MAX = 256
"""Fields of a document that may be asked for one by one: as many as a schema has."""

RETURN_FIELD_MAX_CHARS = 1_024
"""Of one of them, with all the names on its path."""

HIGHLIGHT_MAX_FRAGMENTS = 20
"""Fragments of one field of one hit: each further one is another look at the text. Who wants more wants the text."""

HIGHLIGHT_MIN_CHARS = 20
"""Of a fragment: the longest of everyday words and a blank on either side."""

HIGHLIGHT_MAX_CHARS = 2_000
"""Of a fragment: a page of print."""

FACET_MAX_VALUES = 1_000
"""Values of one facet: each shard counts this many for the merge."""

QUERY_MAX_CHARS = 10_000
"""A longer query string is generated text; it would hold a leaf thread for the parse alone."""

STATISTICS_MAX_TERMS = 2_048
"""Terms of one query that are weighted over all shards, about 40 kB a leg: a query has at most 1,024 clauses, but a word may be
looked for in many fields. A longer one is scored by what each shard has."""

SHARDS_MAX = 4_096
"""A map of this many shards still encodes to under 1 MB, and the 65,536 token slots still divide evenly enough."""

COLLECTION_NAME_MAX_CHARS = 64
"""Names stand in tables, metrics and tokens."""

SCHEMA_MAX_FIELDS = 256
"""Each field is a set of files in every index segment of every shard."""

CACHE_MAX_MB = 64 * 1024
"""Of one leaf's cache of keys. A leaf uses one core; where so much memory is left for each, more leaves are the better use."""

FAILURE_TIMEOUT_S = 1.5
"""Default of the failure timeout, which all timings of replication derive from: long against a pause of the interpreter or a
slow fsync, short against a caller's patience."""

FAILURE_TIMEOUT_MIN_S = 0.2
"""Beacons then travel every 20 ms; a shorter pause of a process than its lease of 90 ms is the rule, not the exception."""

FAILURE_TIMEOUT_MAX_S = 60.0
"""A dead primary stops its shards' writes for that long; whoever wants more has mistaken the unit."""

HEAL_AFTER_S = 30.0
"""Default of the grace before what a missing leaf held is made anew elsewhere: longer than a restart, also of the machine's
process manager, since a copy costs disk, network and cache on both sides, and a leaf that comes back has its data."""

HEAL_AFTER_MIN_S = 1.0
"""Leaves say every second or two that they are alive; a shorter grace would take a hiccup of the coordinator for a death."""

HEAL_AFTER_MAX_S = 7 * 24 * 3600.0
"""A week: beyond that the grace is a way to turn healing off, and a second failure loses data."""

REFRESH_INTERVAL_S = 0.5
"""Default: a write is seen by searches after so long at the latest, if the disk keeps up. Each refresh costs about the same
however little was written, so that a shorter interval costs a busy leaf more than searches are worth."""

REFRESH_INTERVAL_MIN_S = 0.05
"""A refresh takes the disk 10 to 30 ms."""

REFRESH_INTERVAL_MAX_S = 600.0
"""What is not refreshed has to stay in the log."""


def check_length(name: str, value: float, least: float, most: float) -> None:
    """Raise InvalidArgument unless a length of time, in seconds, given by the flag --<name>, lies within its bounds."""
    if not least <= value <= most:
        message = f"--{name} must be {least:g} to {most:g} seconds, not {value:g}"
        raise InvalidArgument(message, ErrorDetails(field=name, limit=int(most)))
