"""Keeps the disk from filling up: writes are refused while there is still room to flush, compact and restart.

The free space is probed off the hot path, at most once a second; between two probes it is estimated from what was written.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kvshard.errors import ErrorDetails, ResourceExhausted

RESERVE_BYTES: Final = 64 * 1024 * 1024
"""Room for every write buffer to become a file, with the log's own preallocation."""

WRITE_AMPLIFICATION: Final = 2
"""Every byte is written to the engine's log twice, as an entry and as a value, before anything is freed again."""

ROOMY_FACTOR: Final = 2
"""So many times the reserve must be free before a leaf that was short of it leads again: at the edge shards would else be
handed to and fro with every probe."""

PROBE_INTERVAL_S: Final = 1.0
RETRY_AFTER_MS: Final = 1_000
"""No sooner can the answer change than with the next probe."""


class DiskGuard:
    """Refuses writes while the disk is almost full; recovers by itself. free_bytes: asks the file system.

    is_low: as of the last probe, there was no room for writes, and has not been much of it since.
    """

    def __init__(self, free_bytes: Callable[[], int], reserve: int = RESERVE_BYTES) -> None:
        self._free_bytes = free_bytes
        self._reserve = reserve
        self._free_at_probe = 0
        self._written = 0
        self.is_low = False
        self.probe()

    def __repr__(self) -> str:
        return f"DiskGuard(free={self.free_estimate}, reserve={self._reserve})"

    @property
    def free_estimate(self) -> int:
        """Bytes free at the last probe, less what was written since."""
        return self._free_at_probe - WRITE_AMPLIFICATION * self._written

    def probe(self) -> None:
        """Ask the file system. A probe that fails leaves the estimate as it is: the write itself will tell."""
        try:
            self._free_at_probe = self._free_bytes()
        except OSError:
            return
        self._written = 0
        if self._free_at_probe < self._reserve:
            self.is_low = True
        elif self._free_at_probe >= ROOMY_FACTOR * self._reserve:
            self.is_low = False

    def refusal(self, size: int, pending: int) -> ResourceExhausted | None:
        """Why a write of so many bytes cannot be taken, with `pending` others under way; None when it can."""
        needed = max(self._reserve, WRITE_AMPLIFICATION * (pending + size))
        free = self.free_estimate
        if free >= needed:
            return None
        text = f"disk almost full: {max(free, 0)} bytes are free, {needed} are held in reserve"
        return ResourceExhausted(text, ErrorDetails(limit=needed, retry_after_ms=RETRY_AFTER_MS))

    def note_written(self, size: int) -> None:
        """Bytes were handed to the engine."""
        self._written += size


def free_bytes_of(path: Path) -> Callable[[], int]:
    """Asks the file system of a path how many bytes an ordinary process may still write."""

    def free_bytes() -> int:
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    return free_bytes
