"""What every call of every service has in common: its deadline, its metrics, its log line, and errors made into statuses."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple, TypeAlias

import grpc
import grpc.aio
import structlog

from kvshard.clock import Clock
from kvshard.errors import ErrorRecord, Internal, KvShardError, error_of
from kvshard.rpc import status
from kvshard.tail.deadlines import leg_deadline
from kvshard.telemetry import Durations, RouterMetrics, Tally
from router.admission import RouterAdmission

DEFAULT_TIMEOUT_S = 10.0
"""For a caller that set no deadline: longer than any healthy answer takes, short enough that a hung leaf piles up few calls."""

TIMEOUT_MAX_S = 60.0
"""Longer deadlines of unary calls are cut to this: a call holds its memory at the router and its place at the leaves."""

SLOW_CALL_S = 1.0
"""A unary call that took this long gets a log line."""

LOG_LINES_PER_S = 10
"""Lines about calls: a dead leaf fails thousands of calls a second, and the log must neither fill a disk nor slow the rest."""

REQUEST_ID_KEY = "x-request-id"
"""Metadata key of an id that the caller chose, for the log."""

REQUEST_ID_MAX_CHARS = 128
"""Of an id as it is logged."""

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

log = structlog.get_logger(__name__)

_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
_LEVELS: dict[str, str] = {
    "INTERNAL": "error",
    "DATA_LOSS": "error",
    "UNAVAILABLE": "warning",
    "DEADLINE_EXCEEDED": "warning",
    "RESOURCE_EXHAUSTED": "warning",
}
"""Every other code is the caller's affair, and logged at debug."""


class LogBudget:
    """Lets so many lines a second pass and counts the rest."""

    def __init__(self, lines_per_s: int) -> None:
        self._lines_per_s = lines_per_s
        self._second = -1
        self._passed = 0
        self.suppressed = 0

    def take(self, now: float) -> bool:
        """True when a line may be written now."""
        if int(now) != self._second:
            self._second, self._passed = int(now), 0
        if self._passed < self._lines_per_s:
            self._passed += 1
            return True
        self.suppressed += 1
        return False


class _Usual(NamedTuple):
    """What counts the calls of one method that are answered without an error."""

    answered: Tally
    seconds: Durations


class Calls:
    """Wraps the handling of calls. One for all services of a router. admission: takes them in."""

    def __init__(self, clock: Clock, metrics: RouterMetrics, admission: RouterAdmission | None = None) -> None:
        self.clock = clock
        self.admission = admission or RouterAdmission(Random())
        self._metrics = metrics
        self._usual: dict[str, _Usual] = {}
        self._counters: dict[tuple[str, str], Tally] = {}
        self._histograms: dict[str, Callable[[float, int], None]] = {}
        self._budget = LogBudget(LOG_LINES_PER_S)

    def leg_deadline(self, context: Context) -> float:
        """When the legs of a unary call must have ended, on the monotonic clock."""
        left = context.time_remaining()
        left = DEFAULT_TIMEOUT_S if left is None else min(left, TIMEOUT_MAX_S)
        now = self.clock.monotonic()
        return leg_deadline(now, now + left)

    def leg_deadline_of(self, deadline: float) -> float:
        """The same for a frame that has to be answered by this deadline."""
        now = self.clock.monotonic()
        return leg_deadline(now, min(deadline, now + TIMEOUT_MAX_S))

    def stream_deadline(self, context: Context) -> float:
        """When a stream must have ended; infinity when its caller set no deadline."""
        left = context.time_remaining()
        if left is None:
            return float("inf")
        now = self.clock.monotonic()
        return leg_deadline(now, now + left)

    def call(self, method: str, context: Context, size: int | None = None, *, is_stream: bool = False) -> "Call":
        """Around the handling of one call: counts and times it, logs what is worth it, ends it with a status on an error.

        size: bytes of its request, by which it is admitted or refused; None: it always is admitted, for those who look after a
        router that has too much to do.
        """
        return Call(self, method, context, size, is_stream)

    def frame(self, counts: Mapping[str, int], size: int) -> "Frame":
        """Around the handling of a frame of a lane: the same as `call`, for each of the calls that are in it.

        counts: how many by method. size: bytes of the frame.
        """
        return Frame(self, counts, size)

    async def drain(self, grace_s: float) -> None:
        """Refuse new calls, and wait until those under way have ended, but no longer than the grace.

        Their answers are with gRPC then: a handler hands its answer over in the same step in which its call ends.
        """
        idle = asyncio.Event()
        self.admission.stop(idle.set)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await idle.wait()

    def end(self, call: "Call", error: BaseException | None) -> KvShardError | None:
        """Account for a call that has ended. Returns the error that its caller is to be told; None: none."""
        elapsed = self.clock.monotonic() - call.began
        if error is None and elapsed < SLOW_CALL_S:
            self._answered(call.method, 1, elapsed)
            return None
        code, told = self._outcome(call.method, error, call.context)
        self._count(call.method, code, 1)
        self._observe(call.method, elapsed, 1)
        if told is not None:
            self._log_failure(call.method, code, told, elapsed, call.context)
        elif error is None and not call.is_stream:
            self._log("info", "slow call", call.method, call.context, elapsed)
        return told

    def take_frame(self, counts: Mapping[str, int], size: int, began: float) -> None:
        """A frame is taken in; `end_frame` follows. Raises ResourceExhausted when it is refused."""
        admission = self.admission
        refusal = admission.refusal(size)
        if refusal is not None:
            self._end_frame(counts, began, (), refusal)
            raise refusal
        admission.enter(size)

    def end_frame(
        self,
        counts: Mapping[str, int],
        size: int,
        began: float,
        failed: Sequence[tuple[str, ErrorRecord]],
        error: BaseException | None,
    ) -> None:
        """Account for the calls of a frame that has ended. Raises the error that its sender is told, where that is another."""
        self.admission.leave(size)
        told = self._end_frame(counts, began, failed, error)
        if told is not None and told is not error:
            raise told from error

    def _end_frame(
        self, counts: Mapping[str, int], began: float, failed: Sequence[tuple[str, ErrorRecord]], error: BaseException | None
    ) -> KvShardError | None:
        elapsed = self.clock.monotonic() - began
        if error is None and not failed and elapsed < SLOW_CALL_S:
            for name, calls in counts.items():
                if calls:
                    self._answered(name, calls, elapsed)
            return None
        method = next(iter(counts), "")
        code, told = self._outcome(method, error, None)
        others = counts
        if failed:
            others = dict(counts)
            for name, record in failed:
                self._count(name, code_name(record), 1)
                others[name] -= 1
        for name, calls in others.items():
            if calls:
                self._count(name, code, calls)
            self._observe(name, elapsed, counts[name])
        if told is not None:
            self._log_failure(method, code, told, elapsed, None)
        elif failed:
            name, record = failed[0]
            self._log_failure(name, code_name(record), error_of(record), elapsed, None, calls=len(failed))
        elif elapsed >= SLOW_CALL_S and error is None:
            self._log("info", "slow call", method, None, elapsed)
        return told

    def note_refused(self, method: str, error: KvShardError) -> None:
        """A call was refused before it was looked at."""
        self._count(method, code_name(error), 1)

    def _outcome(self, method: str, error: BaseException | None, context: Context | None) -> tuple[str, KvShardError | None]:
        """How a call ended: the name of its status, and the error that the caller is told."""
        if error is None:
            return "OK", None
        if isinstance(error, KvShardError):
            return code_name(error), error
        if isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
            log.error("call failed in an unforeseen way", exc_info=error, method=method, request_id=_request_id(context))
            return "INTERNAL", Internal(f"{type(error).__name__}: {error}")
        return "CANCELLED", None

    def _answered(self, method: str, calls: int, elapsed: float) -> None:
        """So many calls were answered as most are: without an error, and after so short a time that nobody logs them."""
        usual = self._usual.get(method)
        if usual is None:
            usual = _Usual(self._metrics.requests.labels(method, "OK"), self._metrics.request_seconds.labels(method))
            self._usual[method] = usual
        usual.answered.count += calls
        usual.seconds.observe(elapsed, calls)

    def _count(self, method: str, code: str, calls: int) -> None:
        count = self._counters.get((method, code))
        if count is None:
            count = self._counters[method, code] = self._metrics.requests.labels(method, code)
        count.count += calls

    def _observe(self, method: str, elapsed: float, calls: int) -> None:
        observe = self._histograms.get(method)
        if observe is None:
            observe = self._histograms[method] = self._metrics.request_seconds.labels(method).observe
        observe(elapsed, calls)

    def _log_failure(
        self, method: str, code: str, error: KvShardError, elapsed: float, context: Context | None, **fields: object
    ) -> None:
        fields |= {"code": code, "reason": error.reason, "error": error.message, "shards": error.details.shards[:16]}
        self._log(_LEVELS.get(code, "debug"), "call failed", method, context, elapsed, **fields)

    def _log(self, level: str, event: str, method: str, context: Context | None, elapsed: float, **fields: object) -> None:
        if level != "debug" and not self._budget.take(self.clock.monotonic()):
            return
        if level != "debug" and self._budget.suppressed:
            fields["suppressed_lines"] = self._budget.suppressed
            self._budget.suppressed = 0
        request_id = _request_id(context)
        getattr(log, level)(event, method=method, elapsed_ms=round(elapsed * 1000, 1), request_id=request_id, **fields)


class Call:
    """The context of one call. A class of its own and no generator: it stands around every Get."""

    __slots__ = ("_calls", "_size", "began", "context", "is_stream", "method")

    def __init__(self, calls: Calls, method: str, context: Context, size: int | None, is_stream: bool) -> None:
        self._calls = calls
        self._size = size
        self.method = method
        self.context = context
        self.is_stream = is_stream
        self.began = calls.clock.monotonic()

    async def __aenter__(self) -> None:
        """The call begins, or is refused."""
        refusal = self.take()
        if refusal is not None:
            await status.abort(self.context, refusal)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """The call has ended."""
        told = self.leave(error)
        if told is not None:
            await status.abort(self.context, told)

    def take(self) -> KvShardError | None:
        """Take the call in. Returns why it is not taken, which its caller must be told; None: it is, and `leave` follows."""
        if self._size is None:
            return None
        refusal = self._calls.admission.refusal(self._size)
        if refusal is None:
            self._calls.admission.enter(self._size)
            return None
        return self._calls.end(self, refusal)

    def leave(self, error: BaseException | None) -> KvShardError | None:
        """It has ended. Returns what its caller must be told; None: nothing."""
        if self._size is not None:
            self._calls.admission.leave(self._size)
        return self._calls.end(self, error)


class Frame:
    """The context of one frame of a lane: of one call, or of several single operations.

    failed: calls that failed while the frame as a whole did not, (method, error); who handles the frame adds them. An error of
    the whole frame is that of all its calls; one that nobody foresaw is told as Internal.
    """

    __slots__ = ("_calls", "_size", "began", "counts", "failed")

    def __init__(self, calls: Calls, counts: Mapping[str, int], size: int) -> None:
        self._calls = calls
        self._size = size
        self.counts = counts
        self.failed: list[tuple[str, ErrorRecord]] = []
        self.began = calls.clock.monotonic()

    def __enter__(self) -> "Frame":
        """The frame is taken in. Raises ResourceExhausted when it is refused."""
        self._calls.take_frame(self.counts, self._size, self.began)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """The frame has ended."""
        self._calls.end_frame(self.counts, self._size, self.began, self.failed, error)


def code_name(error: KvShardError | ErrorRecord) -> str:
    """Canonical name of the status that an error becomes."""
    known = error if isinstance(error, KvShardError) else error_of(error)
    return _CODE_NAMES.get(known.grpc_code, "UNKNOWN")


def _request_id(context: Context | None) -> str | None:
    if context is None:
        return None
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY:
            return str(value)[:REQUEST_ID_MAX_CHARS]
    return None
