"""Around a call: deadlines, what is logged how often, errors made into statuses."""

import asyncio
from random import Random

import grpc
import pytest
from fakes.clock import ManualClock
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from kvshard.errors import InvalidArgument, Unavailable
from kvshard.telemetry import RouterMetrics
from router.admission import RouterAdmission
from router.calls import DEFAULT_TIMEOUT_S, LOG_LINES_PER_S, TIMEOUT_MAX_S, Calls, LogBudget


class Aborted(Exception):
    pass


class FakeContext:
    def __init__(self, left: float | None = None) -> None:
        self.left = left
        self.code: grpc.StatusCode | None = None

    def time_remaining(self) -> float | None:
        return self.left

    def invocation_metadata(self):
        return (("x-request-id", "r-1"),)

    async def abort(self, code, details, trailing_metadata):
        self.code = code
        raise Aborted(details)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def calls(clock: ManualClock, registry: CollectorRegistry) -> Calls:
    return Calls(clock, RouterMetrics(registry))


@pytest.mark.parametrize(
    ("left", "expected"),
    [(None, 0.9 * DEFAULT_TIMEOUT_S), (1.0, 0.9), (1e6, 0.9 * TIMEOUT_MAX_S), (0.02, 0.015), (0.0, 0.0)],
)
def test_leg_deadline(calls: Calls, clock: ManualClock, left: float | None, expected: float) -> None:
    assert calls.leg_deadline(FakeContext(left)) - clock.monotonic() == pytest.approx(expected)


def test_stream_without_a_deadline_has_none(calls: Calls, clock: ManualClock) -> None:
    assert calls.stream_deadline(FakeContext(None)) == float("inf")
    assert calls.stream_deadline(FakeContext(100.0)) - clock.monotonic() == pytest.approx(90.0)


async def test_cancelled_call_is_counted_and_passes_on(calls: Calls, registry: CollectorRegistry) -> None:
    with pytest.raises(asyncio.CancelledError):
        async with calls.call("Get", FakeContext()):
            raise asyncio.CancelledError
    assert registry.get_sample_value("kvshard_router_requests_total", {"method": "Get", "code": "CANCELLED"}) == 1


async def fail(calls: Calls, error: Exception) -> FakeContext:
    context = FakeContext()
    with pytest.raises(Aborted):
        async with calls.call("Get", context):
            raise error
    return context


async def test_error_becomes_a_status_and_one_log_line(calls: Calls) -> None:
    with capture_logs() as lines:
        context = await fail(calls, Unavailable("down"))
    assert context.code is grpc.StatusCode.UNAVAILABLE
    assert [(line["log_level"], line["event"], line["reason"]) for line in lines] == [("warning", "call failed", "UNAVAILABLE")]
    assert lines[0]["request_id"] == "r-1"


async def test_the_callers_mistakes_are_not_worth_a_warning(calls: Calls) -> None:
    with capture_logs() as lines:
        await fail(calls, InvalidArgument("no"))
    assert [line["log_level"] for line in lines] == ["debug"]


async def test_defect_becomes_internal_with_its_trace(calls: Calls) -> None:
    with capture_logs() as lines:
        context = await fail(calls, ZeroDivisionError("defect"))
    assert context.code is grpc.StatusCode.INTERNAL
    assert any(line.get("exc_info") for line in lines)


async def test_slow_call_gets_a_line(calls: Calls, clock: ManualClock) -> None:
    with capture_logs() as lines:
        async with calls.call("Get", FakeContext()):
            clock.advance(1.5)
        async with calls.call("Scan", FakeContext(), is_stream=True):
            clock.advance(60)
    assert [(line["event"], line["elapsed_ms"]) for line in lines] == [("slow call", 1500.0)]


async def test_log_lines_are_bounded(calls: Calls, clock: ManualClock) -> None:
    with capture_logs() as lines:
        for _ in range(100):
            await fail(calls, Unavailable("down"))
        clock.advance(1.0)
        await fail(calls, Unavailable("down"))
    assert len(lines) == LOG_LINES_PER_S + 1
    assert lines[-1]["suppressed_lines"] == 100 - LOG_LINES_PER_S


def test_log_budget() -> None:
    budget = LogBudget(2)
    assert [budget.take(0.1), budget.take(0.2), budget.take(0.9), budget.take(1.0)] == [True, True, False, True]
    assert budget.suppressed == 1


async def test_a_call_is_counted_while_it_runs(calls: Calls) -> None:
    async with calls.call("Put", FakeContext(), 100):
        assert (calls.admission.calls, calls.admission.bytes) == (1, 100)
        async with calls.call("GetStatus", FakeContext()):
            assert calls.admission.calls == 1
    with pytest.raises(Aborted):
        async with calls.call("Put", FakeContext(), 100):
            raise Unavailable("no")
    assert (calls.admission.calls, calls.admission.bytes) == (0, 0)


async def test_a_call_too_many_is_refused_before_anything_is_done(clock: ManualClock, registry: CollectorRegistry) -> None:
    calls = Calls(clock, RouterMetrics(registry), RouterAdmission(Random(1), max_calls=1))
    context = FakeContext()
    async with calls.call("Get", FakeContext(), 1):
        with pytest.raises(Aborted, match="1 calls"):
            async with calls.call("Get", context, 1):
                pytest.fail("it was let in")
        assert calls.admission.calls == 1
        async with calls.call("GetStatus", FakeContext()):
            pass
    assert context.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    labels = {"method": "Get", "code": "RESOURCE_EXHAUSTED"}
    assert registry.get_sample_value("kvshard_router_requests_total", labels) == 1
