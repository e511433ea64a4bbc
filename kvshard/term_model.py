"""What routers and leaves say to each other about the statistics that scores rest on: a part of `kvshard/model.py`.

Pure: imports only the standard library, other pure files, and the base of the structs.
"""

from msgspec import Struct


class TermStatistics(Struct, frozen=True, gc=False):
    """What scores rest on: live documents of a collection, tokens per field, and per field and term the documents with it.

    Of one shard, or summed up over several. Fields are the schema's, terms the index's. Documents that have expired count
    until they are removed, which happens by the log and so at all replicas alike; those that have left by a split do not.

    Of one shard's: generation: no later entry than this one has changed them; through: they hold its effects. Of sums: 0.
    """

    documents: int = 0
    tokens: dict[str, int] = {}
    counts: dict[str, dict[str, int]] = {}
    generation: int = 0
    through: int = 0


class ShardTerms(Struct, frozen=True, gc=False):
    """Ask a shard for the statistics of some terms. terms: by field, as the index has them.

    texts: (field, text, whether its last word is only begun), as they stand in a query; the leaf cuts them into terms.
    cuts: as in ShardScan. schema_version, min_seqno: as in ShardSearch.
    """

    shard: int
    epoch: int
    collection_id: int
    texts: list[tuple[str, str, bool]]
    terms: dict[str, list[str]] = {}
    cuts: int | None = None
    schema_version: int = 0
    min_seqno: int = 0


class ShardTermsReply(Struct, frozen=True, gc=False):
    """texts: the (field, term) of each text asked for that scores rest on. statistics: of these and the terms asked for."""

    statistics: TermStatistics
    texts: list[list[tuple[str, str]]]
