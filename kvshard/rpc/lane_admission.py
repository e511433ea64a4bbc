"""How much work a leaf takes on at once, and how long requests have waited for it: beyond the bounds it says no at once.

What waits for a leaf lies mostly outside of it, in buffers of gRPC and of the kernel, where the leaf cannot count it. It shows
in the way that messages take: their sender stamps them by its own clock, and what a message took longer than the quickest of
late it has waited (the one-way delay of LEDBAT, RFC 6817). So deadlines hold for time spent in a buffer too, and what is late
already after a pause of the process is not begun.

Refused first are hedges, since somebody else is asked too: from half of a bound on, or while there is a standing queue (CoDel,
RFC 8289: not a burst, but a wait that did not vanish for a whole interval).

Pure: imports only the standard library and other pure files.
"""

from math import inf
from typing import Final

from kvshard.errors import ErrorDetails, KvShardError, ResourceExhausted

MAX_REQUESTS: Final = 8_192
"""Requests under way; one lane may have half of them, as many as a router sends on it. At 10 us of Python a read and 50 a write
that is a tenth of a second of work, or four; searches have a bound of their own."""

MAX_BYTES: Final = 128 * 1024 * 1024
"""Their payloads: four of the largest batches. Each payload is held about three times while it is decoded and logged."""

HEDGE_SHARE: Final = 0.5
"""Part of a bound from which on hedges are refused: the other half stays for those who have nobody else to ask."""

HEDGE_WAIT_S: Final = 0.005
"""A standing queue of that length (CoDel's target) is a leaf that has more to do than it does: a hedge would add to it."""

INTERVAL_S: Final = 0.1
"""A wait that has not vanished for so long stands (CoDel's interval); bursts and pauses of a process are over by then."""

BASE_WINDOW_S: Final = 2.5
"""The quickest message counts for one to two of these. Two clocks drift apart by less than a millisecond meanwhile; a queue
that stands for longer than that is taken for the way, and then only the other bounds see it."""

MAX_WAIT_S: Final = 2.0
"""More is no wait: one of the clocks stood still, as a virtual machine's does while it is moved. Few callers wait longer."""

RETRY_MIN_MS: Final = 10
RETRY_MAX_MS: Final = 1_000
"""Of a hint when to come again: not before the refusal has reached the caller, not after it has given up."""

_HELD_WEIGHT: Final = 1 / 64
"""Of a request in the mean of how long they are held."""


class MessageWait:
    """How long the messages of one lane lay before they were read."""

    def __init__(self) -> None:
        self._base_s = inf
        self._next_base_s = inf
        self._turn_at = -inf

    def __repr__(self) -> str:
        return f"MessageWait(base={min(self._base_s, self._next_base_s):g} s)"

    def of(self, sent_s: float, now: float) -> float:
        """Seconds that a message lay which was sent then, by the sender's clock. Messages come in order."""
        delay = now - sent_s
        if now >= self._turn_at:
            is_fresh = now < self._turn_at + BASE_WINDOW_S  # Else the lane was idle, and the clocks have drifted apart.
            self._base_s = self._next_base_s if is_fresh else inf
            self._next_base_s, self._turn_at = inf, now + BASE_WINDOW_S
        if delay < self._next_base_s:
            self._next_base_s = delay
        waited = delay - min(self._base_s, self._next_base_s)
        if waited > MAX_WAIT_S:
            self._base_s = self._next_base_s = delay
            return 0.0
        return waited


class StandingWait:
    """The wait that no message of the last interval was spared: a queue that stands."""

    def __init__(self) -> None:
        self._least_s = self._before_s = inf
        self._turn_at = -inf

    def __repr__(self) -> str:
        return f"StandingWait({self._before_s:g} s, {self._least_s:g} s)"

    def note(self, waited_s: float, now: float) -> None:
        """A message has waited so long."""
        self._turn(now)
        if waited_s < self._least_s:
            self._least_s = waited_s

    def seconds(self, now: float) -> float:
        """Of the interval before this one and of this one the shorter; 0 when the one before saw no message."""
        self._turn(now)
        return 0.0 if self._before_s == inf else min(self._least_s, self._before_s)

    def _turn(self, now: float) -> None:
        if now >= self._turn_at:
            # The interval before counts only if it has just ended; what is older tells nothing of now.
            self._before_s = self._least_s if now < self._turn_at + INTERVAL_S else inf
            self._least_s = inf
            self._turn_at = now + INTERVAL_S


class LaneAdmission:
    """Counts the requests in work over all lanes of a process, and their bytes. name: what refusals call the process.

    Invariant: 0 <= requests <= max_requests; bytes are over their bound only while a single request is in.
    refused, hedges_refused: so far.
    """

    def __init__(self, max_requests: int = MAX_REQUESTS, max_bytes: int = MAX_BYTES, *, name: str = "leaf") -> None:
        self.requests = 0
        self.bytes = 0
        self.refused = 0
        self.hedges_refused = 0
        self.standing = StandingWait()
        self._name = name
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._held_s = 0.0

    def __repr__(self) -> str:
        return f"LaneAdmission(requests={self.requests}, bytes={self.bytes}, refused={self.refused}+{self.hedges_refused})"

    @property
    def retry_after_ms(self) -> int:
        """Until about half of what is held has gone: half of the time that a request is held (Little)."""
        return bounded_retry_ms(self._held_s / 2)

    def refusal(self, size: int, of_lane: int) -> KvShardError | None:
        """Why a request cannot be taken now; None when it can. of_lane: requests in work that came by the same lane."""
        # A single request over the bytes is let in when nothing else is: it could never be served otherwise.
        is_full = self.requests >= self._max_requests or (self.bytes > 0 and self.bytes + size > self._max_bytes)
        # No lane takes more than it leaves to others: a caller that floods its own keeps places for them (dynamic thresholds,
        # Choudhury and Hahne). Alone it gets half of the bound.
        if not is_full and of_lane <= self._max_requests - self.requests:
            return None
        self.refused += 1
        text = f"the {self._name} has {self.requests} requests ({self.bytes} bytes) in work, {of_lane} of them of this lane"
        return ResourceExhausted(text, ErrorDetails(limit=self._max_requests, retry_after_ms=self.retry_after_ms))

    def hedge_refusal(self, now: float) -> KvShardError | None:
        """The same for a hedge, on top of it."""
        waited_s = self.standing.seconds(now)
        if (
            self.requests < self._max_requests * HEDGE_SHARE
            and self.bytes < self._max_bytes * HEDGE_SHARE
            and waited_s < HEDGE_WAIT_S
        ):
            return None
        self.hedges_refused += 1
        text = f"no hedge: the {self._name} has {self.requests} requests in work, and they wait for {waited_s * 1000:.0f} ms"
        return ResourceExhausted(text, ErrorDetails(retry_after_ms=max(self.retry_after_ms, bounded_retry_ms(waited_s))))

    def enter(self, size: int) -> None:
        """A request is taken in; `leave` follows."""
        self.requests += 1
        self.bytes += size

    def leave(self, size: int, held_s: float) -> None:
        """The request is answered, or given up, after so long."""
        assert self.requests > 0
        assert self.bytes >= size
        self.requests -= 1
        self.bytes -= size
        self._held_s += (held_s - self._held_s) * _HELD_WEIGHT


def bounded_retry_ms(seconds: float) -> int:
    """A hint when to come again, from how long it takes until there is room."""
    return max(RETRY_MIN_MS, min(RETRY_MAX_MS, int(seconds * 1000)))
