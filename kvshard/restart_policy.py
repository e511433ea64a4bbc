"""When a crashed child process is started again.

Pure: imports only the standard library; the time comes in as an argument.
"""

FIRST_DELAY_S = 0.1
"""A single crash should cost the cluster hardly more than the start itself."""

MAX_DELAY_S = 5.0
"""A child that can never start (a broken disk) costs one start in five seconds, and comes back that soon once mended."""

HEALTHY_AFTER_S = 10.0
"""Who ran this long did start: its next crash is a new story, not the next chapter of a crash loop."""


class RestartPolicy:
    """Doubling delays between restarts of one child, forgotten after a healthy run.

    Invariant: FIRST_DELAY_S <= every delay <= MAX_DELAY_S.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._started_at: float | None = None

    def started(self, now: float) -> None:
        """The child was started."""
        self._started_at = now

    def exited(self, now: float) -> float:
        """The child ended by itself; returns the seconds to wait before it is started again."""
        if self._started_at is not None and now - self._started_at >= HEALTHY_AFTER_S:
            self._failures = 0
        self._started_at = None
        # The exponent is bounded: 2 ** failures of a day-long crash loop would be a number of thousands of digits.
        delay: float = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self._failures, 16))
        self._failures += 1
        return delay

    @property
    def failures(self) -> int:
        """Exits in a row without a healthy run between them."""
        return self._failures

    def __repr__(self) -> str:
        return f"RestartPolicy(failures={self._failures}, started_at={self._started_at})"
