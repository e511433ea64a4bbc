"""The client over lanes: how much travels, routers of older versions, and the deadlines of callers who share a frame."""

import asyncio
import subprocess
import sys
import time

import pytest
from fakes.key_transport import MemoryKeys, keyspace_over
from fakes.router_service import FakeRouter

from kvshard import NO_RETRIES, Client, DeadlineExceeded, Unavailable
from kvshard.client.batch_window import BUCKETS, IN_FLIGHT_FEW, LATE_S, bucket_of
from kvshard.client.retries import RetryPolicy
from kvshard.client.routers import Routers
from kvshard.errors import ErrorDetails
from kvshard.lane_messages import KeysRead, KeysWrite


async def test_hundreds_of_calls_travel_in_a_few_frames() -> None:
    with FakeRouter(has_lanes=True) as router:
        for number in range(512):
            router.put(b"k%d" % number, b"%d" % number)
        async with Client(router.address) as kv:
            for _ in range(3):
                items = await asyncio.gather(*(kv.get(f"k{number}") for number in range(512)))
                assert [item and item.value for item in items] == [b"%d" % number for number in range(512)]
        assert len(router.frames) <= 3 * IN_FLIGHT_FEW
        assert all(isinstance(frame, KeysRead) and frame.is_each_alone for frame in router.frames)


async def test_batches_and_single_calls_go_by_lanes_and_nothing_else_does() -> None:
    with FakeRouter(has_lanes=True) as router:
        async with Client(router.address, lanes=3) as kv:
            await kv.put_many({f"k{number}": b"v" for number in range(200)})
            assert len((await kv.get_many([f"k{number}" for number in range(200)])).values()) == 200
            assert (await kv.explain_get("k1"))[1].total_us == 900
            assert await kv.delete("k1") is True
            assert [item.key async for item in kv.scan(limit=1)] == ["k0"]
            assert "unary=[]" in repr(kv._connection.keys.transport)
        kinds = [(type(frame), getattr(frame, "is_each_alone", None)) for frame in router.frames]
        assert kinds == [(KeysWrite, False), (KeysRead, False), (KeysRead, True), (KeysWrite, True)]


async def test_a_router_of_an_older_version_is_asked_by_its_unary_methods_and_not_for_lanes_again() -> None:
    with FakeRouter() as old:
        async with Client(old.address) as kv:
            assert await kv.put("a", b"1", ttl=60, if_absent=True) == 1
            assert await asyncio.gather(kv.put("b", b"2"), kv.delete("a"), kv.put("c", b"3", if_absent=True)) == [2, True, 3]
            item = await kv.get("b")
            assert item is not None
            assert item.value == b"2"
            items = await asyncio.gather(*(kv.get(key) for key in "abc"))
            assert [item and item.value for item in items] == [None, b"2", b"3"]
            assert "unary=[0]" in repr(kv._connection.keys.transport)
        assert not old.frames
        assert [len(old.requests[method]) for method in ("Put", "Get", "BatchGet", "BatchWrite")] == [1, 1, 1, 1]


async def test_of_single_reads_from_an_older_router_each_fails_alone() -> None:
    with FakeRouter() as old:
        old.put(b"a", b"1")
        old.dead_keys[b"dead"] = Unavailable("shard 3 is silent", ErrorDetails(shards=(3,)))
        async with Client(old.address, retries=NO_RETRIES) as kv:
            good, dead = await asyncio.gather(kv.get("a"), kv.get("dead"), return_exceptions=True)
        assert not isinstance(good, BaseException)
        assert isinstance(dead, Unavailable)
        assert dead.details.shards == (3,)


async def test_routers_of_both_versions_take_turns() -> None:
    with FakeRouter() as old, FakeRouter(has_lanes=True) as new:
        async with Client([old.address, new.address]) as kv:
            await kv.put("a", b"1")
            kv._connection.routers.turn_from(0)
            await kv.put("a", b"2")
            kv._connection.routers.turn_from(1)
            await kv.put("a", b"3")
        assert (len(old.requests["Put"]), len(old.frames)) == (2, 0)
        assert (len(new.requests["Put"]), len(new.frames)) == (1, 1)


def test_turning_away_from_a_router_that_others_have_left_changes_nothing() -> None:
    routers = Routers(["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"])
    for _ in range(3):
        routers.turn_from(0)
    assert routers.current == 1


@pytest.mark.parametrize("has_lanes", [True, False])
async def test_who_shares_a_frame_keeps_a_deadline_of_its_own(has_lanes: bool) -> None:
    with FakeRouter(has_lanes=has_lanes) as router:
        router.put(b"a", b"1")
        for method in ("Get", "BatchGet", "Put", "BatchWrite"):
            router.hold(method)
        async with Client(router.address) as kv:
            patient = asyncio.create_task(kv.get("a"))
            hasty = asyncio.create_task(kv.get("b", timeout=0.1))
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                await hasty
            assert 0.09 <= time.monotonic() - began < 2.0
            writing = asyncio.create_task(kv.put("b", b"2"))
            with pytest.raises(DeadlineExceeded) as late:
                await kv.put("c", b"3", timeout=0.1)
            assert late.value.details.maybe_applied
            for method in ("Get", "BatchGet", "Put", "BatchWrite"):
                router.release(method)
            item = await patient
            assert item is not None
            assert await writing > 1


async def test_a_write_whose_time_is_over_before_it_is_sent_was_not_done() -> None:
    transport = MemoryKeys()
    kv = keyspace_over(transport)
    transport.hold()
    first = asyncio.create_task(kv.put("k", b"1"))
    while not transport.held:
        await asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded, match="before the call was sent") as late:
        await kv.put("k", b"2", timeout=0.05)
    assert not late.value.details.maybe_applied
    transport.release()
    await first
    await kv.put("k", b"3")
    assert [value for _, value, _ in transport.wrote] == [b"1", b"3"]
    await kv._connection.close()


async def test_who_gives_up_before_a_repetition_is_not_in_it() -> None:
    transport = MemoryKeys()
    kv = keyspace_over(transport, RetryPolicy(base_delay_s=0.1, max_delay_s=0.1))
    transport.failures.append(Unavailable("starting"))
    gone, kept = (asyncio.create_task(kv.put(key, b"v")) for key in "ab")
    while not transport.writes:
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    gone.cancel()
    await kept
    assert [request.keys for request in transport.writes] == [[b"a", b"b"], [b"b"]]
    assert gone.cancelled()
    await kv._connection.close()


async def test_when_all_callers_have_run_out_of_time_their_frame_is_taken_back() -> None:
    transport = MemoryKeys()
    kv = keyspace_over(transport)
    transport.hold()
    calls = [kv.get(key, timeout=0.05) for key in "abc"]
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, DeadlineExceeded)
    for _ in range(8):
        await asyncio.sleep(0)
    assert transport.cancelled == 1
    await kv._connection.close()


async def test_a_silent_shard_does_not_hold_up_the_calls_for_the_others() -> None:
    """Each frame has some of its keys, and all places are soon taken by frames that do not come back."""
    transport = MemoryKeys()
    kv = keyspace_over(transport)
    keys = [f"k{number}" for number in range(400)]
    silent = {0, 1}
    transport.stuck_keys = {key.encode() for key in keys if bucket_of(key.encode()) in silent}
    others = [key for key in keys if key.encode() not in transport.stuck_keys]
    assert len(others) < len(keys) * (BUCKETS - 1) / BUCKETS
    caught = []
    while len(transport.held) < IN_FLIGHT_FEW:
        caught += [asyncio.create_task(kv.get(key)) for key in keys[:200]]
        for _ in range(4):
            await asyncio.sleep(0)
    await asyncio.sleep(2 * LATE_S)
    later = [asyncio.create_task(kv.get(key)) for key in keys]
    began = time.monotonic()
    await asyncio.wait_for(asyncio.gather(*(task for task, key in zip(later, keys, strict=True) if key in others)), 5.0)
    assert time.monotonic() - began < 1.0
    assert not any(task.done() for task, key in zip(later, keys, strict=True) if key not in others)
    transport.stuck_keys.clear()
    transport.release()
    await asyncio.gather(*caught, *later)
    await kv._connection.close()


def test_a_client_prints_nothing_into_the_program_of_which_it_is_a_part() -> None:
    program = """if True:
        import asyncio
        from kvshard import Client, KvShardError

        async def main():
            async with Client("127.0.0.1:1", timeout=0.3) as kv:
                try:
                    await kv.get("k")
                except KvShardError:
                    pass

        asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-c", program], check=True, timeout=30, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
