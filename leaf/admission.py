"""How much work a leaf takes on at once: beyond the bounds it says no at once instead of answering late.

Pure: imports only the standard library and other pure files.
"""

from typing import Final

from kvshard.errors import DeadlineExceeded, ErrorDetails, ResourceExhausted

MAX_REQUESTS: Final = 2_048
"""Requests that wait for a disk or a search thread. At 50 us of Python each, a tenth of a second of work is queued."""

MAX_BYTES: Final = 128 * 1024 * 1024
"""Their payloads: four of the largest batches. Each payload is held about three times while it is decoded and logged."""

RETRY_AFTER_MS: Final = 50
"""About as long as a full queue takes to halve."""


class Admission:
    """Counts requests and their bytes.

    Invariant: 0 <= requests <= max_requests; bytes are over their bound only while a single request is in.
    """

    def __init__(self, max_requests: int = MAX_REQUESTS, max_bytes: int = MAX_BYTES) -> None:
        self.requests = 0
        self.bytes = 0
        self.refused = 0
        self._max_requests = max_requests
        self._max_bytes = max_bytes

    def __repr__(self) -> str:
        return f"Admission(requests={self.requests}, bytes={self.bytes}, refused={self.refused})"

    def enter(self, size: int, now: float, deadline: float) -> None:
        """Take a request in; `leave` follows. Raises DeadlineExceeded when it came too late, ResourceExhausted at a bound."""
        if now >= deadline:
            raise DeadlineExceeded("the deadline passed before the leaf began")
        # A single request over the bytes is let in when nothing else is: it could never be served otherwise.
        if self.requests >= self._max_requests or (self.bytes > 0 and self.bytes + size > self._max_bytes):
            self.refused += 1
            text = f"the leaf has {self.requests} requests ({self.bytes} bytes) in work"
            raise ResourceExhausted(text, ErrorDetails(limit=self._max_requests, retry_after_ms=RETRY_AFTER_MS))
        self.requests += 1
        self.bytes += size

    def leave(self, size: int) -> None:
        """The request is answered."""
        assert self.requests > 0
        assert self.bytes >= size
        self.requests -= 1
        self.bytes -= size
