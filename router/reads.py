"""What every read has in common beyond what every call has: its account, which is looked at when the read has ended.

May live here: when an account begins and ends, and where it goes (the slow log, the live amplification, the metrics). What is
slow is decided in `slowlog`, what amplification means in `amplification`.
"""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from kvshard.clock import Clock
from kvshard.clustermap import DEFAULT_COLLECTION
from kvshard.errors import ErrorRecord, KvShardError
from kvshard.rpc import status
from kvshard.scatter.ledger import ReadTimes, ScanTimes
from kvshard.telemetry import RouterMetrics
from router.amplification import Amplification, fan_out_class
from router.calls import Call, Calls, Context, code_name
from router.slowlog import LEGS_MAX, UNASKED_MIN_S, SlowLog, SlowRead
from router.tail_metrics import amplification_families

TimesT = TypeVar("TimesT", bound=ReadTimes)


class Reads:
    """Wraps the handling of reads. One for all services of a router."""

    def __init__(self, calls: Calls, clock: Clock, metrics: RouterMetrics) -> None:
        self.slow = SlowLog()
        self.amplification = Amplification()
        self.clock = clock
        self._calls = calls
        self._metrics = metrics
        self._histograms: dict[tuple[str, int], Callable[[float], None]] = {}
        metrics.scrape(lambda: amplification_families(self.amplification, clock.monotonic()))

    def read(self, method: str, context: Context, size: int, collection: str, detail: Callable[[], str]) -> "Read[ReadTimes]":
        """Around the handling of a read: what `Calls.call` does, and its account. detail: what it asks for, in a few words."""
        return Read(self, self._calls.call(method, context, size), ReadTimes(self.clock.monotonic()), collection, detail)

    def frame(self, method: str, calls: int, size: int, collection: str, detail: Callable[[], str]) -> "ReadFrame":
        """The same for a frame of a lane: a batch, or so many reads of single keys."""
        return ReadFrame(self, self._calls, method, calls, size, ReadTimes(self.clock.monotonic()), collection, detail)

    def scan_frame(self, size: int, collection: str, detail: Callable[[], str], times: ScanTimes) -> "ReadFrame":
        """The same for a frame that asks for a page of a scan."""
        return ReadFrame(self, self._calls, "Scan", 1, size, times, collection, detail)

    def scan(self, context: Context, size: int, collection: str, detail: Callable[[], str]) -> "Read[ScanTimes]":
        """The same for a scan."""
        call = self._calls.call("Scan", context, size, is_stream=True)
        return Read(self, call, ScanTimes(self.clock.monotonic()), collection, detail)

    def end(self, read: "Read[TimesT] | ReadFrame", error: BaseException | None) -> None:
        """Account for a read that has ended."""
        times, method, now = read.times, read.method, self.clock.monotonic()
        took_s = times.took_s(now)
        if times.fan_out:
            answered_s = times.answered_in_s(now)
            self.amplification.record(method, times.fan_out, answered_s, times.leg_times_us(), now)
            if times.fan_out > 1 or method != "Get":  # Else it is one leg, and `request_seconds` has it.
                self._observe(method, times.fan_out, answered_s)
        elif took_s < UNASKED_MIN_S:
            return
        if self.slow.wants(method, took_s, now):
            timing = times.timing(now).cut(LEGS_MAX)
            collection = read.collection or DEFAULT_COLLECTION.name
            slow = SlowRead(self.clock.wall_ms(), method, collection, read.detail(), code_of(error), timing)
            self.slow.add(slow, took_s, now)

    def _observe(self, method: str, fan_out: int, seconds: float) -> None:
        observe = self._histograms.get((method, fan_out))
        if observe is None:
            observe = self._metrics.gathered_seconds.labels(method, fan_out_class(fan_out)).observe
            self._histograms[method, fan_out] = observe
        observe(seconds)


class Read(Generic[TimesT]):
    """The context of one read. times: its account."""

    __slots__ = ("_call", "_reads", "collection", "detail", "times")

    def __init__(self, reads: Reads, call: Call, times: TimesT, collection: str, detail: Callable[[], str]) -> None:
        self._reads = reads
        self._call = call
        self.times = times
        self.collection = collection
        self.detail = detail

    @property
    def method(self) -> str:
        """The RPC's name."""
        return self._call.method

    async def __aenter__(self) -> TimesT:
        """The read begins."""
        refusal = self._call.take()
        if refusal is not None:
            await status.abort(self._call.context, refusal)
        return self.times

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """The read has ended."""
        self._reads.end(self, error)
        told = self._call.leave(error)
        if told is not None:
            await status.abort(self._call.context, told)


class ReadFrame:
    """The context of one frame of reads, as `Frame` is that of others: built as one, since nearly every read is in such a
    frame. times: its account."""

    __slots__ = ("_calls", "_counts", "_failed", "_reads", "_size", "collection", "detail", "method", "times")

    def __init__(
        self,
        reads: Reads,
        calls: Calls,
        method: str,
        count: int,
        size: int,
        times: ReadTimes,
        collection: str,
        detail: Callable[[], str],
    ) -> None:
        self._reads = reads
        self._calls = calls
        self._counts = {method: count}
        self._size = size
        self._failed: list[tuple[str, ErrorRecord]] = []
        self.method = method
        self.times = times
        self.collection = collection
        self.detail = detail

    def failed(self, failures: Iterable[tuple[int, ErrorRecord]]) -> None:
        """Reads of the frame have failed alone."""
        self._failed += [(self.method, record) for _, record in failures]

    def begin(self) -> None:
        """The reads begin. Raises why they are refused."""
        self._calls.take_frame(self._counts, self._size, self.times.began)

    def end(self, error: BaseException | None) -> None:
        """The reads have ended. Raises the error that their caller is told, where that is another."""
        self._reads.end(self, error)
        self._calls.end_frame(self._counts, self._size, self.times.began, self._failed, error)

    def leave(self) -> None:
        """They begin anew, in a frame of their own."""
        self._calls.admission.leave(self._size)

    def __enter__(self) -> "ReadFrame":
        """As `begin`."""
        self.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """As `end`."""
        self.end(error)


def code_of(error: BaseException | None) -> str:
    """Canonical status name of how a call ended."""
    if error is None:
        return "OK"
    if isinstance(error, KvShardError):
        return code_name(error)
    return "INTERNAL" if isinstance(error, Exception) else "CANCELLED"
