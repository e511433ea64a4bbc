"""Engines that misbehave on command."""

import threading
from collections.abc import Callable

from leaf.engine import StorageError
from leaf.memory_engine import MemoryEngine


class FaultyEngine(MemoryEngine):
    """A MemoryEngine whose flushes can be held back, and whose writes and flushes can fail.

    hold(): flushes wait until release(). fail_writes, fail_flushes: the error text that the next one raises.
    """

    def __init__(self, rows: dict[bytes, bytes] | None = None) -> None:
        super().__init__(rows)
        self.fail_writes = ""
        self.fail_flushes = ""
        self._may_flush = threading.Event()
        self._may_flush.set()

    def hold(self) -> None:
        self._may_flush.clear()

    def release(self) -> None:
        self._may_flush.set()

    def write(self, batch) -> None:
        if self.fail_writes:
            raise StorageError(self.fail_writes)
        super().write(batch)

    def flush_wal(self) -> None:
        assert self._may_flush.wait(10.0), "nobody released the flush"
        if self.fail_flushes:
            raise StorageError(self.fail_flushes)
        super().flush_wal()


class BrokenRowEngine(MemoryEngine):
    """A MemoryEngine over a disk of which one row cannot be read."""

    def __init__(self, rows: dict[bytes, bytes], broken: bytes) -> None:
        super().__init__(rows)
        self._broken = broken

    def get(self, key: bytes) -> bytes | None:
        if key == self._broken:
            raise StorageError("block checksum mismatch")
        return super().get(key)


class CrashingEngine(MemoryEngine):
    """A MemoryEngine that shows, after each write and flush, every state that a crash just then could leave behind."""

    def __init__(self, rows: dict[bytes, bytes] | None = None, on_state: Callable[[MemoryEngine], None] | None = None) -> None:
        super().__init__(rows)
        self.on_state = on_state

    def write(self, batch) -> None:
        super().write(batch)
        self._show()

    def flush_wal(self) -> None:
        super().flush_wal()
        self._show()

    def _show(self) -> None:
        if self.on_state is not None:
            for kept in range(self.unsynced + 1):
                self.on_state(self.crash(kept))
