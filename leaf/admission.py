"""How many searches a leaf takes on: a queue bounded by what it can still answer in time.

The lane server bounds requests of all kinds (`kvshard/rpc/lane_admission.py`). Searches have a bound of their own, since they
wait for few threads and take long: reads must not wait for places behind them.

Pure: imports only the standard library and other pure files.
"""

from typing import Final

from kvshard.errors import ErrorDetails, KvShardError, ResourceExhausted
from kvshard.rpc.lane_admission import HEDGE_SHARE, bounded_retry_ms

SEARCHES_MAX: Final = 256
"""Searches under way or queued. At 1 ms each the last one waits a tenth of a second; a longer queue serves only deadlines."""

HEDGE_WAIT_S: Final = 0.02
"""A hedge is sent when an answer is 10 ms late or later: where the queue alone takes longer than this, it seldom wins."""

_RUN_WEIGHT: Final = 1 / 32
"""Of a search in the mean of how long they run."""


class SearchQueue:
    """Counts the searches that run or wait, and knows how long they run. threads: that run them.

    Invariant: 0 <= searches <= searches_max. refused: so far, hedges among them.
    """

    def __init__(self, threads: int, searches_max: int = SEARCHES_MAX) -> None:
        self.searches = 0
        self.refused = 0
        self._threads = threads
        self._searches_max = searches_max
        self._run_s = 0.0

    def __repr__(self) -> str:
        return f"SearchQueue(searches={self.searches}, run_ms={self._run_s * 1000:.1f}, refused={self.refused})"

    @property
    def wait_s(self) -> float:
        """How long a search that comes now will wait: those ahead of it that must end first, at the speed of late."""
        return max(0, self.searches - self._threads + 1) * self._run_s / self._threads

    def refusal(self, left_s: float) -> KvShardError | None:
        """Why a search cannot be taken now; None when it can. left_s: seconds to its deadline.

        One that would only begin after its deadline is refused: its caller can still ask elsewhere.
        """
        if self.searches < self._searches_max and (self.wait_s <= 0.0 or self.wait_s < left_s):
            return None
        self.refused += 1
        text = f"{self.searches} searches are under way at this leaf; the next one waits for {self.wait_s * 1000:.0f} ms"
        # Until half of them have gone.
        details = ErrorDetails(limit=self._searches_max, retry_after_ms=bounded_retry_ms(self.wait_s / 2))
        return ResourceExhausted(text, details)

    def hedge_refusal(self) -> KvShardError | None:
        """The same for a hedge, on top of it."""
        if self.searches < self._searches_max * HEDGE_SHARE and self.wait_s < HEDGE_WAIT_S:
            return None
        self.refused += 1
        text = f"no hedge: {self.searches} searches are under way at this leaf, a wait of {self.wait_s * 1000:.0f} ms"
        return ResourceExhausted(text, ErrorDetails(retry_after_ms=bounded_retry_ms(self.wait_s)))

    def enter(self) -> None:
        """A search is taken in; `leave` follows."""
        self.searches += 1

    def leave(self) -> None:
        """It is answered, or given up."""
        assert self.searches > 0
        self.searches -= 1

    def note_run(self, seconds: float) -> None:
        """A search has run so long on its thread."""
        self._run_s += (seconds - self._run_s) * _RUN_WEIGHT
