"""What a direct client does itself, what goes through a router instead, and why."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from fakes.direct import ROUTER_VERSION, FakeRouterTransport, FollowedFakeMaps
from fakes.leaf_client import Hang, Ping
from fakes.map_source import cluster_map
from fakes.memory_leaves import MemoryLeaves

from kvshard.client import direct_reach
from kvshard.client.direct import Direct, RouterView, settings_of, view_of
from kvshard.client.direct_status import Detour
from kvshard.client.status import ClusterStatus, LeafStatus
from kvshard.clock import SystemClock
from kvshard.clustermap import ClusterMap, Leaf
from kvshard.errors import (
    DeadlineExceeded,
    ErrorDetails,
    Internal,
    InvalidArgument,
    KvShardError,
    NotReady,
    StorageFailed,
    Unavailable,
)
from kvshard.lane_messages import KeysRead, KeysReadReply, KeysWrite
from kvshard.model import LeafStatusReply, ReplicaStatusRecord, ShardRead, ShardWrite
from kvshard.scatter.watermarks import Watermarks
from kvshard.tail.hedging import FixedDelay, HedgeSettings, Off
from kvshard.tail.status import TailStatus
from kvshard.v1 import kv_pb2, types_pb2

CLOCK = SystemClock()
KEYS = [b"key-%02d" % number for number in range(32)]
PARTIAL = types_pb2.ReadOptions(on_shortfall=types_pb2.SHORTFALL_POLICY_PARTIAL).SerializeToString()


class Setting:
    """A direct client of four leaves with eight shards, in which every leaf is asked through `leaves`."""

    def __init__(
        self,
        current: ClusterMap | None,
        tail: TailStatus | KvShardError | None = None,
        committed: Mapping[int, int] | None = None,
    ) -> None:
        self.committed = committed or {}
        self.maps = FollowedFakeMaps(current)
        self.leaves = MemoryLeaves()
        self.clients = 0
        self.number = 0
        self.router = FakeRouterTransport()
        self.tail = tail
        self.direct = Direct(self.router, self.maps, self._new_leaves, self._ask_router, CLOCK)

    def _new_leaves(self):
        self.clients += 1
        return self.leaves.client

    async def _ask_router(self) -> RouterView:
        if isinstance(self.tail, KvShardError):
            raise self.tail
        return RouterView(self.tail, self.committed)

    async def ready(self) -> None:
        assert await self.direct.wait_ready(5.0)

    async def read(self, keys=KEYS, options: bytes = b"", is_each_alone: bool = False, timeout: float = 5.0):
        return await self.direct.read(KeysRead("", list(keys), options, is_each_alone), CLOCK.monotonic() + timeout)

    async def write(self, keys=KEYS, is_each_alone: bool = False, refresh: bool = False):
        self.number += 1
        id = types_pb2.RequestId(client="c-0", number=self.number, wants_watermarks=True).SerializeToString()
        request = KeysWrite(
            "", list(keys), [b"v:" + key for key in keys], refresh=refresh, request_id=id, is_each_alone=is_each_alone
        )
        return await self.direct.write(request, CLOCK.monotonic() + 5)

    def shards_of(self, leaf: str) -> set[int]:
        return {shard for shard, config in self.maps.current.shards.items() if config.primary == leaf}

    def keys_of(self, leaf: str) -> list[bytes]:
        """The keys whose primary is on this leaf."""
        current = self.maps.current
        return [key for key in KEYS if current.shard_of_key(key) in self.shards_of(leaf)]

    def reached(self) -> set[str]:
        return {each.leaf for each in self.direct.status().leaves if each.is_reached}

    def detours(self) -> dict[str, int]:
        return {why.value: count for why, count in self.direct.status().detours.items() if count}


@pytest.fixture(autouse=True)
def long_setbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is: what has failed stays a router's business for the length of a test."""
    monkeypatch.setattr(direct_reach, "FIRST_SETBACK_S", 60.0)


@asynccontextmanager
async def serving(replicas: int = 1, **options) -> AsyncIterator[Setting]:
    setting = Setting(cluster_map(shards=8, leaves=4, replicas=replicas), **options)
    try:
        await setting.ready()
        yield setting
    finally:
        await setting.direct.close()


@pytest.fixture
async def setting() -> AsyncIterator[Setting]:
    async with serving() as setting:
        yield setting


@pytest.fixture
async def replicated() -> AsyncIterator[Setting]:
    async with serving(replicas=3) as setting:
        yield setting


async def test_batches_and_single_operations_go_to_the_leaves(setting: Setting) -> None:
    written = await setting.write()
    assert all(written.versions)
    read = await setting.read([*KEYS, b"absent"])
    assert read.values == [*(b"v:" + key for key in KEYS), None]
    assert read.versions == [*written.versions, 0]
    coverage = kv_pb2.BatchGetResponse.FromString(read.rest).coverage
    assert (coverage.complete, coverage.legs) == (True, 8)
    assert kv_pb2.BatchWriteResponse.FromString(written.rest).watermarks
    alone = await setting.read([KEYS[0], b"absent"], is_each_alone=True)
    assert (alone.values, alone.rest) == ([b"v:" + KEYS[0], None], b"")
    assert setting.router.reads == setting.router.writes == []
    status = setting.direct.status()
    assert (status.direct, status.detoured, status.is_direct) == (3, 0, True)
    assert len(status.leaves) == 4
    assert status.tail is not None


async def test_everything_goes_through_a_router_until_the_map_is_there_and_leaves_have_answered() -> None:
    setting = Setting(None)
    try:
        assert (await setting.read()).versions == [ROUTER_VERSION] * len(KEYS)
        assert setting.maps.is_started  # By the first request.
        hangs = {leaf: Hang() for leaf in ("leaf-1", "leaf-2")}
        for leaf, hang in hangs.items():
            setting.leaves.client.on(leaf, Ping, hang)
        setting.maps.install(cluster_map(shards=8, leaves=2))
        await asyncio.gather(*(hang.reached.wait() for hang in hangs.values()))
        assert (await setting.read()).versions == [ROUTER_VERSION] * len(KEYS)
        assert not setting.direct.status().is_direct
        hangs["leaf-1"].release()
        await asyncio.sleep(0)
        while not setting.direct.status().is_direct:
            await asyncio.sleep(0)
        await setting.write(setting.keys_of("leaf-1"))
        assert setting.router.writes == []
        await setting.write(setting.keys_of("leaf-2"))
        assert len(setting.router.writes) == 1
        hangs["leaf-2"].release()
        await setting.ready()
        await setting.write()
        assert len(setting.router.writes) == 1
        assert setting.detours() == {"starting": 2, "unreached": 1}
    finally:
        await setting.direct.close()
    assert setting.router.is_closed
    assert setting.maps.is_closed
    assert setting.leaves.client.is_closed


async def test_a_client_in_another_network_stays_with_its_router() -> None:
    setting = Setting(cluster_map(shards=8, leaves=2))
    for leaf in ("leaf-1", "leaf-2"):
        setting.leaves.client.on(leaf, Ping, Unavailable("no route to host"))
    try:
        assert not await setting.direct.wait_ready(0.05)
        await setting.read()
        await setting.write()
        assert len(setting.router.reads) == len(setting.router.writes) == 1
        assert setting.leaves.client.calls_of(ShardRead) == setting.leaves.client.calls_of(ShardWrite) == []
        assert len(setting.leaves.client.calls_of(Ping)) <= 4  # Two leaves, at once and perhaps once more.
    finally:
        await setting.direct.close()


async def test_routers_that_do_not_name_their_cluster_are_too_old() -> None:
    setting = Setting(cluster_map(shards=8, leaves=2))
    setting.maps.cluster_id = ""
    try:
        assert not await setting.direct.wait_ready(0.02)
        assert setting.clients == 0
        setting.maps.cluster_id = "told-at-last"
        setting.maps.install(cluster_map(shards=8, leaves=2, version=2))
        await setting.ready()
        await setting.read()
        assert setting.router.reads == []
    finally:
        await setting.direct.close()


async def test_another_cluster_at_the_same_address_begins_anew(setting: Setting) -> None:
    await setting.write()
    setting.maps.cluster_id = "cluster-2"
    setting.maps.install(cluster_map(shards=4, leaves=2, version=1))
    await setting.ready()
    assert setting.clients == 2
    assert len(setting.direct.status().leaves) == 2


@pytest.mark.parametrize("options", [b"", PARTIAL])
async def test_a_read_that_fails_at_the_leaves_is_done_whole_through_a_router(setting: Setting, options: bytes) -> None:
    await setting.write()
    setting.leaves.fail("leaf-2", Unavailable("connection refused"))
    assert (await setting.read(options=options)).versions == [ROUTER_VERSION] * len(KEYS)
    assert setting.detours() == {"failed": 1}
    asked = len(setting.leaves.client.calls_of(ShardRead))
    # What has failed goes through a router at once from now on, the rest does not.
    assert (await setting.read(setting.keys_of("leaf-2"))).versions[0] == ROUTER_VERSION
    assert len(setting.leaves.client.calls_of(ShardRead)) == asked
    assert (await setting.read(setting.keys_of("leaf-1"))).values[0] == b"v:" + setting.keys_of("leaf-1")[0]
    assert set(setting.direct.status().setbacks) == setting.shards_of("leaf-2")


async def test_single_reads_in_one_frame_are_done_through_a_router_when_one_of_them_fails(setting: Setting) -> None:
    setting.leaves.fail("leaf-2", NotReady("recovering", ErrorDetails(shards=tuple(setting.shards_of("leaf-2")))))
    assert (await setting.read(is_each_alone=True)).versions == [ROUTER_VERSION] * len(KEYS)


async def test_a_replica_that_can_be_reached_answers_for_one_that_cannot(replicated: Setting) -> None:
    await replicated.write()
    replicated.leaves.fail("leaf-2", Unavailable("connection refused"))
    replicated.leaves.client.on("leaf-2", Ping, Unavailable("connection refused"))
    async with asyncio.timeout(5):
        while "leaf-2" in replicated.reached():
            assert (await replicated.read()).values == [b"v:" + key for key in KEYS]
    assert replicated.router.reads == []
    assert (await replicated.read()).values == [b"v:" + key for key in KEYS]
    # Its writes need the primary.
    asked = len(replicated.leaves.client.calls_of(ShardWrite))
    assert (await replicated.write(replicated.keys_of("leaf-2"))).versions[0] == ROUTER_VERSION
    assert len(replicated.leaves.client.calls_of(ShardWrite)) == asked
    assert replicated.detours() == {"unreached": 1}


async def test_it_comes_back_by_itself(replicated: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_reach, "FIRST_SETBACK_S", 0.01)
    replicated.leaves.fail("leaf-2", Unavailable("connection refused"))
    replicated.leaves.client.on("leaf-2", Ping, Unavailable("connection refused"), None)
    keys = replicated.keys_of("leaf-2")
    await replicated.write(keys)
    assert len(replicated.router.writes) == 1
    replicated.leaves.serve("leaf-2")
    async with asyncio.timeout(5):
        while replicated.direct.status().direct == 0:
            await replicated.write(keys)
            await asyncio.sleep(0.01)
    assert replicated.direct.status().setbacks == ()


async def test_a_router_that_is_gone_does_not_take_the_part_that_the_leaves_have(setting: Setting) -> None:
    await setting.write()
    setting.leaves.fail("leaf-2", Unavailable("connection refused"))
    setting.router.error = Unavailable("no router answers")
    read = await setting.read(options=PARTIAL)
    lost = set(setting.keys_of("leaf-2"))
    assert read.values == [None if key in lost else b"v:" + key for key in KEYS]
    failures = kv_pb2.BatchGetResponse.FromString(read.rest).failures
    assert {KEYS[failure.index] for failure in failures} == lost
    with pytest.raises(Unavailable, match="no router answers"):
        await setting.read()


async def test_a_write_of_which_nothing_was_done_goes_through_a_router_under_its_id(setting: Setting) -> None:
    keys = setting.keys_of("leaf-2")
    setting.leaves.fail("leaf-2", Unavailable("connection refused"))
    assert (await setting.write(keys)).versions[0] == ROUTER_VERSION
    (sent,) = setting.router.writes
    assert types_pb2.RequestId.FromString(sent.request_id).number == setting.number
    assert sent.keys == keys
    assert setting.detours() == {"failed": 1}


async def test_a_single_write_that_was_refused_goes_through_a_router(setting: Setting) -> None:
    setting.leaves.fail("leaf-2", Unavailable("connection refused"))
    assert (await setting.write(setting.keys_of("leaf-2")[:1], is_each_alone=True)).versions == [ROUTER_VERSION]


async def test_what_may_have_been_done_in_part_is_told_and_not_hidden(setting: Setting) -> None:
    setting.leaves.fail("leaf-2", Unavailable("the lane broke", ErrorDetails(maybe_applied=True)))
    lost = set(setting.keys_of("leaf-2"))
    written = await setting.write()
    failures = kv_pb2.BatchWriteResponse.FromString(written.rest).failures
    assert {KEYS[each.index] for each in failures} == lost
    assert all(each.failure.maybe_applied for each in failures)
    assert setting.router.writes == []
    # The repetition, which its caller makes, goes through a router.
    assert (await setting.write(sorted(lost))).versions[0] == ROUTER_VERSION


@pytest.mark.parametrize("is_each_alone", [False, True])
async def test_what_stopped_for_good_here_may_go_on_elsewhere(setting: Setting, is_each_alone: bool) -> None:
    """A caller does not repeat a write after STORAGE_FAILED: it would learn nothing of the primary that follows."""
    setting.leaves.fail("leaf-2", StorageFailed("the disk is full", ErrorDetails(shards=(1,), maybe_applied=is_each_alone)))
    if is_each_alone:
        with pytest.raises(Unavailable) as raised:
            await setting.write(setting.keys_of("leaf-2")[:1], is_each_alone=True)
        assert (raised.value.is_retryable, raised.value.details.maybe_applied) == (True, True)
        return
    written = await setting.write()
    response = kv_pb2.BatchWriteResponse.FromString(written.rest)
    assert {(each.failure.reason, each.failure.message) for each in response.failures} == {("UNAVAILABLE", "the disk is full")}
    assert response.watermarks


@pytest.mark.parametrize("error", [Unavailable("the lane broke", ErrorDetails(maybe_applied=True)), Internal("a defect")])
async def test_a_single_write_in_doubt_is_not_sent_again_behind_its_callers_back(setting: Setting, error: KvShardError) -> None:
    setting.leaves.fail("leaf-2", error)
    with pytest.raises(type(error)):
        await setting.write(setting.keys_of("leaf-2")[:1], is_each_alone=True)
    assert setting.router.writes == []


async def test_a_write_that_a_search_is_to_see_goes_through_a_router(setting: Setting) -> None:
    await setting.write(refresh=True)
    assert len(setting.router.writes) == 1
    assert setting.detours() == {"refresh": 1}


@pytest.mark.parametrize("error", [InvalidArgument("it is wrong"), DeadlineExceeded("too late")])
async def test_an_answer_of_a_leaf_is_an_answer(setting: Setting, error: KvShardError) -> None:
    setting.leaves.fail("leaf-2", error)
    with pytest.raises(type(error)):
        await setting.read(setting.keys_of("leaf-2")[:1], is_each_alone=True)
    with pytest.raises(type(error)):
        await setting.write(setting.keys_of("leaf-2")[:1], is_each_alone=True)
    assert setting.router.reads == setting.router.writes == []
    assert setting.direct.status().setbacks == ()


async def test_a_collection_that_this_client_has_not_heard_of_is_a_routers_business(setting: Setting) -> None:
    await setting.direct.read(KeysRead("just-created", KEYS), CLOCK.monotonic() + 5)
    await setting.direct.write(KeysWrite("just-created", KEYS, [b""] * len(KEYS)), CLOCK.monotonic() + 5)
    assert len(setting.router.reads) == len(setting.router.writes) == 1
    await setting.read()  # The others have nothing to do with it.
    assert len(setting.router.reads) == 1


async def test_a_leaf_of_another_version_is_a_routers_business(setting: Setting) -> None:
    setting.leaves.fail("leaf-2", Internal("not a ShardReadReply payload"))
    assert (await setting.read(setting.keys_of("leaf-2"))).versions[0] == ROUTER_VERSION


async def test_a_cancelled_request_is_taken_back_at_its_leaf(setting: Setting) -> None:
    hang = Hang()
    setting.leaves.fail("leaf-2", hang)
    call = asyncio.create_task(setting.read(setting.keys_of("leaf-2")))
    await hang.reached.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert hang.cancelled >= 1
    assert setting.router.reads == []


async def test_a_changed_map_changes_whom_is_asked(setting: Setting) -> None:
    await setting.write()
    current = setting.maps.current
    moved = {shard: replace(config, epoch=2) for shard, config in current.shards.items()}
    setting.maps.install(replace(current, version=2, shards=moved))
    await setting.read()
    assert {call.request.epoch for call in setting.leaves.client.calls_of(ShardRead)} == {2}


async def test_explained_reads_tell_their_legs(setting: Setting) -> None:
    options = types_pb2.ReadOptions(explain_timing=True).SerializeToString()
    read = await setting.read(options=options)
    timing = kv_pb2.BatchGetResponse.FromString(read.rest).timing
    assert sorted(leg.shard for leg in timing.legs) == list(range(8))
    assert {leg.leaf for leg in timing.legs} == {"leaf-1", "leaf-2", "leaf-3", "leaf-4"}


async def test_it_hedges_as_the_routers_do() -> None:
    async with serving(tail=TailStatus(policy="off", budget_max=0.02, max_attempts=2)) as setting:
        tail = setting.direct.status().tail
        assert tail is not None
        assert (tail.policy, tail.budget_max, tail.max_attempts) == ("off", 0.02, 2)
    async with serving(tail=Unavailable("no router answers")) as setting:
        tail = setting.direct.status().tail
        assert tail is not None
        assert tail.policy == "auto"


async def test_it_knows_from_the_start_what_shards_have_committed() -> None:
    """Else a write that is repeated at a shard with which it never talked would be too old for that."""
    async with serving(committed={shard: 1000 + shard for shard in range(8)}) as setting:
        key = KEYS[0]
        shard = setting.maps.current.shard_of_key(key)
        written = await setting.write([key])
        (sent,) = setting.leaves.client.calls_of(ShardWrite)
        assert sent.request.since == 1000 + shard
        told = Watermarks.decode(kv_pb2.BatchWriteResponse.FromString(written.rest).watermarks)
        assert all(told.of(other) == 1000 + other for other in set(range(8)) - {shard})


def test_what_it_takes_from_a_routers_status() -> None:
    def replica(shard: int, committed: int) -> ReplicaStatusRecord:
        return ReplicaStatusRecord(shard, 1, "secondary", committed, committed, [])

    def leaf(name: str, *replicas: ReplicaStatusRecord) -> LeafStatus:
        return LeafStatus(Leaf(name, ""), LeafStatusReply(name, list(replicas), 1, 1.0, 1, 1, "1"))

    tail = TailStatus(policy="off")
    leaves = (leaf("a", replica(0, 7), replica(1, 3)), leaf("b", replica(0, 9)), LeafStatus(Leaf("c", ""), None, "silent"))
    assert view_of(ClusterStatus(cluster_map(), leaves, tail)) == RouterView(tail, {0: 9, 1: 3})


def test_settings_from_what_a_router_shows() -> None:
    assert settings_of(None) == HedgeSettings()
    assert settings_of(TailStatus(policy="auto", budget_max=0.1, max_attempts=3)) == HedgeSettings()
    assert settings_of(TailStatus(policy="10ms", budget_max=0.0, max_attempts=2)) == HedgeSettings(FixedDelay(0.01), 0.0, 2)
    assert settings_of(TailStatus(policy="off", budget_max=0.05, max_attempts=1)) == HedgeSettings(Off(), 0.05, 1)
    assert settings_of(TailStatus(policy="of a newer version")) == HedgeSettings()


async def test_after_its_close_nothing_begins_any_more() -> None:
    setting = Setting(cluster_map())
    await setting.direct.close()
    setting.direct.start()
    assert not await setting.direct.wait_ready(0.01)
    assert setting.clients == 0
    assert setting.direct.status().detours[Detour.STARTING] == 0


class TestReadsThatBegin:
    """Of one key, without a task."""

    def begin(
        self, setting: Setting, key: bytes = KEYS[0], timeout: float = 5.0
    ) -> "asyncio.Future[KeysReadReply | KvShardError | None] | None":
        """Its outcome; None: it needs a task."""
        told: asyncio.Future[KeysReadReply | KvShardError | None] = asyncio.get_running_loop().create_future()
        request = KeysRead("", [key], b"", True)
        begun = setting.direct.begin_read(request, CLOCK.monotonic() + timeout, told.set_result)
        return None if begun is None else told

    async def test_a_leaf_is_asked(self, setting: Setting) -> None:
        written = await setting.write()
        told = self.begin(setting)
        assert told is not None
        assert await told == KeysReadReply([b"v:" + KEYS[0]], [written.versions[0]])
        assert setting.router.reads == []
        assert setting.direct.status().direct == 2

    async def test_where_a_router_has_to_be_asked_none_begins(self, setting: Setting) -> None:
        leaf = "leaf-1"
        setting.leaves.fail(leaf, Unavailable("down"))
        await setting.read(setting.keys_of(leaf))
        reads = len(setting.router.reads)
        assert self.begin(setting, setting.keys_of(leaf)[0]) is None
        assert self.begin(setting, setting.keys_of("leaf-2")[0]) is not None
        assert len(setting.router.reads) == reads

    async def test_before_the_map_is_known_none_begins(self) -> None:
        setting = Setting(None)
        assert self.begin(setting) is None
        await setting.direct.close()

    async def test_what_fails_here_is_left_to_a_router(self, setting: Setting) -> None:
        key = setting.keys_of("leaf-1")[0]
        setting.leaves.fail("leaf-1", Unavailable("down"))
        told = self.begin(setting, key, timeout=0.1)
        assert told is not None
        assert await told is None, "it has to be read in the other way"
        assert setting.detours() == {"failed": 1}
        assert (await setting.read([key], is_each_alone=True)).versions == [ROUTER_VERSION]

    async def test_an_error_that_a_router_would_tell_too_is_told(self, setting: Setting) -> None:
        setting.leaves.fail("leaf-1", InvalidArgument("no such thing"))
        told = self.begin(setting, setting.keys_of("leaf-1")[0])
        assert told is not None
        assert isinstance(await told, InvalidArgument)
        assert setting.detours() == {}
