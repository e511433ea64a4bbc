"""A clock that moves only when told."""


class ManualClock:
    """Implements kvshard.clock.Clock. `advance` moves both clocks."""

    def __init__(self, now: float = 1000.0, wall_ms: int = 1_700_000_000_000) -> None:
        self._now = now
        self._wall_ms = float(wall_ms)

    def monotonic(self) -> float:
        """Seconds."""
        return self._now

    def wall_ms(self) -> int:
        """Milliseconds since 1970."""
        return int(self._wall_ms)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        assert seconds >= 0, "time does not go back"
        self._now += seconds
        self._wall_ms += seconds * 1000

    def set_wall(self, milliseconds: int) -> None:
        """Move only the wall clock, also back, as an operator or a time server may."""
        self._wall_ms = float(milliseconds)

    def __repr__(self) -> str:
        return f"ManualClock(now={self._now:g}, wall_ms={self.wall_ms()})"


class HurryingClock(ManualClock):
    """Time goes by with every look at it: a replica that crashed before its barrier was on disk leads only after a grace."""

    def monotonic(self) -> float:
        self.advance(0.05)
        return super().monotonic()
