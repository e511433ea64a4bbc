"""Around the frames of a router's lanes: what is counted, refused, logged and told."""

import asyncio
from collections.abc import Callable
from random import Random

import pytest
from fakes.clock import ManualClock
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from kvshard.errors import (
    CollectionNotFound,
    Internal,
    InvalidArgument,
    KvShardError,
    ResourceExhausted,
    Unavailable,
    record_of,
)
from kvshard.lane_messages import KeysRead, KeysReadReply, KeysWrite, KeysWriteReply
from kvshard.rpc.codec import PING, READ_KEYS, WRITE_KEYS, decode, encode
from kvshard.scatter.key_frames import FrameAccount
from kvshard.scatter.ledger import ReadTimes
from kvshard.scatter.lone_reads import Told
from kvshard.telemetry import RouterMetrics
from router.admission import RouterAdmission
from router.calls import TIMEOUT_MAX_S, Calls
from router.lane_service import LONE_MAX_BYTES, LaneService
from router.reads import Reads


class FakeFrames:
    """Answers every frame with columns of b"v"; fails: indices that fail, with the error. error: of the whole frame."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.fails: dict[int, KvShardError] = {}
        self.error: BaseException | None = None
        self.took_s = 0.002
        self.fan_out = 1
        self.deadlines: list[float] = []

    def _do(self, deadline: float, account: FrameAccount) -> None:
        self.deadlines.append(deadline)
        self.clock.advance(self.took_s)
        if self.error is not None:
            raise self.error
        account.failures = [(index, record_of(error)) for index, error in self.fails.items()]

    async def read(self, request: KeysRead, deadline: float, account: FrameAccount) -> KeysReadReply:
        self._do(deadline, account)
        assert account.times is not None
        account.times.fan_out = self.fan_out
        return KeysReadReply([b"v"] * len(request.keys), [1] * len(request.keys))

    async def write(self, request: KeysWrite, deadline: float, account: FrameAccount) -> KeysWriteReply:
        self._do(deadline, account)
        return KeysWriteReply([1] * len(request.keys), [False] * len(request.keys))


class FakeLone:
    """Finds every read of one key, and begins it; the test tells its outcome. error: raised instead of beginning."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.error: BaseException | None = None
        self.taken_back = 0

    def find(self, request: KeysRead) -> bytes | None:
        return request.keys[0] if len(request.keys) == 1 else None

    def begin(self, read: bytes, deadline: float, times: ReadTimes, told: Told) -> Callable[[], object]:
        if self.error is not None:
            raise self.error
        self.told.append(told)
        return self._take_back

    def _take_back(self) -> None:
        self.taken_back += 1


class Setting:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.registry = CollectorRegistry()
        metrics = RouterMetrics(self.registry)
        self.admission = RouterAdmission(Random(1), max_calls=2)
        self.calls = Calls(self.clock, metrics, self.admission)
        self.reads = Reads(self.calls, self.clock, metrics)
        self.frames = FakeFrames(self.clock)
        self.lone = FakeLone()
        self.service = LaneService(self.calls, self.reads, self.frames, self.lone)  # type: ignore[arg-type]
        self.answers: list[bytes | KvShardError | None] = []

    def begin(self, key: bytes = b"k", keys: int = 1) -> Callable[[], object] | None:
        """Begin a read of one key, as the lane does."""
        begin = self.service.servicer(self.clock).beginning[READ_KEYS.number]
        return begin(encode(KeysRead("docs", [key] * keys, b"", True)), self.clock.monotonic() + 5, self.answers.append)

    async def read(self, keys: int, alone: bool = True) -> KeysReadReply:
        payload = encode(KeysRead("docs", [b"key-%d" % n for n in range(keys)], b"", alone))
        return decode(KeysReadReply, await self.service.handlers[READ_KEYS.number](payload, self.clock.monotonic() + 5))

    async def write(self, values: list[bytes | None], alone: bool = True) -> KeysWriteReply:
        payload = encode(KeysWrite("", [b"k%d" % n for n in range(len(values))], values, is_each_alone=alone))
        return decode(KeysWriteReply, await self.service.handlers[WRITE_KEYS.number](payload, self.clock.monotonic() + 5))

    def calls_of(self, method: str) -> dict[str, float]:
        """Counted calls by code."""
        return {
            sample.labels["code"]: sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == "kvshard_router_requests_total" and sample.labels["method"] == method
        }

    def timed(self, method: str) -> float | None:
        return self.registry.get_sample_value("kvshard_router_request_seconds_count", {"method": method})


@pytest.fixture
def setting() -> Setting:
    return Setting()


async def test_single_reads_count_one_by_one(setting: Setting) -> None:
    assert (await setting.read(3)).values == [b"v"] * 3
    assert setting.calls_of("Get") == {"OK": 3}
    assert setting.timed("Get") == 3
    assert setting.registry.get_sample_value("kvshard_router_request_seconds_sum", {"method": "Get"}) == pytest.approx(0.006)


async def test_a_batch_counts_once_whatever_becomes_of_its_keys(setting: Setting) -> None:
    setting.frames.fails = {1: Unavailable("down")}
    await setting.read(3, alone=False)
    await setting.write([b"v", None, None], alone=False)
    assert (setting.calls_of("BatchGet"), setting.calls_of("BatchWrite")) == ({"OK": 1}, {"OK": 1})
    assert (setting.timed("BatchGet"), setting.timed("BatchWrite")) == (1, 1)
    assert setting.calls_of("Get") == {}


async def test_single_writes_count_by_what_they_are(setting: Setting) -> None:
    setting.frames.fails = {0: InvalidArgument("no"), 3: Unavailable("down")}
    await setting.write([b"v", b"v", None, None, b"v"])
    assert setting.calls_of("Put") == {"INVALID_ARGUMENT": 1, "OK": 2}
    assert setting.calls_of("Delete") == {"OK": 1, "UNAVAILABLE": 1}
    assert (setting.timed("Put"), setting.timed("Delete")) == (3, 2)


async def test_an_error_of_the_frame_is_that_of_each_call(setting: Setting) -> None:
    setting.frames.error = CollectionNotFound("no such collection")
    with pytest.raises(CollectionNotFound):
        await setting.read(3)
    with pytest.raises(CollectionNotFound):
        await setting.write([b"v", None])
    assert setting.calls_of("Get") == {"NOT_FOUND": 3}
    assert (setting.calls_of("Put"), setting.calls_of("Delete")) == ({"NOT_FOUND": 1}, {"NOT_FOUND": 1})


async def test_a_frame_that_is_taken_back_counts_as_cancelled(setting: Setting) -> None:
    setting.frames.error = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await setting.read(2)
    assert setting.calls_of("Get") == {"CANCELLED": 2}
    assert (setting.admission.calls, setting.admission.bytes) == (0, 0)


async def test_a_defect_is_internal_and_logged_with_its_trace(setting: Setting) -> None:
    setting.frames.error = ZeroDivisionError("defect")
    with capture_logs() as lines, pytest.raises(Internal, match="ZeroDivisionError"):
        await setting.read(2)
    assert setting.calls_of("Get") == {"INTERNAL": 2}
    assert any(line.get("exc_info") for line in lines)


async def test_failures_of_single_calls_make_one_line(setting: Setting) -> None:
    setting.frames.fails = {0: Unavailable("down"), 1: Unavailable("down")}
    with capture_logs() as lines:
        await setting.read(3)
    assert [(line["event"], line["log_level"], line["method"], line["calls"]) for line in lines] == [
        ("call failed", "warning", "Get", 2)
    ]


async def test_a_slow_frame_makes_a_line(setting: Setting) -> None:
    setting.frames.took_s = 1.5
    with capture_logs() as lines:
        await setting.write([b"v"])
    assert [(line["event"], line["method"]) for line in lines] == [("slow call", "Put")]


async def test_frames_are_admitted_like_calls(setting: Setting) -> None:
    admission = setting.admission
    admission.enter(10)
    await setting.read(5)
    assert (admission.calls, admission.bytes) == (1, 10)
    admission.enter(10)
    for ask in (setting.read(5), setting.write([b"v", b"v"])):
        with pytest.raises(ResourceExhausted) as caught:
            await ask
        assert caught.value.details.retry_after_ms
    assert setting.frames.deadlines == [pytest.approx(1004.5, abs=0.01)], "what is refused is not begun"
    assert setting.calls_of("Get") == {"OK": 5, "RESOURCE_EXHAUSTED": 5}
    assert setting.calls_of("Put") == {"RESOURCE_EXHAUSTED": 2}
    assert admission.calls == 2


async def test_the_router_keeps_a_part_of_the_time_and_cuts_what_is_too_much(setting: Setting) -> None:
    setting.frames.took_s = 0.0
    await setting.read(1)
    payload = encode(KeysRead("", [b"k"], b"", True))
    await setting.service.handlers[READ_KEYS.number](payload, setting.clock.monotonic() + 1e6)
    now = setting.clock.monotonic()
    assert [deadline - now for deadline in setting.frames.deadlines] == pytest.approx([4.5, 0.9 * TIMEOUT_MAX_S])


async def test_slow_reads_are_kept(setting: Setting) -> None:
    setting.frames.fan_out = 8
    await setting.read(1)
    await setting.read(3)
    await setting.read(200, alone=False)
    kept = {(read.method, read.collection, read.detail) for read in setting.reads.slow.slowest(9, setting.clock.monotonic())}
    assert kept == {("BatchGet", "docs", "200 keys"), ("Get", "docs", "3 keys"), ("Get", "docs", "key 'key-0'")}


async def test_single_reads_that_came_together_are_gathered_answers(setting: Setting) -> None:
    """Each of their callers waits for the slowest leg: that is amplification, though each asked for one key."""
    setting.frames.fan_out = 8
    await setting.read(100)
    (tail,) = setting.reads.amplification.gathered(setting.clock.monotonic())
    assert (tail.method, tail.fan_out) == ("Get", "5-16")
    labels = {"method": "Get", "fan_out": "5-16"}
    assert setting.registry.get_sample_value("kvshard_router_gathered_seconds_count", labels) == 1


async def test_columns_that_do_not_fit_are_no_defect_of_the_counting(setting: Setting) -> None:
    setting.frames.error = InvalidArgument("values has 3 entries beside 1 keys")
    payload = encode(KeysWrite("", [b"k"], [None] * 3, is_each_alone=True))
    with pytest.raises(InvalidArgument):
        await setting.service.handlers[WRITE_KEYS.number](payload, setting.clock.monotonic() + 5)
    assert setting.calls_of("Delete") == {"INVALID_ARGUMENT": 1}


async def test_a_frame_without_calls(setting: Setting) -> None:
    assert (await setting.read(0)).values == []
    assert (await setting.write([])).versions == []
    assert (setting.calls_of("Get"), setting.calls_of("Put")) == ({}, {})


async def test_a_damaged_payload_is_told(setting: Setting) -> None:
    for method in (READ_KEYS.number, WRITE_KEYS.number):
        with pytest.raises(Internal, match="payload"):
            await setting.service.handlers[method](b"\xc1", setting.clock.monotonic() + 5)


def test_what_the_lane_server_refuses_is_counted(setting: Setting) -> None:
    setting.service.note_refused(READ_KEYS.number, ResourceExhausted("full"))
    setting.service.note_refused(14, Unavailable("stopping"))
    assert setting.calls_of("BatchGet") == {"RESOURCE_EXHAUSTED": 1}
    assert setting.calls_of("other") == {"UNAVAILABLE": 1}


async def test_ping(setting: Setting) -> None:
    assert await setting.service.handlers[PING](b"", 0.0) == b""


class TestReadsOfOneKey:
    async def test_one_that_is_answered_counts_as_a_get(self, setting: Setting) -> None:
        assert setting.begin() is not None
        assert (setting.admission.calls, setting.answers) == (1, [])
        setting.clock.advance(0.002)
        setting.lone.told[0](KeysReadReply([b"v"], [1]))
        (answer,) = setting.answers
        assert isinstance(answer, bytes)
        assert decode(KeysReadReply, answer) == KeysReadReply([b"v"], [1])
        assert (setting.calls_of("Get"), setting.timed("Get"), setting.admission.calls) == ({"OK": 1}, 1, 0)

    async def test_one_that_fails_counts_by_its_error(self, setting: Setting) -> None:
        setting.begin()
        setting.lone.told[0](error := Unavailable("down"))
        assert setting.answers == [error]
        assert (setting.calls_of("Get"), setting.admission.calls) == ({"UNAVAILABLE": 1}, 0)

    async def test_one_that_is_taken_back_counts_as_cancelled(self, setting: Setting) -> None:
        give_up = setting.begin()
        assert give_up is not None
        give_up()
        assert (setting.lone.taken_back, setting.answers) == (1, [])
        assert (setting.calls_of("Get"), setting.admission.calls) == ({"CANCELLED": 1}, 0)

    async def test_one_that_goes_the_other_way_is_counted_there(self, setting: Setting) -> None:
        setting.begin()
        setting.lone.told[0](None)
        assert setting.answers == [None]
        assert (setting.calls_of("Get"), setting.admission.calls) == ({}, 0)

    async def test_what_is_no_such_read_is_left(self, setting: Setting) -> None:
        assert setting.begin(keys=2) is None
        assert setting.begin(b"k" * LONE_MAX_BYTES) is None
        assert (setting.calls_of("Get"), setting.admission.calls, setting.admission.arrived) == ({}, 0, 0)

    async def test_a_full_router_refuses(self, setting: Setting) -> None:
        for _ in range(2):
            assert setting.begin() is not None
        with pytest.raises(ResourceExhausted):
            setting.begin()
        assert (setting.calls_of("Get"), setting.admission.calls) == ({"RESOURCE_EXHAUSTED": 1}, 2)

    async def test_a_defect_is_internal_and_nothing_is_held(self, setting: Setting) -> None:
        setting.lone.error = ZeroDivisionError("defect")
        with capture_logs(), pytest.raises(Internal, match="ZeroDivisionError"):
            setting.begin()
        assert (setting.calls_of("Get"), setting.admission.calls) == ({"INTERNAL": 1}, 0)
