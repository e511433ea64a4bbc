"""Two lanes to a leaf, and the one timer of a lane, over real gRPC on loopback."""

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
import pytest

from kvshard.clock import SystemClock
from kvshard.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from kvshard.model import ShardRead, ShardReadReply, ShardWrite, ShardWriteReply
from kvshard.rpc.channel import aio_channel, aio_server, bind
from kvshard.rpc.codec import READ, WRITE, encode, handler_of
from kvshard.rpc.grpc_stream import CallerStream
from kvshard.rpc.lane import Lane
from kvshard.rpc.lane_choice import SMALL_MAX_BYTES
from kvshard.rpc.lane_client import LaneLeafClient
from kvshard.rpc.lane_pair import LanePair
from kvshard.rpc.lane_server import LaneServicer
from kvshard.v1 import lane_pb2_grpc

CLOCK = SystemClock()


class Leaf:
    """Reads echo their keys, writes wait for `go`."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.began: asyncio.Queue[ShardWrite] = asyncio.Queue()
        self.servicer = LaneServicer(dict([handler_of(ShardRead, self.read), handler_of(ShardWrite, self.write)]), CLOCK)
        self.server = aio_server()
        lane_pb2_grpc.add_LanesServicer_to_server(self.servicer, self.server)
        self.address = bind(self.server, "127.0.0.1:0")

    async def read(self, request: ShardRead, deadline: float) -> ShardReadReply:
        return ShardReadReply([*request.keys], [1] * len(request.keys))

    async def write(self, request: ShardWrite, deadline: float) -> ShardWriteReply:
        self.began.put_nowait(request)
        await self.go.wait()
        return ShardWriteReply([1] * len(request.keys), [False] * len(request.keys))


@pytest.fixture
async def leaf() -> AsyncIterator[Leaf]:
    leaf = Leaf()
    await leaf.server.start()
    yield leaf
    await leaf.servicer.drain(0.0)
    await leaf.server.stop(None)


@pytest.fixture
async def client(leaf: Leaf) -> AsyncIterator[LaneLeafClient]:
    client = LaneLeafClient({"leaf-1": leaf.address}.get, CLOCK)
    yield client
    await client.close()


def read(keys: int = 1, size: int = 8) -> ShardRead:
    return ShardRead(1, 1, 1, [b"k" * size] * keys)


def write(size: int = 8) -> ShardWrite:
    return ShardWrite(1, 1, 1, [b"k"], [b"v" * size])


def soon(timeout_s: float = 10.0) -> float:
    return CLOCK.monotonic() + timeout_s


class TestTwoLanes:
    async def test_a_lane_is_opened_when_it_is_needed(self, leaf: Leaf, client: LaneLeafClient) -> None:
        await client.read("leaf-1", read(), soon())
        assert "lanes=1" in repr(leaf.servicer)
        await client.read("leaf-1", read(keys=500), soon())
        assert "lanes=2" in repr(leaf.servicer)
        await asyncio.gather(*(client.read("leaf-1", read(keys=n), soon()) for n in range(1, 200)))
        assert "lanes=2" in repr(leaf.servicer)

    async def test_large_requests_and_large_answers_take_the_bulk_lane(self, leaf: Leaf, client: LaneLeafClient) -> None:
        calls = [asyncio.create_task(client.write("leaf-1", write(size), soon())) for size in (8, SMALL_MAX_BYTES, 8)]
        for _ in calls:
            await leaf.began.get()
        (pair,) = client._lanes.values()
        assert (pair.small.outstanding, pair.bulk.outstanding, pair.outstanding) == (2, 1, 3)
        leaf.go.set()
        await asyncio.gather(*calls)

    async def test_a_full_bulk_lane_holds_no_small_request_up(
        self, leaf: Leaf, client: LaneLeafClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kvshard.rpc.lane_session.MAX_OUTSTANDING", 3)
        held = [asyncio.create_task(client.write("leaf-1", write(SMALL_MAX_BYTES), soon())) for _ in range(3)]
        for _ in held:
            await leaf.began.get()
        with pytest.raises(ResourceExhausted):
            await client.read("leaf-1", read(keys=1000), soon(0.02))
        for _ in range(5):
            assert (await client.read("leaf-1", read(), soon())).reply.versions == [1]
        leaf.go.set()
        await asyncio.gather(*held)

    async def test_small_answers_do_not_wait_for_one_that_nobody_takes_in(self, leaf: Leaf) -> None:
        """A big answer fills the window of its stream; one stream for all would stand."""
        pair = LanePair(leaf.address, CLOCK)
        for lane in (pair.small, pair.bulk):
            await lane.call(READ.number, encode(read()), soon())
        session = pair.bulk._session
        assert session is not None
        is_read = asyncio.Event()
        assert isinstance(session._stream, CallerStream)
        taken = session._stream._call.read

        async def read_late() -> object:
            await is_read.wait()
            return await taken()

        session._stream._call.read = read_late  # type: ignore[method-assign]
        first = asyncio.create_task(pair.bulk.call(READ.number, encode(read()), soon()))  # Its answer ends the read under way.
        await first
        big = [asyncio.create_task(pair.bulk.call(READ.number, encode(read(size=2_000_000)), soon())) for _ in range(8)]
        for _ in range(5):
            await pair.small.call(READ.number, encode(read()), soon())
        assert not any(call.done() for call in big)
        is_read.set()
        assert all(len(frame.payload) > 2_000_000 for frame in await asyncio.gather(*big))
        await pair.close()

    async def test_they_break_apart(self, leaf: Leaf, client: LaneLeafClient) -> None:
        small = asyncio.create_task(client.write("leaf-1", write(), soon()))
        bulk = asyncio.create_task(client.write("leaf-1", write(SMALL_MAX_BYTES), soon()))
        for _ in range(2):
            await leaf.began.get()
        (pair,) = client._lanes.values()
        assert pair.bulk._session is not None
        await pair.bulk._session.close()
        with pytest.raises(Unavailable):
            await bulk
        leaf.go.set()
        assert (await small).reply.versions == [1]

    async def test_closing_fails_what_is_outstanding_on_either(self, leaf: Leaf) -> None:
        pair = LanePair(leaf.address, CLOCK)
        calls = [
            asyncio.create_task(lane.call(WRITE.number, encode(write()), soon(), is_write=True))
            for lane in (pair.small, pair.bulk)
        ]
        for _ in calls:
            await leaf.began.get()
        await pair.close()
        for call in calls:
            with pytest.raises(Unavailable) as caught:
                await call
            assert caught.value.details.maybe_applied
        assert "closed" in repr(pair)


async def test_only_lanes_within_a_cluster_are_impatient(leaf: Leaf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may be far away: pinged once a second, it would cost its router more than the calls of most."""
    seen: list[bool] = []

    def note(address: str, *, is_internal: bool) -> grpc.aio.Channel:
        seen.append(is_internal)
        return aio_channel(address, is_internal=is_internal)

    monkeypatch.setattr("kvshard.rpc.lane.aio_channel", note)
    lane, client = Lane(leaf.address, CLOCK), LaneLeafClient({"leaf-1": leaf.address}.get, CLOCK)
    await lane.call(READ.number, encode(read()), soon())
    await client.read("leaf-1", read(), soon())
    assert seen == [False, True]
    await asyncio.gather(lane.close(), client.close())


class TestOneTimer:
    async def test_each_call_ends_at_its_own_deadline(self, leaf: Leaf) -> None:
        lane = Lane(leaf.address, CLOCK)
        await lane.call(READ.number, encode(read()), soon())
        ended: list[tuple[float, float]] = []

        async def wait(timeout_s: float) -> None:
            deadline = soon(timeout_s)
            with pytest.raises(DeadlineExceeded):
                await lane.call(WRITE.number, encode(write()), deadline)
            ended.append((timeout_s, CLOCK.monotonic() - deadline))

        await asyncio.gather(*map(wait, [0.12, 0.04, 0.16, 0.08]))
        assert [timeout_s for timeout_s, _ in ended] == [0.04, 0.08, 0.12, 0.16]
        assert all(-0.005 < late_s < 2.0 for _, late_s in ended)
        assert lane.outstanding == 0
        await lane.close()

    async def test_calls_that_are_answered_leave_no_timers_behind(self, leaf: Leaf) -> None:
        lane, loop = Lane(leaf.address, CLOCK), asyncio.get_running_loop()
        await lane.call(READ.number, encode(read()), soon())
        before = len(loop._scheduled)
        for n in range(50):
            await lane.call(READ.number, encode(read()), soon(20 + n))
        assert len(loop._scheduled) <= before + 1
        session = lane._session
        assert session is not None
        await lane.close()
        assert session._timer is not None
        assert session._timer.cancelled()

    async def test_a_timer_that_goes_off_for_a_call_that_has_ended_keeps_the_others(self, leaf: Leaf) -> None:
        lane = Lane(leaf.address, CLOCK)
        await lane.call(READ.number, encode(read()), soon())
        held = asyncio.create_task(lane.call(WRITE.number, encode(write()), soon(0.2)))
        await leaf.began.get()
        await lane.call(READ.number, encode(read()), soon(0.05))
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(held, 5)
        await lane.close()


async def test_lanes_are_counted_by_what_they_run_over(leaf: Leaf, client: LaneLeafClient) -> None:
    assert client.lanes_by_transport() == {"unix": 0, "tcp": 0, "grpc": 0}
    await client.read("leaf-1", read(), soon())
    await client.read("leaf-1", read(keys=500), soon())
    assert client.lanes_by_transport() == {"unix": 0, "tcp": 0, "grpc": 2}
