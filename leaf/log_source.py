"""What the search indexes need to read of a leaf's shards."""

from collections.abc import Sequence
from typing import Protocol

from leaf.operations import Operation


class LogSource(Protocol):
    """Where an indexer reads a shard's committed log and its applied documents.

    All methods may be called from the indexer's threads, while the event loop writes. They may raise a KvShardError
    (StorageFailed, NotReady); the indexer tries again later.
    """

    def committed_entries(self, shard: int, after_seqno: int, max_entries: int) -> Sequence[tuple[int, Operation]] | None:
        """Applied entries with seqno > after_seqno, ascending, at most max_entries; None if some of them are compacted away.

        Empty only if there are none. The source bounds the bytes of one answer, so it may hold fewer than max_entries.
        """
        ...

    def scan_documents(
        self, shard: int, collection_id: int, start_key: bytes, limit: int
    ) -> Sequence[tuple[bytes, bytes, int, int]]:
        """Stored (key, value, version, expires_at_ms) with key >= start_key, ascending, at most limit; empty: no more."""
        ...

    def applied_seqno(self, shard: int) -> int:
        """The last applied seqno; every entry through it is visible to the other methods.

        After a restart it may lag for a while behind what was applied before: committed entries never change, so an index that
        is ahead of it is not wrong for that.
        """
        ...

    def history(self, shard: int) -> str:
        """Names the past of the shard's data: it changes when the data is created anew or replaced by a snapshot.

        Documents read before and after such a change do not belong together.
        """
        ...

    def last_slot(self, shard: int) -> int:
        """The end of the shard's range in the applied state, if a split has cut it; else the last slot of all."""
        ...

    def slot_of(self, key: bytes) -> int:
        """The token slot of a key."""
        ...

    def read_documents(self, shard: int, collection_id: int, keys: Sequence[bytes]) -> Sequence[tuple[bytes, int, int] | None]:
        """Live (value, version, expires_at_ms) of each key now, None where there is none; parallel to the keys."""
        ...

    def has_expired_unswept(self, shard: int, collection_id: int, now_ms: int) -> bool:
        """Whether the collection may hold documents whose time has passed but which are not deleted yet."""
        ...

    def live_documents(self, shard: int, collection_id: int) -> int:
        """Live documents of the collection in this shard, for coverage."""
        ...
