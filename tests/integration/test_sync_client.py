"""The synchronous client against a fake router on a real port: from threads, beside event loops, interrupted, closed."""

import asyncio
import contextlib
import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from fakes.router_service import FakeRouter

from kvshard import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    InvalidToken,
    KvShardError,
    VersionConflict,
)
from kvshard import Client as AsyncClient
from kvshard.errors import Unavailable
from kvshard.lane_messages import KeysRead
from kvshard.sync import Client
from kvshard.sync import scan as scan_module
from kvshard.sync.loop_thread import Call
from kvshard.sync.process import this_process
from kvshard.v1 import types_pb2

KEYS = [f"key-{number:02}" for number in range(20)]


@pytest.fixture(scope="module", autouse=True)
def rest() -> Iterator[None]:
    """Leave no second event loop with gRPC behind, which other tests would share its events with."""
    yield
    this_process().rest()
    assert this_process().thread is None


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    with FakeRouter(has_lanes=True) as fake:
        yield fake


@pytest.fixture
def kv(router: FakeRouter) -> Iterator[Client[str]]:
    with Client(router.address) as client:
        yield client


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.002)


def tasks_under_way() -> int:
    """Calls and scans on the loop of the synchronous clients; this question left out."""
    thread = this_process().thread
    assert thread is not None

    async def count() -> int:
        names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
        return sum(name in ("_as_coroutine", "Feed._read") for name in names) - 1

    return thread.run(count)


def test_operations(kv: Client[str]) -> None:
    version = kv.put("user:1", b"ada", ttl=60)
    item = kv.get("user:1")
    assert item is not None
    assert (item.key, item.value, item.version) == ("user:1", b"ada", version)
    assert kv.get("user:2") is None
    item, timing = kv.explain_get("user:1")
    assert item is not None
    assert timing.legs
    with pytest.raises(VersionConflict) as conflict:
        kv.put("user:1", b"eve", if_absent=True)
    assert conflict.value.details.current_version == version
    assert kv.delete("user:1", if_version=version) is True
    assert kv.delete("user:1") is False


def test_batches(kv: Client[str]) -> None:
    assert kv.put_many({"a": b"1", "b": b"2"}).ok
    assert kv.put_many([("c", b"3")]).ok
    found = kv.get_many(["c", "nothing", "a"])
    assert [item and item.value for item in found] == [b"3", None, b"1"]
    assert found.coverage.complete
    assert dict(kv.delete_many(["a", "nothing"])) == {"a": True, "nothing": False}


def test_what_the_program_brings_runs_in_its_own_thread(kv: Client[str]) -> None:
    """A database of the program belongs to its thread, and one that calls the client itself would wait for itself."""

    def keys() -> Iterator[str]:
        for key in ("a", "b"):
            assert threading.current_thread() is threading.main_thread()
            kv.put(key, key.encode())
            yield key

    assert [item and item.value for item in kv.get_many(keys())] == [b"a", b"b"]
    assert kv.put_many((key, b"again") for key in keys()).ok
    assert dict(kv.delete_many(keys())) == {"a": True, "b": True}


def test_documents_and_search(kv: Client[str]) -> None:
    docs = kv.collection("docs")
    assert docs.create({"title": "text", "tag": "keyword"}).name == docs.name == "docs"
    docs.put("d1", {"title": "tail latency", "tag": "x"})
    item = docs.get("d1")
    assert item is not None
    assert item.value == {"title": "tail latency", "tag": "x"}
    raw = docs.raw.get("d1")
    assert raw is not None
    assert b"tail latency" in raw.value
    assert [hit.key for hit in docs.search("tail", limit=5).hits] == ["d1"]
    assert [item.value for item in docs.scan()] == [{"title": "tail latency", "tag": "x"}]
    assert [item.value for item in docs.scan(keys_only=True)] == [{}]
    assert [item.value for item in docs.raw.scan()] == [raw.value]
    assert {each.name for each in kv.collections()} == {"default", "docs"}
    docs.update(hedge="off")
    docs.drop()
    with pytest.raises(KvShardError, match="docs"):
        docs.get("d1")


def test_what_looks_after_a_cluster(kv: Client[str], router: FakeRouter) -> None:
    assert len(kv.status().leaves) == len(kv.map().leaves) == 2
    assert len(kv.slow_reads(2)) == 2
    assert kv.drain_leaf("leaf-1").is_draining
    kv.inject_fault("delay", leaves=["leaf-1"], delay=0.01)
    assert len(kv.list_faults().faults) == 1
    assert kv.clear_faults().cleared == 1


def test_keys_as_bytes(router: FakeRouter) -> None:
    router.put(b"\xff", b"no text")
    with Client([router.address], keys=bytes) as kv:
        assert [item.key for item in kv.scan()] == [b"\xff"]


def test_wrong_arguments_are_refused_at_once(router: FakeRouter) -> None:
    with pytest.raises(InvalidArgument, match="address"):
        Client("nowhere")
    with pytest.raises(InvalidArgument, match="timeout"):
        Client(router.address, timeout=-1)
    with Client(router.address) as kv:
        with pytest.raises(InvalidArgument, match="limit"):
            kv.scan(limit=0)
        with pytest.raises(InvalidToken):
            kv.scan(resume=b"made up")
        with pytest.raises(InvalidArgument):
            kv.get("")
        with pytest.raises(TypeError):
            kv.get("k", unknown=1)  # type: ignore[call-arg]


def test_a_timeout_ends_a_call(kv: Client[str], router: FakeRouter) -> None:
    router.hold("ListCollections")
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        kv.collections(timeout=0.2)
    assert 0.15 < time.monotonic() - began < 5
    assert tasks_under_way() == 0


def test_an_error_does_not_keep_its_call_alive(kv: Client[str]) -> None:
    """Error, traceback, frame, call: a cycle of them would wait for the garbage collector with everything in its frames."""
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(InvalidArgument):
            kv.get("")
        until(lambda: not [each for each in gc.get_objects() if isinstance(each, Call)])
    finally:
        gc.enable()


# Scans.


def filled(router: FakeRouter) -> None:
    for key in KEYS:
        router.put(key.encode(), key.encode())


@pytest.mark.parametrize("batch", [1, 2, 7, 1_000])
def test_a_scan_can_be_resumed_behind_every_item(
    kv: Client[str], router: FakeRouter, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(scan_module, "BATCH_ITEMS", batch)
    filled(router)
    for count in range(len(KEYS) + 1):
        scan = kv.scan(prefix="key-")
        assert [next(scan).key for _ in range(count)] == KEYS[:count]
        token = scan.token
        scan.close()
        assert scan.token == token
        assert [item.key for item in kv.scan(prefix="key-", resume=token or None)] == (KEYS[count:] if token else KEYS)
        assert bool(token) or count in (0, len(KEYS))


def test_a_page_of_a_scan_ends_with_the_token_of_the_next(kv: Client[str], router: FakeRouter) -> None:
    filled(router)
    token, pages = b"", []
    for _ in range(3):
        page = kv.scan(limit=8, resume=token or None)
        pages.append([item.key for item in page])
        token = page.token
    assert pages == [KEYS[:8], KEYS[8:16], KEYS[16:]]
    assert token == b""


def test_items_of_a_scan_are_taken_page_by_page(kv: Client[str], router: FakeRouter) -> None:
    filled(router)
    with kv.scan(prefix="key-") as scan:
        pages = [[item.key for item in scan.take(8)] for _ in range(4)]
    assert pages == [KEYS[:8], KEYS[8:16], KEYS[16:], []]


def test_what_a_scan_tells_at_its_end(kv: Client[str], router: FakeRouter) -> None:
    filled(router)
    router.state = types_pb2.ReadState(shard=1, seqno=5, age_ms=7)
    scan = kv.scan(consistency="stale", explain_timing=True)
    next(scan)
    assert (scan.coverage, scan.states, scan.timing) == (None, (), None)
    assert len(list(scan)) == len(KEYS) - 1
    assert scan.coverage is not None
    assert scan.coverage.complete
    assert [(state.shard, state.seqno) for state in scan.states] == [(1, 5)]
    assert scan.timing is not None
    assert list(scan) == []


def test_an_incomplete_scan_says_so_also_by_its_tokens(kv: Client[str], router: FakeRouter) -> None:
    filled(router)
    router.coverage = types_pb2.Coverage(documents_considered=3, documents_total=4, fraction=0.75, legs=2, legs_ok=1)
    scan = kv.scan(on_shortfall="partial")
    for _ in range(len(KEYS) - 1):
        next(scan)
    token = scan.token
    list(scan)
    assert scan.coverage is not None
    assert not scan.coverage.complete
    router.coverage = types_pb2.Coverage(complete=True, documents_considered=1, documents_total=1, fraction=1.0)
    rest = kv.scan(on_shortfall="partial", resume=token)
    assert [item.key for item in rest] == KEYS[-1:]
    assert rest.coverage is not None
    assert not rest.coverage.complete, "what was missing before the token is missing still"


def test_a_scan_survives_the_loss_of_its_stream(kv: Client[str], router: FakeRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "BATCH_ITEMS", 2)
    filled(router)
    router.fail("Scan", Unavailable("gone"))
    assert [item.key for item in kv.scan()] == KEYS


def test_a_scan_that_is_left_is_given_up(kv: Client[str], router: FakeRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "BATCH_ITEMS", 2)
    filled(router)
    with kv.scan() as scan:
        next(scan)
        assert tasks_under_way() == 1
    assert tasks_under_way() == 0
    assert list(scan) == []
    for item in kv.scan():
        assert item.key == KEYS[0]
        break
    gc.collect()
    until(lambda: tasks_under_way() == 0)


# Threads and event loops.


def test_threads_share_a_client(kv: Client[str]) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                key, value = f"t{number}-{turn}", b"%d" % turn
                kv.put(key, value)
                item = kv.get(key)
                assert item is not None
                assert item.value == value
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_calls_of_several_threads_travel_together(kv: Client[str], router: FakeRouter) -> None:
    """What comes while the loop is busy begins in one pass of it, and the batcher makes one frame of that."""
    keys = {f"k{number}": b"%d" % number for number in range(8)}
    kv.put_many(keys).raise_for_failures()
    loop_thread = this_process().thread
    assert loop_thread is not None
    busy, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        go_on.wait(10)

    loop_thread.post(hold)
    assert busy.wait(10)
    router.frames.clear()
    found: dict[str, bytes] = {}

    def get(key: str) -> None:
        item = kv.get(key)
        assert item is not None
        found[key] = item.value

    threads = [threading.Thread(target=get, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    until(lambda: len(loop_thread._calls) == len(keys))
    go_on.set()
    for thread in threads:
        thread.join()
    assert found == keys
    (frame,) = router.frames
    assert isinstance(frame, KeysRead)
    assert (len(frame.keys), frame.is_each_alone) == (8, True)


async def test_inside_an_event_loop_it_refuses_with_advice(router: FakeRouter) -> None:
    kv = Client(router.address)
    with pytest.raises(FailedPrecondition, match=r"use kvshard\.Client with await"):
        kv.get("k")
    await asyncio.to_thread(kv.put, "k", b"v")
    await asyncio.to_thread(kv.close)


async def test_a_notebook_may_block_its_event_loop(router: FakeRouter) -> None:
    with Client(router.address, may_block_event_loop=True) as kv:
        kv.put("k", b"v")
        assert [item.key for item in kv.scan()] == ["k"]


async def test_both_clients_in_one_process(router: FakeRouter, caplog: pytest.LogCaptureFixture) -> None:
    """gRPC wakes both loops for every event, and the one that finds nothing must not fill the log with errors."""
    with Client(router.address, may_block_event_loop=True) as blocking:
        async with AsyncClient(router.address) as kv:
            for number in range(50):
                await kv.put(f"k{number}", b"v")
                assert await asyncio.to_thread(blocking.get, f"k{number}")
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_from_its_own_loop_it_refuses_to_wait_for_itself(router: FakeRouter) -> None:
    with Client(router.address, may_block_event_loop=True) as kv:
        kv.put("k", b"v")
        thread = this_process().thread
        assert thread is not None

        async def call_back() -> None:
            kv.get("k")

        with pytest.raises(FailedPrecondition, match="its own event loop"):
            thread.run(call_back)


# Ends.


def interrupt_when(condition: Callable[[], bool]) -> threading.Thread:
    """Ctrl-C in the main thread, as soon as this holds."""

    def wait() -> None:
        until(condition)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("ListCollections", lambda kv: kv.collections()),
        ("Get", lambda kv: kv.get("held")),
        ("Put", lambda kv: kv.put("held", b"v")),
        ("BatchGet", lambda kv: kv.get_many(["held", "k"])),
    ],
    ids=["collections", "get", "put", "get_many"],
)
def test_an_interrupt_takes_the_call_back(
    kv: Client[str], router: FakeRouter, method: str, call: Callable[[Client[str]], object]
) -> None:
    kv.put("k", b"v")
    kv.get("k")
    router.hold(method)
    asked = len(router.requests[method])
    thread = interrupt_when(lambda: len(router.requests[method]) > asked)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        call(kv)
    thread.join()
    assert time.monotonic() - began < 4, "the interrupted caller waited for more than the end of its call"
    assert tasks_under_way() == 0
    until(lambda: "frames=1" not in repr(kv._source._client._connection.keys))
    assert this_process().entered == 0
    router.release(method)
    assert kv.get("k") is not None


def test_reads_that_tell_something_of_their_own(router: FakeRouter) -> None:
    router.put(b"k", b"v")
    router.state.shard, router.state.seqno = 0, 7
    with Client(router.address, consistency="stale") as kv:
        item = kv.get("k")
        assert item is not None
        assert item.state is not None
        assert item.state.seqno == 7
        assert kv.get("nothing") is None


def test_an_interrupted_scan_goes_on(kv: Client[str], router: FakeRouter) -> None:
    filled(router)
    router.hold("Scan")
    scan = kv.scan()
    thread = interrupt_when(lambda: bool(router.requests["Scan"]))
    with pytest.raises(KeyboardInterrupt):
        next(scan)
    thread.join()
    router.release("Scan")
    assert [item.key for item in scan] == KEYS


def test_a_close_ends_calls_of_other_threads(router: FakeRouter) -> None:
    kv = Client(router.address)
    router.hold("ListCollections")
    outcomes: list[BaseException] = []

    def call() -> None:
        try:
            kv.collections()
        except BaseException as error:
            outcomes.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    until(lambda: bool(router.requests["ListCollections"]))
    kv.close()
    thread.join(10)
    assert [type(error) for error in outcomes] == [Cancelled]
    kv.close()
    with pytest.raises(FailedPrecondition, match="closed"):
        kv.get("k")


def test_a_client_that_was_closed_before_its_first_call(router: FakeRouter) -> None:
    kv = Client(router.address)
    kv.close()
    with pytest.raises(FailedPrecondition, match="closed"):
        kv.get("k")


def test_a_client_that_is_dropped_is_closed(router: FakeRouter) -> None:
    docs = Client(router.address).collection("docs")
    docs.create({"title": "text"})
    docs.put("d", {"title": "its client is gone, and its collection still works"})
    thread = this_process().thread
    assert thread is not None
    residents = len(thread._residents)
    del docs
    gc.collect()
    until(lambda: len(thread._residents) == residents - 1)
    until(lambda: tasks_under_way() == 0)
