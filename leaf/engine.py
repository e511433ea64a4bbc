"""What a leaf wants of its storage engine: the interface. `rocks_engine.py` has the real one, `memory_engine.py` its twin.

Rows are bytes to bytes, ordered by key. Both engines pass one conformance suite.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, NamedTuple

from leaf.layout import Batch

SCAN_MAX_BYTES: Final = 8 * 1024 * 1024
"""Default size of one chunk of a scan: what iterates in Python holds the event loop for a few milliseconds at most."""


class StorageError(Exception):
    """The engine, or the operating system below it, refused."""


class Rows(NamedTuple):
    """A chunk of a scan. has_more: it stopped at a bound, not at the end of the range."""

    rows: list[tuple[bytes, bytes]]
    has_more: bool


class View(ABC):
    """All rows as they were at one instant, whatever is written since. Used from one thread at a time, any one.

    It keeps files that would else be removed: close it soon. Every method but close may raise StorageError, and does once the
    view is closed. Close views before their engine, which else keeps its files locked.
    """

    @abstractmethod
    def get(self, key: bytes) -> bytes | None:
        """The row's value, or None."""

    @abstractmethod
    def scan(self, start: bytes, end: bytes, limit: int, max_bytes: int = SCAN_MAX_BYTES) -> Rows:
        """Rows in [start, end), as `Engine.scan`."""

    @abstractmethod
    def close(self) -> None:
        """Let the view go. Closing twice does nothing."""


class Engine(ABC):
    """Rows on disk. Reads and writes may come from any thread; one thread at a time calls flush_wal.

    A batch is atomic: after a crash it is there whole or not at all. Batches survive a crash in order: if one is there, all
    that were written before it are. A batch is sure to survive only once a flush_wal that began after its write has returned.
    Every method may raise StorageError; after one of write or flush_wal nothing is known about what will survive.
    """

    @abstractmethod
    def get(self, key: bytes) -> bytes | None:
        """The row's value, or None."""

    @abstractmethod
    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of several rows, parallel to the keys."""

    @abstractmethod
    def new_batch(self) -> Batch:
        """An empty batch, for `write`."""

    @abstractmethod
    def write(self, batch: Batch) -> None:
        """Make a batch's changes, together. Visible to reads at once; survives a killed process, but not yet a dead machine."""

    @abstractmethod
    def flush_wal(self) -> None:
        """Block until every batch written before is on the disk."""

    @abstractmethod
    def scan(self, start: bytes, end: bytes, limit: int, max_bytes: int = SCAN_MAX_BYTES) -> Rows:
        """Rows in [start, end), ascending: at most limit, none after max_bytes are reached; at least one if there is any."""

    @abstractmethod
    def snapshot(self) -> View:
        """A view of all rows as they are now."""

    @abstractmethod
    def compact(self) -> None:
        """Take out of the files what was removed or overwritten. Blocks, as long as it takes to read and write all of them."""

    @abstractmethod
    def size_bytes(self) -> int:
        """Bytes on disk."""

    @abstractmethod
    def close(self) -> None:
        """Release files; what was written stays. Any later call raises StorageError. Closing twice does nothing."""
