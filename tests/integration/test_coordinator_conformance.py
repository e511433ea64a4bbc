"""What every coordinator must do; each implementation runs all of it: embedded, a real etcd, and the fake of other tests."""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from fakes.clock import ManualClock
from fakes.coordinator import MemoryCoordinator, MemoryStore
from harness.etcd import EtcdServer

from kvshard.clock import SystemClock
from kvshard.coordination.base import (
    ABSENT,
    TXN_OPERATIONS_MAX,
    Compare,
    Coordinator,
    CoordinatorUnavailable,
    Delete,
    Event,
    HistoryCompacted,
    KeyValue,
    LeaseExpired,
    Put,
)
from kvshard.coordination.connect import connect
from kvshard.coordination.embedded import EmbeddedCoordinator

HISTORY = 20
WAIT_S = 10


class World:
    """A store that handles can be opened on, and its clock. origin: the revision it begins with."""

    origin = 0
    lease_s = 10.0

    def __init__(self, open_handle: Callable[[], Coordinator], clock: ManualClock) -> None:
        self._open_handle = open_handle
        self.clock = clock
        self.handles: list[Coordinator] = []

    def open(self) -> Coordinator:
        self.handles.append(self._open_handle())
        return self.handles[-1]

    def trim(self) -> None:
        """Keep HISTORY revisions: these stores do so by themselves."""

    async def live(self, share: float) -> None:
        """Let this share of a lease's length pass."""
        self.clock.advance(share * self.lease_s)

    async def outlive(self, store: Coordinator, key: str) -> None:
        """Let so much time pass that the lease of a key has ended."""
        await self.live(1)


class EtcdWorld(World):
    """A corner of a real etcd, whose leases live on real time and end a little late."""

    lease_s = 2.0

    def __init__(self, server: EtcdServer, corner: str) -> None:
        super().__init__(lambda: connect(server.url(corner), SystemClock()), ManualClock())
        self._server = server
        self.origin = server.revision()

    def trim(self) -> None:
        self._server.compact(self._server.revision() - HISTORY)

    async def live(self, share: float) -> None:
        await asyncio.sleep(min(share, 0.6) * self.lease_s)

    async def outlive(self, store: Coordinator, key: str) -> None:
        async with asyncio.timeout(WAIT_S):
            while await store.get(key) is not None:
                await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    server = EtcdServer(tmp_path_factory.mktemp("etcd"))
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(params=["embedded", "memory", "etcd"])
async def world(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> AsyncIterator[World]:
    clock = ManualClock()
    memory = MemoryStore(clock, HISTORY)
    worlds: dict[str, Callable[[], World]] = {
        "embedded": lambda: World(lambda: EmbeddedCoordinator(tmp_path / "c.db", clock, HISTORY), clock),
        "memory": lambda: World(lambda: MemoryCoordinator(memory), clock),
        "etcd": lambda: EtcdWorld(request.getfixturevalue("etcd"), tmp_path.name),
    }
    world = worlds[request.param]()
    yield world
    for handle in world.handles:
        await handle.close()


@pytest.fixture
def store(world: World) -> Coordinator:
    return world.open()


async def put(store: Coordinator, key: str, value: bytes = b"", lease: int | None = None) -> int:
    result = await store.txn([], [Put(key, value, lease)])
    assert result.has_succeeded
    return result.revision


class Watch:
    """A watch that a task drains from now on."""

    def __init__(self, store: Coordinator, prefix: str, after: int) -> None:
        self._batches: asyncio.Queue[list[Event] | Exception] = asyncio.Queue()
        self._task = asyncio.create_task(self._drain(store.watch(prefix, after)))

    async def _drain(self, watch: AsyncIterator[list[Event]]) -> None:
        try:
            async for events in watch:
                self._batches.put_nowait(events)
        except (HistoryCompacted, CoordinatorUnavailable) as error:
            self._batches.put_nowait(error)

    async def next(self) -> list[Event]:
        batch = await asyncio.wait_for(self._batches.get(), WAIT_S)
        if isinstance(batch, Exception):
            raise batch
        return batch

    async def take(self, count: int) -> list[Event]:
        events: list[Event] = []
        while len(events) < count:
            events += await self.next()
        return events

    async def end(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


async def test_empty_store(world: World, store: Coordinator) -> None:
    assert await store.get("a") is None
    snapshot = await store.get_prefix("")
    assert (snapshot.revision, snapshot.items) == (world.origin, ())


async def test_put_get_delete(store: Coordinator) -> None:
    first = await put(store, "a", b"\x00\xff")
    assert await store.get("a") == KeyValue("a", b"\x00\xff", first)
    second = await put(store, "a", b"2")
    assert second == first + 1
    assert await store.get("a") == KeyValue("a", b"2", second)
    result = await store.txn([], [Delete("a")])
    assert (result.has_succeeded, result.revision) == (True, second + 1)
    assert await store.get("a") is None


async def test_one_transaction_has_one_revision(store: Coordinator) -> None:
    before = await put(store, "c", b"old")
    result = await store.txn([], [Put("b", b"1"), Delete("c"), Put("a", b"2")])
    assert result.revision == before + 1
    snapshot = await store.get_prefix("")
    assert snapshot.items == (KeyValue("a", b"2", result.revision), KeyValue("b", b"1", result.revision))
    assert snapshot.revision == result.revision


async def test_writes_happen_only_if_every_compare_holds(store: Coordinator) -> None:
    revision = await put(store, "a", b"1")
    failed = await store.txn([Compare("a", revision), Compare("b", revision)], [Put("a", b"2"), Put("b", b"2")])
    assert (failed.has_succeeded, failed.revision) == (False, revision)
    assert await store.get("a") == KeyValue("a", b"1", revision)
    assert await store.get("b") is None
    made = await store.txn([Compare("a", revision), Compare("b", ABSENT)], [Put("a", b"2"), Put("b", b"2")])
    assert (made.has_succeeded, made.revision) == (True, revision + 1)
    stale = await store.txn([Compare("a", revision)], [Put("a", b"3")])
    assert not stale.has_succeeded


async def test_a_deleted_key_compares_as_absent(store: Coordinator) -> None:
    await put(store, "a")
    await store.txn([], [Delete("a")])
    assert (await store.txn([Compare("a", ABSENT)], [Put("a", b"")])).has_succeeded


async def test_a_transaction_that_changes_nothing_takes_no_revision(store: Coordinator) -> None:
    revision = await put(store, "a")
    assert (await store.txn([], [Delete("b")])).revision == revision
    assert (await store.txn([Compare("a", revision)], [])).has_succeeded
    assert not (await store.txn([Compare("a", revision + 1)], [])).has_succeeded
    assert (await store.get_prefix("")).revision == revision


async def test_a_key_written_twice_is_refused(world: World, store: Coordinator) -> None:
    with pytest.raises(ValueError, match="twice"):
        await store.txn([], [Put("a", b""), Delete("a")])
    assert (await store.get_prefix("")).revision == world.origin


async def test_a_transaction_has_a_bound(store: Coordinator) -> None:
    keys = [f"k{number}" for number in range(TXN_OPERATIONS_MAX + 1)]
    with pytest.raises(ValueError, match="at most 128"):
        await store.txn([], [Put(key, b"") for key in keys])
    with pytest.raises(ValueError, match="at most 128"):
        await store.txn([Compare(key, ABSENT) for key in keys], [])
    longest = [Compare(key, ABSENT) for key in keys[1:]], [Put(key, b"") for key in keys[1:]]
    assert (await store.txn(*longest)).has_succeeded
    assert not (await store.txn(*longest)).has_succeeded


async def test_prefixes_are_not_patterns(store: Coordinator) -> None:
    for key in ("m/a", "m/b", "m", "m%", "m0", "n/a", "M/a", "m/\U0010ffff", "m/ä"):
        await put(store, key)
    assert [item.key for item in (await store.get_prefix("m/")).items] == ["m/a", "m/b", "m/ä", "m/\U0010ffff"]
    assert [item.key for item in (await store.get_prefix("m%")).items] == ["m%"]
    assert len((await store.get_prefix("")).items) == 9


async def test_handles_share_the_store(world: World) -> None:
    one, other = world.open(), world.open()
    revision = await put(one, "a", b"1")
    assert await other.get("a") == KeyValue("a", b"1", revision)
    assert (await other.txn([Compare("a", revision)], [Put("a", b"2")])).revision == revision + 1
    assert not (await one.txn([Compare("a", revision)], [Put("a", b"3")])).has_succeeded


async def test_racing_increments_are_all_counted(world: World) -> None:
    handles = [world.open(), world.open(), world.open()]

    async def increment(store: Coordinator) -> None:
        while True:
            item = await store.get("n")
            number = int(item.value) if item else 0
            compare = Compare("n", item.revision if item else ABSENT)
            if (await store.txn([compare], [Put("n", b"%d" % (number + 1))])).has_succeeded:
                return

    await asyncio.gather(*(increment(store) for store in handles for _ in range(4)))
    item = await handles[0].get("n")
    assert item is not None
    assert item.value == b"12"


async def test_watch_sees_every_change_in_order(world: World) -> None:
    writer, reader = world.open(), world.open()
    start = await put(writer, "m/a", b"before")
    watch = Watch(reader, "m/", start)
    second = (await writer.txn([], [Put("m/b", b"1"), Put("other", b""), Delete("m/a")])).revision
    third = await put(writer, "m/b", b"2")
    expected = [Event("m/b", b"1", second), Event("m/a", None, second), Event("m/b", b"2", third)]
    assert await watch.take(3) == expected
    await watch.end()


async def test_watch_begins_with_the_past_and_goes_on(world: World, store: Coordinator) -> None:
    first = await put(store, "a", b"1")
    second = await put(store, "a", b"2")
    watch = Watch(store, "", world.origin)
    assert await watch.take(2) == [Event("a", b"1", first), Event("a", b"2", second)]
    third = await put(store, "a", b"3")
    assert await watch.take(1) == [Event("a", b"3", third)]
    await watch.end()


async def test_watch_gives_a_revision_whole(world: World) -> None:
    writer, reader = world.open(), world.open()
    watch = Watch(reader, "", world.origin)
    for number in range(5):
        await writer.txn([], [Put(f"{key}", b"%d" % number) for key in range(4)])
    seen = 0
    while seen < 5:
        events = await watch.next()
        revisions = [event.revision for event in events]
        assert all(revisions.count(revision) == 4 for revision in set(revisions))
        seen += len(set(revisions))
    await watch.end()


async def test_watch_from_a_future_revision_waits_for_it(store: Coordinator) -> None:
    first = await put(store, "a")
    watch = Watch(store, "", first + 1)
    await put(store, "a", b"not shown")
    third = await put(store, "a", b"shown")
    assert await watch.take(1) == [Event("a", b"shown", third)]
    await watch.end()


async def test_watch_of_lost_history(world: World, store: Coordinator) -> None:
    for _ in range(HISTORY + 5):
        revision = await put(store, "a")
    world.trim()
    gone = Watch(store, "", world.origin + 4)
    with pytest.raises(HistoryCompacted):
        await gone.next()
    kept = Watch(store, "", world.origin + 5)
    assert [event.revision for event in await kept.take(HISTORY)] == list(range(world.origin + 6, revision + 1))
    for watch in (gone, kept):
        await watch.end()


async def test_a_quiet_watch_does_not_lose_its_place(world: World, store: Coordinator) -> None:
    """Changes elsewhere outrun the history; a watch that keeps up and has nothing to show must not hear that it missed some."""
    marker, quiet = Watch(store, "loud", world.origin), Watch(store, "quiet", world.origin)
    for _ in range(3 * HISTORY):
        await put(store, "loud")
        await marker.take(1)
    world.trim()
    last = await put(store, "quiet", b"x")
    assert await quiet.next() == [Event("quiet", b"x", last)]
    for watch in (marker, quiet):
        await watch.end()


async def test_an_ended_lease_takes_its_keys_along(world: World) -> None:
    owner, other = world.open(), world.open()
    lease = await owner.grant_lease(world.lease_s)
    await put(owner, "mine", b"1", lease)
    revision = await put(owner, "free", b"1")
    watch = Watch(other, "", revision)
    await world.live(0.99)
    assert await other.get("mine") is not None
    await world.live(0.02)
    assert await watch.next() == [Event("mine", None, revision + 1)]
    assert await other.get("mine") is None
    assert await other.get("free") is not None
    with pytest.raises(LeaseExpired):
        await owner.keep_alive(lease)
    with pytest.raises(LeaseExpired):
        await owner.txn([], [Put("other", b""), Put("mine", b"2", lease)])
    assert await other.get("other") is None
    await watch.end()


async def test_reads_never_show_a_key_beyond_its_lease(world: World) -> None:
    store = world.open()
    lease = await store.grant_lease(world.lease_s)
    await put(store, "k", b"", lease)
    await world.outlive(store, "k")
    assert (await store.get_prefix("")).items == ()
    assert (await store.txn([Compare("k", ABSENT)], [Put("k", b"new")])).has_succeeded


async def test_keep_alive_renews_for_the_full_length(world: World) -> None:
    store = world.open()
    lease = await store.grant_lease(world.lease_s)
    await put(store, "k", b"", lease)
    for _ in range(4):
        await world.live(0.9)
        await store.keep_alive(lease)
    assert await store.get("k") is not None
    await world.outlive(store, "k")
    assert await store.get("k") is None


async def test_revoking_ends_a_lease_at_once(store: Coordinator) -> None:
    lease = await store.grant_lease(1000)
    await store.txn([], [Put("a", b"", lease), Put("b", b"", lease)])
    before = (await store.get_prefix("")).revision
    await store.revoke_lease(lease)
    snapshot = await store.get_prefix("")
    assert (snapshot.items, snapshot.revision) == ((), before + 1)
    await store.revoke_lease(lease)
    with pytest.raises(LeaseExpired):
        await store.keep_alive(lease)


async def test_a_later_write_takes_a_key_out_of_its_lease(store: Coordinator) -> None:
    first, second = await store.grant_lease(100), await store.grant_lease(100)
    await store.txn([], [Put("freed", b"", first), Put("handed over", b"", first)])
    await put(store, "freed", b"kept")
    await put(store, "handed over", b"", second)
    await store.revoke_lease(first)
    assert [item.key for item in (await store.get_prefix("")).items] == ["freed", "handed over"]
    await store.revoke_lease(second)
    assert [item.key for item in (await store.get_prefix("")).items] == ["freed"]


async def test_leases_are_never_named_again(store: Coordinator) -> None:
    first = await store.grant_lease(100)
    await store.revoke_lease(first)
    assert await store.grant_lease(100) != first


async def test_closing_ends_calls_and_watches(world: World) -> None:
    store = world.open()
    watch = Watch(store, "", await put(store, "a"))
    await asyncio.sleep(0)
    await store.close()
    await store.close()
    with pytest.raises(CoordinatorUnavailable):
        await watch.next()
    with pytest.raises(CoordinatorUnavailable):
        await store.get("a")
    assert await world.open().get("a") is not None
    await watch.end()


async def test_a_cancelled_call_leaves_the_handle_usable(world: World, store: Coordinator) -> None:
    call = asyncio.create_task(put(store, "a"))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await put(store, "b") - world.origin in (1, 2)
