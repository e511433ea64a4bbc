"""Latency of the first attempts of one kind of leg, and the delay after which a further replica is asked.

The delay is max((1 - b) quantile, 3 x median), less where the latency is narrow (`NARROW_MEDIANS`), or before the cliff if
there is one (`CLIFF`), b being the hedge budget: a hedge is for the stragglers. The quantile alone would spend the whole budget
on the body of the distribution (5 % of all attempts are later than the 95th percentile, sick leaf or not), load the leaves that
it wants to relieve, and have no token left when a leaf really stalls.

Latency is pooled over all replicas of all shards, never kept per replica: that would learn to be patient with the sick one.

An attempt that was given up for a hedge has no latency, but a lower bound of one: it is counted as *censored* (Kaplan and
Meier, "Nonparametric Estimation from Incomplete Observations", 1958). Left out, the pool would see only the fast half of a sick
cluster, and hedge ever sooner.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Sequence

from kvshard.tail.cost_class import LIGHT
from kvshard.tail.histogram import LogHistogram, SlidingHistogram, middle_of

SLICE_S = 1.0
SLICES = 10
"""What is pooled is at most ten seconds old: longer, and a shift of load is learned too late."""

RECENT_SLICES = 2
RECENT_SAMPLES_MIN = 1_000
"""With so many attempts in the last two seconds these alone speak: a 95th percentile of 50 stragglers is steady enough."""

SAMPLES_MIN = 64
"""With fewer, a high quantile is the largest value seen: what is waited for then is the largest, or three medians."""

SAMPLES_NONE = 8
"""With fewer, nothing is known."""

UNKNOWN_DELAY_S = 0.1
"""While nothing is known: many times what a healthy leaf takes, so that next to nothing is hedged but what hangs."""

FLOOR_S = 0.001
"""The shortest delay: below it the router's own event loop is what one waits for."""

MEDIANS = 3.0
"""The delay in medians, at least."""

NARROW_MEDIANS = 2.0
BODY_PART = 0.1
"""Where all but a tenth of the budget's part of the attempts take less than three medians, nothing is gained by waiting for
these: what lies behind that quantile costs a tenth of the budget. Two medians at least, or everything would be late as soon as
the latency rises a little."""

CLIFF = 2.0
"""If the (1 - b) quantile is so many times the (1 - 2b) one, the latency has a cliff between them: as many attempts are slow as
the budget has hedges. Behind the cliff a hedge comes too late to be of use; before it, the budget still bounds how many there
are."""

ROUND_TRIPS = 2.0
"""The delay in round trips on the wire, at least: a hedge that is sent sooner crosses the answer on its way."""

REFRESH_S = 0.1
"""How long a computed delay is kept: computing it costs as much as some twenty legs."""

QUANTILES_MAX = 32
"""Quantiles kept between two refreshes: callers may name any."""


class LatencyPool:
    """One kind of leg. Seconds throughout. is_light: its message costs more than its work."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_light = name in LIGHT
        self.median: float | None = None
        self._seen = SlidingHistogram(SLICE_S, SLICES)
        self._censored = SlidingHistogram(SLICE_S, SLICES)
        self._round_trip: float | None = None
        self._round_trip_next: float | None = None
        self._refresh_at = 0.0
        self._delays: dict[float, float] = {}
        self._known: dict[float, float] = {}

    def __repr__(self) -> str:
        return f"LatencyPool({self.name}, {self._seen.count} seen, {self._censored.count} censored)"

    def record(self, seconds: float, now: float, round_trip: float | None = None) -> None:
        """A first attempt was answered. round_trip: what of it the leaf did not account for."""
        self._seen.record(seconds, now)
        if round_trip is not None and (self._round_trip_next is None or round_trip < self._round_trip_next):
            self._round_trip_next = round_trip

    def record_censored(self, seconds: float, now: float) -> None:
        """A first attempt was given up after so long."""
        self._censored.record(seconds, now)

    def recent_median(self, now: float) -> float | None:
        """Of the last two seconds; None when too little happened."""
        self._seen.advance(now)
        recent = self._seen.recent(RECENT_SLICES)
        return recent.quantile(0.5) if recent.count >= SAMPLES_NONE else None

    @property
    def samples(self) -> int:
        """Attempts that count, given up ones too."""
        return self._seen.count + self._censored.count

    def delay(self, fraction: float, now: float) -> float:
        """How long to wait for a first attempt. fraction: the part of them that is not to be hedged, 1 - b."""
        if now >= self._refresh_at:
            self._refresh(now)
        found = self._delays.get(fraction)
        if found is None:
            found = self._delays[fraction] = self._delay(fraction, now)
        return found

    def quantile(self, fraction: float, now: float) -> float:
        """The latency that this part of the first attempts does not exceed; UNKNOWN_DELAY_S while little is known."""
        if now >= self._refresh_at:
            self._refresh(now)
        found = self._known.get(fraction)
        if found is None:
            if len(self._known) >= QUANTILES_MAX:
                self._known.clear()
            found = self._known[fraction] = self._quantile(fraction)
        return found

    def _delay(self, fraction: float, now: float) -> float:
        least, late = self._patience(fraction, now), self.quantile(fraction, now)
        sooner = max(least, self.quantile(max(0.0, 2 * fraction - 1), now))
        return sooner if late > CLIFF * sooner else max(least, late)

    def _patience(self, fraction: float, now: float) -> float:
        """The shortest delay for a budget of 1 - fraction."""
        part = BODY_PART * (1 - fraction)
        seen, censored = self._known_latency()
        if censored.count > part * (seen.count + censored.count) or seen.count * part < 1:
            return self.least_delay  # Too few are known to the end to tell a quantile that high.
        nearly_all = self.quantile(1 - part, now)
        return min(self.least_delay, max(NARROW_MEDIANS * (self.median or 0.0), nearly_all, self.floor))

    @property
    def least_delay(self) -> float:
        """The shortest delay that makes sense at the present median; the floor while that is unknown."""
        return max(MEDIANS * (self.median or 0.0), self.floor)

    @property
    def floor(self) -> float:
        """No delay is shorter."""
        return max(FLOOR_S, ROUND_TRIPS * (self._round_trip or 0.0))

    def _refresh(self, now: float) -> None:
        self._refresh_at = now + REFRESH_S
        self._delays.clear()
        self._known.clear()
        self._seen.advance(now)
        self._censored.advance(now)
        if self._round_trip_next is not None:
            # The smallest of the last stretch, mixed in: a single lucky one does not set it.
            old = self._round_trip
            self._round_trip = self._round_trip_next if old is None else old + (self._round_trip_next - old) / 8
            self._round_trip_next = None
        self.median = self._quantiles((0.5,))[0] if self.samples >= SAMPLES_NONE else None

    def _quantile(self, fraction: float) -> float:
        if self.median is None:
            return UNKNOWN_DELAY_S
        return self._quantiles((fraction if self.samples >= SAMPLES_MIN else 1.0,))[0]

    def _quantiles(self, fractions: Sequence[float]) -> list[float]:
        return kaplan_meier(*self._known_latency(), fractions)

    def _known_latency(self) -> tuple[LogHistogram, LogHistogram]:
        """(Seen, censored): of the last two seconds where these are enough."""
        recent = self._seen.recent(RECENT_SLICES)
        if recent.count >= RECENT_SAMPLES_MIN:
            return recent, self._censored.recent(RECENT_SLICES)
        return self._seen.sum, self._censored.sum


def kaplan_meier(seen: LogHistogram, censored: LogHistogram, fractions: Sequence[float]) -> list[float]:
    """Quantiles (fractions ascending) of values of which the censored ones are known only to be larger than what is recorded.

    Where so many are censored that a quantile cannot be told, it is the largest value known. At least one value.
    """
    if not censored.count:
        return seen.quantiles(fractions)
    events = sorted([(bucket, 0, count) for bucket, count in seen.buckets()] + [(b, 1, c) for b, c in censored.buckets()])
    at_risk = seen.count + censored.count
    found: list[float] = []
    survival, wanted = 1.0, list(fractions)
    for bucket, is_censored, count in events:
        if not is_censored:
            survival *= 1 - count / at_risk
            while wanted and survival <= 1 - wanted[0] + 1e-12:
                found.append(middle_of(bucket))
                wanted.pop(0)
        at_risk -= count
    largest = middle_of(events[-1][0])
    return found + [largest] * len(wanted)
