"""The client against a fake router on a real port: what travels, what comes back, and what happens when things fail."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

import grpc
import pytest
from fakes.router_service import FakeRouter

from kvshard import (
    NO_RETRIES,
    Client,
    CollectionExists,
    CollectionNotFound,
    DeadlineExceeded,
    Expired,
    FailedPrecondition,
    InvalidArgument,
    InvalidToken,
    Item,
    KvShardError,
    MalformedQuery,
    ReadState,
    Unavailable,
    VersionConflict,
)
from kvshard.client.retries import RetryPolicy
from kvshard.clustermap import Hedging
from kvshard.errors import Cancelled, ErrorDetails, Internal, ResourceExhausted, StorageFailed
from kvshard.v1 import types_pb2

T = TypeVar("T")


@pytest.fixture(params=[False, True], ids=["unary", "lanes"])
def has_lanes(request: pytest.FixtureRequest) -> bool:
    """Keys travel over lanes, and by unary methods to a router of an older version; a program sees no difference."""
    return bool(request.param)


@pytest.fixture
def router(has_lanes: bool) -> Iterator[FakeRouter]:
    with FakeRouter(has_lanes=has_lanes) as fake:
        yield fake


@pytest.fixture
async def kv(router: FakeRouter) -> AsyncIterator[Client[str]]:
    async with Client(router.address) as client:
        yield client


async def test_put_get_delete(kv: Client[str]) -> None:
    version = await kv.put("user:1", b"ada", ttl=60)
    item = await kv.get("user:1")
    assert item is not None
    assert (item.key, item.value, item.version) == ("user:1", b"ada", version)
    assert item.expires_at is not None
    assert 50 < item.expires_at.timestamp() - time.time() <= 61
    assert await kv.get("user:2") is None
    assert await kv.delete("user:1", if_version=version) is True
    assert await kv.delete("user:1") is False


async def test_an_empty_value_is_not_a_missing_one(kv: Client[str]) -> None:
    await kv.put("empty", b"")
    assert (await kv.get("empty")).value == b""
    assert [found and found.value for found in await kv.get_many(["empty", "gone"])] == [b"", None]


async def test_conditions(kv: Client[str]) -> None:
    first = await kv.put("k", b"1", if_absent=True)
    with pytest.raises(VersionConflict) as conflict:
        await kv.put("k", b"2", if_absent=True)
    assert conflict.value.details.current_version == first
    with pytest.raises(VersionConflict):
        await kv.put("k", b"2", if_version=first + 1)
    assert await kv.put("k", b"2", if_version=first) > first


async def test_keys_come_back_as_they_were_asked_for(router: FakeRouter) -> None:
    router.put(b"\xff\xfe", b"no text")
    async with Client(router.address) as texts, Client(router.address, keys=bytes) as raw:
        (text,) = [item.key async for item in texts.scan()]
        assert (await texts.get(text)).value == b"no text"
        assert [item.key async for item in raw.scan()] == [b"\xff\xfe"]
        assert (await raw.get("ä")) is None


async def test_batches_have_a_result_for_every_key(kv: Client[str], router: FakeRouter) -> None:
    router.dead_keys[b"b"] = Unavailable("shard 3 is silent", ErrorDetails(shards=(3,)))
    async with Client(router.address, retries=NO_RETRIES) as once:
        results = await once.put_many({"a": b"1", "b": b"2", "c": b"3"})
    assert (results["a"], results["c"]) == (1, 2)
    assert not results.ok
    assert list(results.failures) == ["b"]
    with pytest.raises(Unavailable, match="1 of 3 operations failed; the first, 'b': shard 3 is silent"):
        results.raise_for_failures()
    found = await kv.get_many(["c", "x", "b", "a"])
    assert found[:2] == [Item("c", b"3", 2), None]
    assert isinstance(found[2], Unavailable)
    assert found[3] == Item("a", b"1", 1)
    assert found.coverage.complete
    with pytest.raises(Unavailable):
        found.raise_for_failures()
    deleted = await kv.delete_many(["a", "x"])
    assert dict(deleted) == {"a": True, "x": False}
    assert await kv.get_many([]) == []
    assert len(await kv.put_many({})) == 0


@pytest.mark.parametrize("is_in_doubt", [False, True])
async def test_the_keys_of_a_batch_that_fail_for_a_while_are_sent_again_under_its_id(
    kv: Client[str], router: FakeRouter, is_in_doubt: bool
) -> None:
    router.watermarks = b"marks"
    await kv.put("x", b"asks for watermarks")
    router.put(b"d", b"old")
    for key in (b"b", b"d"):
        router.dead_keys[key] = Unavailable("leaf-1 restarts", ErrorDetails(shards=(3,), maybe_applied=is_in_doubt))
    router.dead_keys[b"c"] = StorageFailed("the disk of leaf-2 is full")
    call = asyncio.create_task(kv.put_many([("a", b"1"), ("b", b"2"), ("c", b"3"), ("d", b"4")], ttl=60, if_absent=True))
    while len(router.requests["BatchWrite"]) < 3:
        await asyncio.sleep(0.001)
    del router.dead_keys[b"b"], router.dead_keys[b"d"]
    results = await call
    assert (results["a"], results["b"]) == (3, 4)
    assert isinstance(results["c"], StorageFailed)
    assert isinstance(results["d"], VersionConflict)
    assert not results["d"].details.maybe_applied
    first, *later = router.requests["BatchWrite"]
    assert {tuple(request.keys) for request in later} == {(b"b", b"d")}
    assert {tuple(request.values) for request in later} == {(b"2", b"4")}
    assert {(len(request.ttl_ms), len(request.conditions)) for request in later} == {(2, 2)}
    assert {request.request_id.number for request in later} == {first.request_id.number}
    assert {(*request.request_id.positions, request.request_id.total) for request in later} == {(1, 3, 4)}
    assert (list(first.request_id.positions), first.request_id.total) == ([], 0)
    assert {request.request_id.is_retry for request in later} == {is_in_doubt}
    assert {request.request_id.watermarks for request in later} == {b"marks" if is_in_doubt else b""}


async def test_what_is_known_of_the_keys_of_a_batch_in_the_end(router: FakeRouter) -> None:
    router.dead_keys[b"b"] = Unavailable("leaf-1 restarts")
    router.dead_keys[b"d"] = Unavailable("the lane broke", ErrorDetails(maybe_applied=True))
    async with Client(router.address, retries=RetryPolicy(max_attempts=3)) as kv:
        call = asyncio.create_task(kv.put_many({"a": b"1", "b": b"2", "d": b"4"}))
        while len(router.requests["BatchWrite"]) < 2:  # The first answer has said that it is in doubt.
            await asyncio.sleep(0.001)
        router.dead_keys[b"d"] = Unavailable("shard 3 is silent")
        results = await call
        assert results["a"] == 1
        assert {key: error.details.maybe_applied for key, error in results.failures.items()} == {"b": False, "d": True}
        assert len(router.requests["BatchWrite"]) == 3
        router.fail("BatchWrite", Internal("a defect"), after=1)
        results = await kv.put_many({"a": b"1", "b": b"2"})
        assert results["a"] == 2
        assert isinstance(results["b"], Internal)


async def test_a_key_that_occurs_twice_has_its_last_result_and_both_outcomes(kv: Client[str]) -> None:
    results = await kv.put_many([("a", b"1"), ("a", b"2")])
    assert results.outcomes == [1, 2]
    assert dict(results) == {"a": 2}


async def test_large_batches_are_cut(kv: Client[str], router: FakeRouter) -> None:
    keys = [f"{n:06}" for n in range(10_001)]
    assert (await kv.put_many((key, b"v") for key in keys)).ok
    assert [len(request.keys) for request in router.requests["BatchWrite"]] == [10_000, 1]
    found = await kv.get_many(keys)
    assert [item.key for item in found] == keys
    assert [len(request.keys) for request in router.requests["BatchGet"]] == [10_000, 1]
    big = b"x" * (8 << 20)
    assert (await kv.put_many([(f"big{n}", big) for n in range(4)])).ok
    assert [len(request.keys) for request in router.requests["BatchWrite"][2:]] == [3, 1]


async def test_what_a_cut_batch_did_is_not_lost_when_its_rest_fails(kv: Client[str], router: FakeRouter) -> None:
    router.fail("BatchWrite", ResourceExhausted("disk full"), after=1)
    results = await kv.put_many([(f"{n:06}", b"v") for n in range(20_001)])
    assert results["009999"] == 10_000
    assert isinstance(results["010000"], ResourceExhausted)
    assert "not sent" in str(results["020000"])
    assert len(results.failures) == 10_001
    assert len(router.requests["BatchWrite"]) == 2


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda kv: kv.put("", b""), "key"),
        (lambda kv: kv.put("k" * 1025, b""), "key"),
        (lambda kv: kv.put("k", bytes((8 << 20) + 1)), "value"),
        (lambda kv: kv.put("k", "text"), "value"),
        (lambda kv: kv.put("k", b"", ttl=0), "ttl"),
        (lambda kv: kv.put("k", b"", if_version=1, if_absent=True), "condition"),
        (lambda kv: kv.put("k", b"", timeout=-1), "timeout"),
        (lambda kv: kv.get("k", consistency="eventual"), "options.consistency"),
        (lambda kv: kv.get_many(["k", ""]), "keys[1]"),
        (lambda kv: kv.collection("c").put("k", ["no", "dict"]), "document"),
        (lambda kv: kv.collection("c").put("k", {"a": object()}), "document"),
        (lambda kv: kv.collection("c").create({"f": "string"}), "schema.f"),
        (lambda kv: kv.collection("c").search("q", limit=-1), "limit"),
        (lambda kv: kv.collection("c").search("q", limit=1001), "limit"),
        (lambda kv: kv.collection("c").search("q", facets="tag"), "facets"),
    ],
)
async def test_wrong_arguments_cost_no_round_trip(kv: Client[str], router: FakeRouter, call, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await call(kv)
    assert refused.value.details.field == field
    assert not router.requests


async def test_a_misspelt_option_is_a_type_error(kv: Client[str]) -> None:
    with pytest.raises(TypeError, match="unknown read option 'time_out'"):
        await kv.get("k", time_out=1)


async def test_read_options_travel(router: FakeRouter) -> None:
    async with Client(router.address, consistency="stale", hedge="10ms") as kv:
        await kv.get("k")
        await kv.get("k", hedge="off", replica_choice="random", min_coverage=0.5, on_shortfall="partial", explain_timing=True)
        await kv.get("k", consistency="strong")
    first, second, third = [request.options for request in router.requests["Get"]]
    assert (first.consistency, first.hedge) == (types_pb2.CONSISTENCY_STALE, "10ms")
    assert (second.hedge, second.replica_choice, second.min_coverage) == ("off", "random", 0.5)
    assert second.on_shortfall == types_pb2.SHORTFALL_POLICY_PARTIAL
    assert second.explain_timing
    assert third.consistency == types_pb2.CONSISTENCY_UNSPECIFIED


async def test_a_collections_own_hedging_is_overridden_only_by_who_says_so(router: FakeRouter) -> None:
    async with Client(router.address) as kv:
        await kv.get("k")
        await kv.get("k", hedge="auto")
        with pytest.raises(InvalidArgument, match="say what to change"):
            await kv.collection("docs").update()
        made = await kv.collection("docs").create(hedge="off", hedge_budget=0.02)
        assert made.hedging == Hedging("off", 0.02)
        updated = await kv.collection("docs").update(hedge="p99", hedge_budget="default", hedge_attempts=2)
        assert updated.hedging == Hedging("p99", None, 2)
        assert [info.hedging for info in await kv.collections()] == [Hedging(), Hedging("p99", None, 2)]
        assert (await kv.status()).tail is None
    assert [request.options.hedge for request in router.requests["Get"]] == ["", "auto"]


async def test_timing_on_request(kv: Client[str]) -> None:
    await kv.put("k", b"v")
    assert (await kv.get("k")).timing is None
    timing = (await kv.get("k", explain_timing=True)).timing
    assert (timing.total_us, timing.legs[0].leaf) == (900, "leaf-2")
    assert [(each.leaf, each.kind, each.began_us, each.outcome) for each in timing.straggler.tries] == [
        ("leaf-1", "first", 0, "cancelled"),
        ("leaf-2", "hedge", 300, "won"),
    ]
    assert (timing.straggler.network_us, timing.straggler.refused) == (180, ("budget",))
    absent, timing = await kv.explain_get("absent")
    assert (absent, timing.total_us) == (None, 900)
    scan = kv.scan(explain_timing=True)
    assert [item.key async for item in scan] == ["k"]
    assert scan.timing == timing


async def test_timing_of_a_batch_that_was_cut(kv: Client[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvshard.client.checks.BATCH_MAX_KEYS", 2)
    found = await kv.get_many(["a", "b", "c"], explain_timing=True)
    assert (found.timing.total_us, found.timing.merge_us, found.timing.before_us, len(found.timing.legs)) == (1800, 20, 400, 2)


async def test_slow_reads(kv: Client[str], router: FakeRouter) -> None:
    (read,) = await kv.slow_reads(1, method="Search")
    assert (read.method, read.collection, read.code, read.at.year) == ("Search", "docs", "DEADLINE_EXCEEDED", 2023)
    assert read.timing.straggler.leaf == "leaf-2"
    with pytest.raises(InvalidArgument):
        await kv.slow_reads(0)


async def test_reads_are_asked_again(kv: Client[str], router: FakeRouter) -> None:
    await kv.put("k", b"v")
    router.fail("Get", Unavailable("starting"), times=2)
    router.fail("Get", grpc.StatusCode.UNAVAILABLE)
    assert (await kv.get("k")).value == b"v"
    assert len(router.requests["Get"]) == 4


async def test_writes_are_asked_again_under_the_same_id(kv: Client[str], router: FakeRouter) -> None:
    router.fail("Put", Unavailable("starting"), times=2)
    router.fail("Put", grpc.StatusCode.UNAVAILABLE)
    router.fail("Put", Unavailable("lost", ErrorDetails(maybe_applied=True)))
    assert await kv.put("k", b"v") == 1
    ids = [request.request_id for request in router.requests["Put"]]
    assert len({(id.client, id.number) for id in ids}) == 1
    assert 1 <= len(ids[0].client) <= 64
    assert [id.is_retry for id in ids] == [False, False, False, True, True]  # Only after an unclear outcome.
    await kv.delete("k")
    await kv.put_many({"a": b"1"})
    later = [router.requests["Delete"][0].request_id, router.requests["BatchWrite"][0].request_id]
    assert [id.number for id in later] == [2, 3]
    assert {id.client for id in later} == {ids[0].client}
    assert not any(id.is_retry for id in later)


async def test_a_repetition_tells_what_was_known_before_the_first_sending(kv: Client[str], router: FakeRouter) -> None:
    router.watermarks = b"first"
    await kv.put("k", b"v")
    router.watermarks = b"second"
    await kv.put("k", b"v")
    router.fail("Put", grpc.StatusCode.UNAVAILABLE)
    await kv.put("k", b"v")
    ids = [request.request_id for request in router.requests["Put"]]
    assert [id.wants_watermarks for id in ids] == [True, False, False, False]  # Now and then is enough.
    assert [id.watermarks for id in ids] == [b"", b"", b"", b"first"]


async def test_no_client_shares_a_name_with_another(router: FakeRouter) -> None:
    for _ in range(2):
        async with Client(router.address) as kv:
            await kv.put("k", b"v")
    assert len({request.request_id.client for request in router.requests["Put"]}) == 2


async def test_the_last_error_tells_that_a_write_may_have_been_done(router: FakeRouter) -> None:
    async with Client(router.address, retries=RetryPolicy(max_attempts=3)) as kv:
        router.fail("Put", Unavailable("lost", ErrorDetails(maybe_applied=True)))
        router.fail("Put", Unavailable("starting"), times=1_000)
        with pytest.raises(Unavailable, match="starting") as caught:
            await kv.put("k", b"v")
        assert caught.value.details.maybe_applied
        router.recover()
        router.fail("Put", grpc.StatusCode.UNAVAILABLE)
        router.fail("Put", Expired("forgotten"))
        with pytest.raises(Expired) as late:
            await kv.put("k", b"v")
        assert late.value.details.maybe_applied
        assert not late.value.is_retryable


async def test_stale_reads_say_what_they_saw(kv: Client[str], router: FakeRouter) -> None:
    await kv.put("k", b"v")
    item = await kv.get("k")
    assert item is not None
    assert item.state is None
    router.state = types_pb2.ReadState(shard=1, seqno=7)
    item = await kv.get("k", consistency="stale")
    assert item is not None
    assert item.state == ReadState(1, 7, None)
    router.state = types_pb2.ReadState(shard=1, seqno=8, age_ms=0)
    assert (await kv.get_many(["k"], consistency="stale")).states == (ReadState(1, 8, 0),)
    async with kv.scan(consistency="stale") as scan:
        assert [item.key async for item in scan] == ["k"]
    assert scan.states == (ReadState(1, 8, 0),)


async def test_retries_can_be_turned_off(router: FakeRouter) -> None:
    router.fail("Get", Unavailable("starting"))
    async with Client(router.address, retries=NO_RETRIES) as kv:
        with pytest.raises(Unavailable):
            await kv.get("k")


async def test_the_timeout_covers_all_attempts(router: FakeRouter) -> None:
    router.hold("Get")
    async with Client(router.address) as kv:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await kv.get("k", timeout=0.2)
        assert time.monotonic() - began < 1.0
        router.release("Get")
        router.hold("Put")
        with pytest.raises(DeadlineExceeded) as late:
            await kv.put("k", b"v", timeout=0.1)
        assert late.value.details.maybe_applied


async def test_a_read_whose_repetition_is_cut_off_tells_why_there_was_one(router: FakeRouter) -> None:
    retries = RetryPolicy(base_delay_s=0.2)
    async with Client(router.address, timeout=0.5, retries=retries) as kv:
        reads = (("Get", lambda: kv.get("a")), ("BatchGet", lambda: kv.get_many(["a"])), ("ListCollections", kv.collections))
        for method, read in reads:
            router.fail(method, Unavailable("2 of 8 shards did not answer"))
            call = asyncio.create_task(read())
            while not router.requests[method]:
                await asyncio.sleep(0.001)
            router.hold(method)  # For the second one, which comes after a tenth of a second at the earliest.
            with pytest.raises(Unavailable, match="2 of 8 shards"):
                await call
            assert len(router.requests[method]) == 2


async def test_an_unreachable_router_is_unavailable_and_a_write_to_it_was_not_done() -> None:
    async with Client("127.0.0.1:1", timeout=0.3) as kv:
        with pytest.raises(Unavailable):
            await kv.get("k")
        with pytest.raises(Unavailable) as refused:
            await kv.put("k", b"v")
        assert not refused.value.details.maybe_applied


async def test_another_router_is_asked_when_one_is_down(router: FakeRouter) -> None:
    async with Client(["127.0.0.1:1", router.address]) as kv:
        await kv.put("k", b"v")
        assert (await kv.get("k")).value == b"v"


async def call_beside(router: FakeRouter, call: Coroutine[Any, Any, T], method: str, calls: int) -> asyncio.Task[T]:
    """Begin a call and let it arrive, so that the next one does not share its frame."""
    task = asyncio.create_task(call)
    while len(router.requests[method]) < calls:
        await asyncio.sleep(0.005)
    return task


async def test_calls_that_fail_together_all_turn_to_the_next_router(router: FakeRouter, has_lanes: bool) -> None:
    with FakeRouter(has_lanes=has_lanes) as other:
        other.put(b"k", b"v")
        router.hold("Get")
        router.fail("Get", grpc.StatusCode.UNAVAILABLE, times=100)
        async with Client([router.address, other.address]) as kv:
            calls = [await call_beside(router, kv.get("k"), "Get", number + 1) for number in range(2)]
            router.release("Get")
            assert [item.value for item in await asyncio.gather(*calls)] == [b"v", b"v"]
    assert (len(router.requests["Get"]), len(other.requests["Get"])) == (2, 2)


async def test_a_client_closed_before_a_write_in_doubt_is_repeated_says_that_it_is(router: FakeRouter) -> None:
    router.fail("Put", grpc.StatusCode.UNAVAILABLE)
    kv = Client([router.address, router.address], retries=RetryPolicy(base_delay_s=0.4, max_delay_s=0.4))
    call = asyncio.create_task(kv.put("k", b"v"))
    while kv._connection.current == 0:  # Until the first sending has failed.
        await asyncio.sleep(0.001)
    await kv.close()
    with pytest.raises(KvShardError, match="closed") as closed:
        await call
    assert closed.value.details.maybe_applied
    assert len(router.requests["Put"]) == 1


def test_processes_that_were_forked_with_a_client_write_under_ids_of_their_own(router: FakeRouter) -> None:
    """Else the shards take the writes of one worker for repetitions of another's, and acknowledge what they do not do."""
    program = """if True:
        import asyncio, os, sys
        from kvshard import Client

        kv = Client(sys.argv[1])  # As a web application makes it before its server forks the workers.

        async def work(worker):
            async with kv:
                await kv.put(f"worker-{worker}", b"v")

        for worker in range(2):
            if os.fork() == 0:
                asyncio.run(work(worker))
                os._exit(0)
        for worker in range(2):
            assert os.wait()[1] == 0
    """
    subprocess.run([sys.executable, "-c", program, router.address], check=True, timeout=30)
    ids = [(request.request_id.client, request.request_id.number) for request in router.requests["Put"]]
    assert len(ids) == len(set(ids)) == 2


async def test_a_cancelled_call_is_cancelled_and_a_closed_client_says_so(router: FakeRouter) -> None:
    router.hold("Get")
    kv = Client(router.address)
    call = await call_beside(router, kv.get("k"), "Get", 1)
    other = await call_beside(router, kv.get("k"), "Get", 2)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await kv.close()
    await kv.close()
    with pytest.raises(Cancelled, match="client was closed"):
        await other
    with pytest.raises(FailedPrecondition, match="closed"):
        await kv.get("k")


def test_an_address_without_a_port_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="host:port"):
        Client("localhost")


async def fill(router: FakeRouter, count: int = 10) -> list[str]:
    for n in range(count):
        router.put(b"k%02d" % n, b"v%d" % n)
    return [f"k{n:02}" for n in range(count)]


async def test_scan(kv: Client[str], router: FakeRouter) -> None:
    keys = await fill(router)
    scan = kv.scan()
    assert scan.token == b""
    assert [item.key async for item in scan] == keys
    assert scan.coverage.complete
    assert scan.token == b""
    assert [item.value async for item in kv.scan(start="k03", end="k05")] == [b"v3", b"v4"]
    assert [(item.key, item.value) async for item in kv.scan(prefix="k0", limit=2, keys_only=True)] == [
        ("k00", b""),
        ("k01", b""),
    ]
    assert [item async for item in kv.scan(prefix="nothing")] == []
    with pytest.raises(InvalidArgument):
        kv.scan(limit=0)


@pytest.mark.parametrize("step", range(1, 10))
async def test_a_scan_resumes_behind_any_item(kv: Client[str], router: FakeRouter, step: int) -> None:
    keys, seen, token = await fill(router), [], None
    while token or not seen:
        async with kv.scan(start="a", resume=token) as scan:
            for _ in range(step):
                if item := await anext(scan, None):
                    seen.append(item.key)
            token = scan.token
    assert seen == keys


async def test_a_scan_broken_in_its_first_chunk_and_again_later(kv: Client[str], router: FakeRouter) -> None:
    keys = await fill(router, 12)
    async with kv.scan() as scan:
        seen = [(await anext(scan)).key for _ in range(2)]
    router.fail("Scan.chunk", grpc.StatusCode.UNAVAILABLE, after=1)
    assert seen + [item.key async for item in kv.scan(resume=scan.token)] == keys


async def test_a_scan_in_pages(kv: Client[str], router: FakeRouter) -> None:
    keys, pages, token = await fill(router), [], None
    while True:
        scan = kv.scan(limit=4, resume=token)
        pages.append([item.key async for item in scan])
        token = scan.token
        if not token:
            break
    assert pages == [keys[:4], keys[4:8], keys[8:]]


async def test_a_token_that_was_altered_or_belongs_elsewhere_is_refused(kv: Client[str], router: FakeRouter) -> None:
    await fill(router)
    scan = kv.scan(limit=2)
    assert len([item async for item in scan]) == 2
    token = scan.token
    for wrong in (token[:-2], b"A" + token[1:], b"?", b"AAAA", token[:-1] + bytes([token[-1] ^ 1])):
        with pytest.raises(InvalidToken):
            kv.scan(resume=wrong)
    with pytest.raises(InvalidToken):
        kv.scan(prefix="k", resume=token)


async def test_a_scan_goes_on_over_a_broken_stream(kv: Client[str], router: FakeRouter) -> None:
    keys = await fill(router)
    router.fail("Scan", Unavailable("starting"))
    router.fail("Scan.chunk", grpc.StatusCode.UNAVAILABLE, after=1)
    router.fail("Scan.chunk", grpc.StatusCode.DEADLINE_EXCEEDED)
    assert [item.key async for item in kv.scan()] == keys
    assert len(router.requests["Scan"]) == 4


async def test_a_scan_without_progress_fails_in_time(kv: Client[str], router: FakeRouter) -> None:
    await fill(router)
    router.hold("Scan.chunk")
    scan = kv.scan(timeout=0.2)
    assert [(await anext(scan)).key for _ in range(3)] == ["k00", "k01", "k02"]
    router.hold("Scan")
    with pytest.raises(DeadlineExceeded):
        await anext(scan)
    assert len(router.requests["Scan"]) == 2


async def test_a_scan_of_an_unknown_collection(kv: Client[str]) -> None:
    with pytest.raises(CollectionNotFound):
        [item async for item in kv.collection("none").scan()]


async def test_documents(kv: Client[str], router: FakeRouter) -> None:
    docs = kv.collection("docs")
    made = await docs.create(schema={"title": "text", "year": "integer"})
    assert (made.name, dict(made.schema)) == ("docs", {"title": "text", "year": "integer"})
    await docs.create(schema={"title": "text", "year": "integer"})
    with pytest.raises(CollectionExists):
        await docs.create(schema={"title": "keyword"})
    await docs.put("d1", {"title": "Tail latency", "year": 2013})
    assert (await docs.get("d1")).value == {"title": "Tail latency", "year": 2013}
    assert (await docs.raw.get("d1")).value == b'{"title":"Tail latency","year":2013}'
    with pytest.raises(InvalidArgument) as refused:
        await docs.put("d2", {"year": "soon"})
    assert refused.value.details.field == "document.year"
    results = await docs.put_many({"d2": {"year": "soon"}, "d3": {"year": 1}})
    assert list(results.failures) == ["d2"]
    assert [item.value async for item in docs.scan(keys_only=True)] == [{}, {}]
    assert [info.name for info in await kv.collections()] == ["default", "docs"]
    await docs.drop()
    with pytest.raises(CollectionNotFound):
        await docs.get("d1")


async def test_a_value_that_is_no_document(kv: Client[str], router: FakeRouter) -> None:
    router.put(b"k", b"plain")
    with pytest.raises(FailedPrecondition, match=r"\.raw"):
        await kv.collection("default").get("k")


async def test_search(kv: Client[str], router: FakeRouter) -> None:
    docs = kv.collection("docs")
    await docs.create(schema={"title": "text", "tag": "keyword"})
    await docs.put_many({f"d{n}": {"title": "tail " * (n + 1), "tag": "odd" if n % 2 else "even"} for n in range(5)})
    page = await docs.search("tail", limit=3, facets=["tag"], highlight=["title"], filters=["tag"], explain_timing=True)
    assert [hit.key for hit in page.hits] == ["d4", "d3", "d2"]
    assert page.hits[0].document == {"title": "tail " * 5, "tag": "even"}
    assert page.hits[0].highlights[0].spans == ((0, 4),)
    assert page.total == 5
    assert page.complete
    assert page.coverage.fraction == 1.0
    assert [(value.value, value.count) for value in page.facets["tag"].values] == [("even", 3), ("odd", 2)]
    assert page.facets["tag"]["even"] == 3
    with pytest.raises(KeyError):
        page.facets["tag"]["prime"]
    assert page.timing.straggler_shard == 1
    last = await docs.search("tail", limit=3, facets=["tag"], highlight=["title"], filters=["tag"], next=page.next)
    assert [hit.key for hit in last.hits] == ["d1", "d0"]
    assert last.next == b""
    keys = await docs.search("tail", keys_only=True)
    assert keys.hits[0].document is None


async def test_search_errors(kv: Client[str], router: FakeRouter) -> None:
    docs = kv.collection("docs")
    with pytest.raises(CollectionNotFound):
        await docs.search("x")
    await docs.create({"title": "text"})
    with pytest.raises(MalformedQuery) as refused:
        await docs.search("title:(a")
    assert refused.value.details.position == 6


async def test_partial_answers_say_what_is_missing(kv: Client[str], router: FakeRouter) -> None:
    docs = kv.collection("docs")
    await docs.create({"title": "text"})
    router.coverage = types_pb2.Coverage(
        complete=False, documents_considered=3, documents_total=4, fraction=0.75, legs=2, legs_ok=1
    )
    router.coverage.failed.add(shard=1, replicas_tried=["leaf-2"]).failure.reason = "UNAVAILABLE"
    page = await docs.search("x", on_shortfall="partial")
    assert not page.complete
    (failed,) = page.coverage.failed
    assert failed.shard == 1
    assert isinstance(failed.error, Unavailable)
    assert failed.error.details.replicas_tried == ("leaf-2",)


async def test_map_and_status(kv: Client[str], router: FakeRouter) -> None:
    router.put(b"a", b"123")
    router.down_leaves.add("leaf-2")
    cluster_map = await kv.map()
    assert (cluster_map.version, sorted(cluster_map.shards)) == (9, [0, 1])
    status = await kv.status()
    up, down = status.leaves
    assert (up.is_up, up.report.pid, down.is_up, down.error) == (True, 4242, False, "cannot be reached")
    assert (status.documents(), status.bytes(), status.documents(collection_id=77)) == (1, 3, 0)
    assert status.primary_replica(1) is None


async def test_every_error_is_one_of_ours(kv: Client[str], router: FakeRouter, has_lanes: bool) -> None:
    if has_lanes:
        pytest.skip("what gRPC itself says ends a whole lane, and the call is made again")
    for code in (
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
    ):
        router.fail("Get", code)
        with pytest.raises(KvShardError):
            await kv.get("k")
