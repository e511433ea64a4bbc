"""Single operations side by side: what travels together, what each caller gets, and what is left of those who gave up."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from fakes.key_transport import MemoryKeys, StartedKeys, keyspace_over, passes

from kvshard.client.batch_window import BUCKET_FRAMES, bucket_of
from kvshard.client.batching import FRAME_KEYS_SPREAD
from kvshard.client.keyspace import Keyspace
from kvshard.client.read_batcher import FIRST_SLICE_S
from kvshard.client.retries import NO_RETRIES, RetryPolicy
from kvshard.client.single_calls import WriteHow, single_calls_of
from kvshard.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    ErrorDetails,
    Expired,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    KvShardError,
    ResourceExhausted,
    Unavailable,
    VersionConflict,
)
from kvshard.lane_messages import KeysWrite, KeysWriteReply
from kvshard.v1 import types_pb2

DOUBT = ErrorDetails(maybe_applied=True)


@pytest.fixture(params=[MemoryKeys, StartedKeys])
def transport(request: pytest.FixtureRequest) -> MemoryKeys:
    """Carries reads by tasks, or starts them without any: callers must see no difference."""
    made: MemoryKeys = request.param()
    return made


@pytest.fixture
async def kv(transport: MemoryKeys) -> AsyncIterator[Keyspace[str, bytes]]:
    keyspace = keyspace_over(transport)
    yield keyspace
    await keyspace._connection.close()


def started(*calls: object) -> list[asyncio.Task[object]]:
    return [asyncio.create_task(call) for call in calls]  # type: ignore[arg-type]


async def outcomes(tasks: list[asyncio.Task[object]]) -> list[object]:
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_is_called_in_one_pass_travels_in_one_frame(kv: Keyspace[str, bytes], transport: MemoryKeys) -> None:
    transport.put(b"a", b"1")
    found = await asyncio.gather(kv.get("a"), kv.get("b"), kv.get("a"))
    assert [item and (item.key, item.value, item.version) for item in found] == [("a", b"1", 1), None, ("a", b"1", 1)]
    (request,) = transport.reads
    assert (request.collection, request.keys, request.is_each_alone) == ("default", [b"a", b"b", b"a"], True)


async def test_puts_and_deletes_share_frames(kv: Keyspace[str, bytes], transport: MemoryKeys) -> None:
    done = await asyncio.gather(kv.put("a", b"1"), kv.put("b", b"2", ttl=1.5), kv.delete("a"), kv.delete("x"))
    assert done == [1, 2, True, False]
    (request,) = transport.writes
    assert request.keys == [b"a", b"a", b"b", b"x"]
    assert request.values == [b"1", None, b"2", None]
    assert request.ttl_ms == [0, 0, 1500, 0]
    assert request.conditions == []


async def test_other_options_travel_apart_and_a_read_that_tells_something_of_its_own_alone(
    kv: Keyspace[str, bytes], transport: MemoryKeys
) -> None:
    await asyncio.gather(kv.get("a"), kv.get("b", hedge="off"), kv.get("c"), kv.get("d", consistency="stale"), kv.get("e"))
    assert sorted(request.keys for request in transport.reads) == [[b"a", b"c", b"e"], [b"b"], [b"d"]]
    assert len({request.options for request in transport.reads}) == 3


async def test_each_caller_has_its_own_result_or_error(kv: Keyspace[str, bytes], transport: MemoryKeys) -> None:
    transport.dead_keys[b"dead"] = DataLoss("a torn block")
    transport.put(b"old", b"x")
    tasks = started(
        kv.put("a", b"1"), kv.put("old", b"2", if_absent=True), kv.put("dead", b"3"), kv.put("old", b"4", if_version=1)
    )
    first, conflict, dead, second = await outcomes(tasks)
    assert (first, second) == (2, 3)
    assert isinstance(conflict, VersionConflict)
    assert conflict.details.current_version == 1
    assert isinstance(dead, DataLoss)
    read = await outcomes(started(kv.get("a"), kv.get("dead")))
    assert isinstance(read[1], DataLoss)
    assert read[1] is not dead


async def test_callers_who_fail_alike_have_errors_of_their_own(kv: Keyspace[str, bytes], transport: MemoryKeys) -> None:
    transport.failures.append(Internal("a defect"))
    first, second = await outcomes(started(kv.get("a"), kv.get("b")))
    assert isinstance(first, Internal)
    assert isinstance(second, Internal)
    assert first is not second


async def test_a_frame_that_failed_for_a_while_is_sent_again(kv: Keyspace[str, bytes], transport: MemoryKeys) -> None:
    transport.put(b"a", b"1")
    transport.failures.extend([Unavailable("starting"), ResourceExhausted("full", ErrorDetails(retry_after_ms=1))])
    items = await asyncio.gather(kv.get("a"), kv.get("b"))
    assert [item and item.value for item in items] == [b"1", None]
    assert [request.keys for request in transport.reads] == [[b"a", b"b"]] * 3


async def test_nobody_waits_for_a_key_that_is_asked_for_again(kv: Keyspace[str, bytes], transport: MemoryKeys) -> None:
    transport.put(b"a", b"1")
    transport.dead_keys[b"dead"] = Unavailable("shard 3 is silent")
    good, dead = started(kv.get("a"), kv.get("dead"))
    await good
    assert not dead.done()
    assert [request.keys for request in transport.reads[:2]] == [[b"a", b"dead"], [b"dead"]]
    del transport.dead_keys[b"dead"]
    assert await dead is None


async def test_without_retries_every_failure_goes_to_its_caller(transport: MemoryKeys) -> None:
    kv = keyspace_over(transport, NO_RETRIES)
    transport.dead_keys[b"dead"] = Unavailable("shard 3 is silent")
    good, dead = await outcomes(started(kv.put("a", b"1"), kv.put("dead", b"2")))
    assert good == 1
    assert isinstance(dead, Unavailable)
    assert not dead.details.maybe_applied
    assert len(transport.writes) == 1
    await kv._connection.close()


async def test_who_cannot_wait_for_the_repetition_is_told_at_once(transport: MemoryKeys) -> None:
    kv = keyspace_over(transport, RetryPolicy(base_delay_s=3600.0, max_delay_s=3600.0))
    transport.failures.append(Unavailable("starting"))
    hasty, patient = started(kv.get("a", timeout=5.0), kv.get("b", timeout=36_000.0))
    with pytest.raises(Unavailable, match="starting"):
        await hasty
    assert not patient.done()
    await kv._connection.close()
    assert isinstance((await outcomes([patient]))[0], Cancelled)


async def test_a_write_keeps_its_id_over_all_its_sendings(kv: Keyspace[str, bytes], transport: MemoryKeys) -> None:
    transport.watermarks = b"marks"
    await kv.put("first", b"")
    transport.failures.extend([Unavailable("starting"), Unavailable("lost", DOUBT)])
    assert await asyncio.gather(kv.put("a", b"1"), kv.put("b", b"2")) == [2, 3]
    ids = [types_pb2.RequestId.FromString(request.request_id) for request in transport.writes[1:]]
    assert len({(id.client, id.number) for id in ids}) == 1
    assert [id.is_retry for id in ids] == [False, False, True]
    assert [id.watermarks for id in ids] == [b"", b"", b"marks"]
    assert not any(id.positions for id in ids)


async def test_a_part_of_a_frame_is_sent_again_with_its_places(kv: Keyspace[str, bytes], transport: MemoryKeys) -> None:
    for key in (b"b", b"d"):
        transport.dead_keys[key] = Unavailable("leaf-1 restarts")
    tasks = started(*(kv.put(key, key.encode()) for key in "abcd"))
    assert await asyncio.gather(tasks[0], tasks[2]) == [1, 2]
    while len(transport.writes) < 2:
        await passes(1)
    del transport.dead_keys[b"d"]
    assert await tasks[3] == 3
    while len(transport.writes[-1].keys) > 1:
        await passes(1)
    transport.dead_keys.clear()
    assert await tasks[1] == 4
    again, last = transport.writes[1], transport.writes[-1]
    assert (again.keys, again.values, last.keys) == ([b"b", b"d"], [b"b", b"d"], [b"b"])
    ids = [types_pb2.RequestId.FromString(request.request_id) for request in transport.writes]
    assert len({(id.client, id.number) for id in ids}) == 1
    assert [list(ids[0].positions), list(ids[1].positions), list(ids[-1].positions)] == [[], [1, 3], [1]]
    assert {id.total for id in ids[1:]} == {4}


async def test_only_the_keys_that_may_have_been_written_are_in_doubt(transport: MemoryKeys) -> None:
    kv = keyspace_over(transport, RetryPolicy(max_attempts=2, base_delay_s=0.0, max_delay_s=0.0))
    transport.dead_keys[b"lost"] = Unavailable("the lane broke", DOUBT)
    transport.dead_keys[b"silent"] = Unavailable("shard 3 is silent")
    tasks = started(kv.put("lost", b"1"), kv.put("silent", b"2"))
    while not transport.writes:
        await passes(1)
    transport.dead_keys[b"lost"] = Unavailable("shard 4 is silent")
    lost, silent = await outcomes(tasks)
    assert isinstance(lost, Unavailable)
    assert lost.details.maybe_applied
    assert isinstance(silent, Unavailable)
    assert not silent.details.maybe_applied
    transport.failures.extend([Unavailable("broke", DOUBT), Expired("forgotten")])
    (expired,) = await outcomes(started(kv.put("late", b"3")))
    assert isinstance(expired, Expired)
    assert expired.details.maybe_applied
    transport.failures.extend([Unavailable("broke", DOUBT), InvalidArgument("no document")])
    (refused,) = await outcomes(started(kv.put("bad", b"3")))
    assert isinstance(refused, InvalidArgument)
    assert not refused.details.maybe_applied
    await kv._connection.close()


async def test_writes_of_a_key_take_effect_in_the_order_of_their_calls(kv: Keyspace[str, bytes], transport: MemoryKeys) -> None:
    transport.hold()
    first = started(kv.put("k", b"1"))
    await passes()
    later = started(kv.put("k", b"2"), kv.delete("k"), kv.put("k", b"3"), kv.put("other", b"x"))
    await passes()
    assert [request.keys for request in transport.writes] == [[b"k"], [b"other"]]
    transport.failures.append(Unavailable("lost on the way"))
    transport.release()
    await outcomes(first + later)
    assert [value for key, value, _ in transport.wrote if key == b"k"] == [b"1", b"2", None, b"3"]


async def test_a_call_that_is_cancelled_before_it_is_sent_is_not_sent(kv: Keyspace[str, bytes], transport: MemoryKeys) -> None:
    transport.hold()
    held = started(kv.put("k", b"1"))
    await passes()
    waiting, next_one = started(kv.put("k", b"2"), kv.put("k", b"3"))
    await passes()
    waiting.cancel()
    transport.release()
    await outcomes([*held, waiting, next_one])
    assert waiting.cancelled()
    assert [value for _, value, _ in transport.wrote] == [b"1", b"3"]


async def test_a_write_that_is_cancelled_in_the_pass_of_its_call_is_not_sent(
    kv: Keyspace[str, bytes], transport: MemoryKeys
) -> None:
    cancelled, kept = started(kv.put("a", b"1"), kv.put("b", b"2"))
    await passes(1)
    cancelled.cancel()
    await kept
    assert [request.keys for request in transport.writes] == [[b"b"]]
    (alone,) = started(kv.put("c", b"3"))
    await passes(1)
    alone.cancel()
    await passes()
    assert len(transport.writes) == 1


async def test_a_frame_goes_on_for_those_who_still_wait_and_is_taken_back_when_nobody_does(
    kv: Keyspace[str, bytes], transport: MemoryKeys
) -> None:
    transport.hold()
    first, second = started(kv.get("a"), kv.get("b"))
    await passes()
    first.cancel()
    await passes()
    assert transport.cancelled == 0
    second.cancel()
    await passes()
    assert transport.cancelled == 1
    assert first.cancelled()
    assert second.cancelled()
    reads = kv._connection.keys.reads
    assert (reads._batching.waiting, len(reads._batching.frames), len(reads._tasks)) == (0, 0, 0)


async def test_a_write_that_was_taken_back_leaves_its_key_free(kv: Keyspace[str, bytes], transport: MemoryKeys) -> None:
    transport.hold()
    (call,) = started(kv.put("k", b"1"))
    await passes()
    call.cancel()
    await passes()
    transport.release()
    assert await kv.put("k", b"2") == 1
    assert kv._connection.keys.ids._names is not None
    assert kv._connection.keys.ids._names.under_way == 0


async def test_an_answer_without_room_is_asked_for_in_smaller_parts(kv: Keyspace[str, bytes], transport: MemoryKeys) -> None:
    keys = [f"k{number}" for number in range(11)]
    for key in keys:
        transport.put(key.encode(), key.encode())
    transport.answer_max_keys = 2
    items = await asyncio.gather(*map(kv.get, keys))
    assert [item and item.value for item in items] == [key.encode() for key in keys]
    assert max(len(request.keys) for request in transport.reads[1:]) <= 5
    assert len(transport.reads) <= 2 * len(keys)


async def test_a_value_that_never_has_room_is_told_to_its_caller(kv: Keyspace[str, bytes], transport: MemoryKeys) -> None:
    transport.put(b"a", b"1")
    transport.dead_keys[b"huge"] = ResourceExhausted("too large for any answer", ErrorDetails(field="keys"))
    good, huge = await outcomes(started(kv.get("a"), kv.get("huge")))
    assert not isinstance(good, BaseException)
    assert isinstance(huge, ResourceExhausted)


async def test_the_halves_are_asked_for_one_after_the_other_also_when_one_is_given_up(
    kv: Keyspace[str, bytes], transport: MemoryKeys
) -> None:
    transport.answer_max_keys = 1
    transport.hold()
    tasks = started(*(kv.get(key) for key in "abc"))
    await passes()
    transport.held.pop().set_result(None)
    await passes()
    assert [request.keys for request in transport.reads] == [[b"a", b"b", b"c"], [b"b"]]
    tasks[1].cancel()
    await passes()
    assert [request.keys for request in transport.reads][2:] == [[b"c"]]
    transport.release()
    assert await tasks[2] is None


async def test_a_closed_client_leaves_no_caller_waiting(kv: Keyspace[str, bytes], transport: MemoryKeys) -> None:
    transport.hold()
    sent = started(kv.put("k", b"1"), kv.get("k"))
    await passes()
    waiting = started(kv.put("k", b"2"))
    await passes()
    fresh = started(kv.get("other"))
    await passes(1)
    await kv._connection.close()
    put, get, behind, unsent = await outcomes(sent + waiting + fresh)
    for error, is_in_doubt in ((put, True), (get, False), (behind, False), (unsent, False)):
        assert isinstance(error, Cancelled)
        assert "the client was closed" in str(error)
        assert error.details.maybe_applied == is_in_doubt
    for call in (kv.get("k"), kv.put("k", b""), kv.get_many(["k"]), kv.put_many({"k": b""})):
        with pytest.raises(FailedPrecondition, match="closed"):
            await call
    assert transport.is_closed
    await kv._connection.close()


async def test_a_defect_is_told_and_leaves_nobody_waiting(
    kv: Keyspace[str, bytes], transport: MemoryKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(request: object, deadline: float) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(transport, "read", broken)
    with pytest.raises(Internal, match="ZeroDivisionError"):
        await kv.get("a")


async def test_an_answer_of_another_length_is_refused(
    kv: Keyspace[str, bytes], transport: MemoryKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = transport.read, transport.write

    async def short(request, deadline):  # type: ignore[no-untyped-def]
        reply = await (read if hasattr(request, "options") else write)(request, deadline)
        reply.versions.append(7)
        return reply

    monkeypatch.setattr(transport, "read", short)
    monkeypatch.setattr(transport, "write", short)
    for call in (kv.get("a"), kv.get_many(["a", "b"])):
        with pytest.raises(Internal, match="answered with"):
            await call
    for call in (kv.put("a", b""), kv.delete("a"), kv.put_many({"a": b""})):
        with pytest.raises(Internal, match="answered with") as told:
            await call
        assert told.value.details.maybe_applied


async def test_a_write_whose_answer_makes_no_sense_is_in_doubt(
    kv: Keyspace[str, bytes], transport: MemoryKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def garbled(request: KeysWrite, deadline: float) -> KeysWriteReply:
        reply = await MemoryKeys.write(transport, request, deadline)
        return KeysWriteReply(reply.versions, reply.existed, b"\xff\xff")

    monkeypatch.setattr(transport, "write", garbled)
    for call in (kv.put("a", b""), kv.delete("a"), kv.put_many({"a": b""})):
        with pytest.raises(Internal, match="no BatchWriteResponse") as told:
            await call
        assert told.value.details.maybe_applied


async def test_without_retries_the_deadline_of_a_frame_is_that_of_its_most_patient_caller(transport: MemoryKeys) -> None:
    kv = keyspace_over(transport, NO_RETRIES)
    now = kv._connection.clock.monotonic()
    await asyncio.gather(kv.get("a", timeout=5.0), kv.get("b", timeout=50.0), kv.get("c", timeout=0.5))
    assert transport.deadlines[0] == pytest.approx(now + 50.0, abs=0.5)
    await kv._connection.close()


async def test_a_frame_of_several_is_waited_for_in_slices_so_that_a_silent_shard_does_not_hold_up_the_others(
    kv: Keyspace[str, bytes], transport: MemoryKeys
) -> None:
    transport.put(b"a", b"1")
    silence = DeadlineExceeded("shard 3 did not answer", DOUBT)
    transport.dead_keys = dict.fromkeys((b"silent", b"silent too"), silence)
    now = kv._connection.clock.monotonic()
    good, *silent = started(kv.get("a"), kv.get("silent", timeout=60.0), kv.get("silent too", timeout=60.0))
    await good
    while len(transport.reads) < 3:
        await passes(1)
    first, second, third = (deadline - now for deadline in transport.deadlines[:3])
    assert FIRST_SLICE_S <= first < second < third < 60.0 * FIRST_SLICE_S
    transport.dead_keys.clear()
    assert await outcomes(silent) == [None, None]


async def test_the_slices_of_a_write_leave_it_in_doubt_until_it_is_done(
    kv: Keyspace[str, bytes], transport: MemoryKeys
) -> None:
    transport.watermarks = b"marks"
    transport.failures.append(DeadlineExceeded("no answer from the router", DOUBT))
    for outcome in await outcomes(started(kv.put("a", b"0"), kv.put("b", b"0"))):  # Nothing is known of the shards yet.
        assert isinstance(outcome, DeadlineExceeded)
        assert outcome.details.maybe_applied
    await kv.put("a", b"0")
    transport.failures.append(DeadlineExceeded("no answer from the router", DOUBT))
    assert await asyncio.gather(kv.put("a", b"1"), kv.put("b", b"2")) == [2, 3]
    ids = [types_pb2.RequestId.FromString(request.request_id) for request in transport.writes[2:]]
    assert [(id.is_retry, id.watermarks) for id in ids] == [(False, b""), (True, b"marks")]
    assert ids[0].number == ids[1].number


async def test_who_has_no_time_left_after_a_slice_is_told(kv: Keyspace[str, bytes], transport: MemoryKeys) -> None:
    transport.failures.append(DeadlineExceeded("shard 3 did not answer"))
    hasty, patient = started(kv.get("a", timeout=FIRST_SLICE_S / 2), kv.get("b", timeout=60.0))
    with pytest.raises(DeadlineExceeded, match="shard 3"):
        await hasty
    assert not patient.done()
    await patient
    one = started(kv.get("a", timeout=60.0))
    await outcomes(one)
    assert transport.deadlines[-1] == pytest.approx(kv._connection.clock.monotonic() + 60.0, abs=0.5)


async def test_errors_of_the_arguments_cost_nothing(kv: Keyspace[str, bytes], transport: MemoryKeys) -> None:
    for call in (kv.get(""), kv.put("k", "text"), kv.put("k", b"", timeout=0.0)):  # type: ignore[arg-type]
        with pytest.raises(KvShardError):
            await call
    assert not transport.reads
    assert not transport.writes


async def test_what_waits_for_a_silent_bucket_does_not_keep_new_calls_from_going(
    kv: Keyspace[str, bytes], transport: MemoryKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvshard.client.batch_window.LATE_S", 0.0)
    silent, others = "silent", [f"k{number}" for number in range(40)]
    transport.stuck_keys = {b"silent"}
    stuck = []
    for _ in range(BUCKET_FRAMES + 2):
        stuck += started(kv.get(silent))
        await passes()
    assert len(transport.held) == BUCKET_FRAMES + 1  # The first one was of any bucket.
    free = [key for key in others if bucket_of(key.encode()) != bucket_of(b"silent")]
    assert await asyncio.gather(*map(kv.get, free)) == [None] * len(free)
    assert not any(task.done() for task in stuck)
    transport.stuck_keys.clear()
    transport.release()
    await outcomes(stuck)


async def test_who_cancels_every_task_of_a_program_does_not_stop_the_client(
    kv: Keyspace[str, bytes], transport: MemoryKeys
) -> None:
    me = asyncio.current_task()
    for rounds in range(4):  # After so many passes: before the sender has begun, before its frames have, and after that.
        calls = started(*(kv.get(f"k{number}") for number in range(3 * FRAME_KEYS_SPREAD)))
        await passes(rounds)
        own = asyncio.all_tasks() - {me, *calls}
        for task in own:
            task.cancel()
        for outcome in await outcomes(calls):
            assert outcome is None or isinstance(outcome, Cancelled)
        assert await kv.get("k") is None
    await passes()
    reads = kv._connection.keys.reads
    assert (reads._batching.waiting, len(reads._batching.frames), len(reads._tasks)) == (0, 0, 0)


async def test_a_read_that_is_started_needs_no_task_and_is_taken_back_when_nobody_waits() -> None:
    transport = StartedKeys()
    kv = keyspace_over(transport)
    assert await kv.get("a") is None  # The first one shows that reads can be started.
    transport.hold()
    calls = started(*(kv.get(f"k{number}") for number in range(3)))
    await passes()
    assert [len(request.keys) for request in transport.reads] == [1, 3]
    assert "tasks=0" in repr(kv._connection.keys.reads)
    for call in calls:
        call.cancel()
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in await outcomes(calls))
    await passes()
    assert transport.cancelled == 1
    assert "frames=0" in repr(kv._connection.keys.reads)
    await kv._connection.close()


async def test_where_reads_cannot_be_started_any_more_tasks_carry_them() -> None:
    transport = StartedKeys()
    kv = keyspace_over(transport)
    for transport.can_start in (True, False, False, True, True):
        assert await asyncio.gather(*(kv.get(f"k{number}") for number in range(3))) == [None] * 3
    assert len(transport.reads) == 5
    await kv._connection.close()


async def test_who_waits_in_his_own_way_is_told_as_a_future_is(kv: Keyspace[str, bytes], transport: MemoryKeys) -> None:
    single = single_calls_of(kv)
    futures: list[asyncio.Future[object]] = [asyncio.get_running_loop().create_future() for _ in range(4)]
    single.ask_write(b"a", b"1", WriteHow.of(), futures[0])
    version, existed = await futures[0]  # type: ignore[misc]
    assert not existed
    single.ask(b"a", futures[1])
    item = single.item("a", b"a", await futures[1])  # type: ignore[arg-type]
    assert item == await kv.get("a")
    assert item is not None
    assert item.version == version
    transport.hold()
    single.ask(b"a", futures[2])
    single.ask_write(b"b", b"1", WriteHow.of(), futures[3])
    await passes()
    for is_write in (False, True):
        futures[2 + is_write].cancel()
        single.give_up(futures[2 + is_write], is_write=is_write)
    await passes()
    assert transport.cancelled == 2
