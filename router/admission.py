"""How much a router takes on at once, and what it refuses so that the rest is answered in time.

Three bounds. Calls in flight and the bytes of their requests bound memory. They do not bound time: a router that has more to do
than it can has few calls in flight, since gRPC's server hands it few new calls at a time. The others wait inside of gRPC, in a
queue that nobody bounds and nobody sees, each until its deadline, and what is served then is served too late. (Tried with a
handler of 0.6 ms: at 1.2 times what it could do, 5 calls were in flight and the others waited for 1.8 of their 2 s; at 1.8
times two thirds of them failed.) So the router measures how long a call of its own waits for its turn
(`router/arrival_probe.py`), and refuses a share of the calls by that: a refusal costs a fraction of an answer, so the queue
shrinks.

The share follows PIE (RFC 8033): up while the wait is above its target and while it grows, down otherwise. Who is hit is drawn.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Callable
from random import Random
from typing import Final

from kvshard.errors import ErrorDetails, KvShardError, ResourceExhausted, Unavailable

MAX_CALLS: Final = 4_096
"""Calls in flight, streams among them. Each holds some 30 kB of tasks, legs and gRPC's own: about 120 MB."""

MAX_BYTES: Final = 256 * 1024 * 1024
"""Of their requests: eight of the largest batches, each of which is held about three times until its legs are sent."""

TARGET_S: Final = 0.1
"""A wait before the first look at a call that is still no overload: what two hundred callers cost who ask one after the other.
Beyond it people notice, and deadlines of machines begin to pass."""

GAIN_PER_S: Final = 4.0
"""Share refused more each second, for each second of wait beyond the target: with the next one, the wait settles within about a
second and hardly swings, although each look tells of a call that came a wait ago (simulated in the test of this file: loads up
to 2.5 times what can be done, refusals of up to a third of the cost of an answer)."""

GROWTH_GAIN: Final = 2.0
"""Share refused more for each second by which the wait has grown since the last look."""

CALM_DECAY_PER_S: Final = 5.0
"""By this rate the share falls while the wait is below half the target: what is over needs no refusals."""

BURST_S: Final = 0.15
"""So long calls may wait before any is refused (PIE's burst allowance): a router that was stopped for a moment finds a queue
that is over soon, and those that it would refuse would come back a second later."""

MAX_SHARE: Final = 0.95
"""Some calls are always let in, so that there is something to measure and nobody is shut out."""

LOOK_MAX_S: Final = 0.5
"""A longer time between two looks counts as this: what was between them is not known."""

RETRY_MIN_MS: Final = 50
RETRY_MAX_MS: Final = 1_000
"""Of the hint when to come again: about as long as it takes the share to fall, and less than callers are willing to wait.
A router that stops gives the shorter one: its caller finds another, or the next."""


class RouterAdmission:
    """Counts calls and bytes in flight, and refuses what is too much. rng: draws who is refused.

    Invariant: 0 <= calls <= max_calls; bytes are over their bound only while a single call is in; 0 <= share <= MAX_SHARE.
    refused: calls so far.
    """

    def __init__(self, rng: Random, max_calls: int = MAX_CALLS, max_bytes: int = MAX_BYTES) -> None:
        self.calls = 0
        self.bytes = 0
        self.arrived = 0
        self.refused = 0
        self.share = 0.0
        self.wait_s = 0.0
        self._rng = rng
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._looked_at: float | None = None
        self._late_since: float | None = None
        self._on_idle: Callable[[], object] | None = None

    def __repr__(self) -> str:
        wait = f"wait={self.wait_s * 1000:.0f} ms, share={self.share:.2f}"
        return f"RouterAdmission(calls={self.calls}, bytes={self.bytes}, {wait}, refused={self.refused})"

    def note_wait(self, wait_s: float, now: float) -> None:
        """A call that arrives now has waited so long for its turn, or waits already so long for it."""
        elapsed_s = 0.0 if self._looked_at is None else min(LOOK_MAX_S, now - self._looked_at)
        share = self.share + GAIN_PER_S * (wait_s - TARGET_S) * elapsed_s + GROWTH_GAIN * (wait_s - self.wait_s)
        if wait_s < TARGET_S / 2:
            share -= self.share * min(1.0, CALM_DECAY_PER_S * elapsed_s)
        if wait_s < TARGET_S / 2:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = now
        is_burst = self._late_since is None or now - self._late_since < BURST_S
        if self.share == 0.0 and (is_burst or wait_s < TARGET_S):
            share = 0.0  # Neither a burst nor growth alone, below the target, is an overload.
        self.share = min(MAX_SHARE, max(0.0, share))
        self.wait_s = wait_s
        self._looked_at = now

    def stop(self, on_idle: Callable[[], object]) -> None:
        """Take no calls any more, for good. on_idle: told when none is in flight, at once where that is so already."""
        self._on_idle = on_idle
        if not self.calls:
            on_idle()

    def refusal(self, size: int) -> KvShardError | None:
        """Why a call cannot be taken now; None when it can. size: bytes of its request."""
        self.arrived += 1
        if self._on_idle is not None:
            self.refused += 1
            return Unavailable("the router is stopping", ErrorDetails(retry_after_ms=RETRY_MIN_MS))
        # A single call over the bytes is let in when nothing else is: it could never be answered otherwise.
        is_full = self.calls >= self._max_calls or (self.bytes > 0 and self.bytes + size > self._max_bytes)
        if not is_full and (self.share == 0.0 or self._rng.random() >= self.share):
            return None
        self.refused += 1
        if is_full:
            text = f"the router has {self.calls} calls ({self.bytes} bytes) in flight"
        else:
            text = f"the router is overloaded: calls wait for {self.wait_s * 1000:.0f} ms before it can look at them"
        return ResourceExhausted(text, ErrorDetails(limit=self._max_calls if is_full else None, retry_after_ms=self._retry_ms))

    def enter(self, size: int) -> None:
        """A call is taken; `leave` follows."""
        self.calls += 1
        self.bytes += size

    def leave(self, size: int) -> None:
        """It has ended."""
        assert self.calls > 0
        assert self.bytes >= size
        self.calls -= 1
        self.bytes -= size
        if self._on_idle is not None and not self.calls:
            self._on_idle()

    @property
    def _retry_ms(self) -> int:
        return max(RETRY_MIN_MS, min(RETRY_MAX_MS, int(self.wait_s * 2_000)))
