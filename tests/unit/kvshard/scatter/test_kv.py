"""Batches: split, put together again, per-key failures."""

import pytest
from fakes.leaf_client import ANY_LEAF, FakeLeafClient
from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from prometheus_client import CollectorRegistry

from kvshard.clock import SystemClock
from kvshard.clustermap import Collection
from kvshard.errors import CollectionNotFound, ErrorDetails, InvalidArgument, Unavailable, VersionConflict, error_of
from kvshard.model import ShardRead, ShardReadReply, ShardWrite, changed
from kvshard.scatter import kv
from kvshard.scatter.coverage import KnownCounts
from kvshard.scatter.kv import KeyValueOperations
from kvshard.scatter.ledger import ReadTimes
from kvshard.scatter.min_versions import MinVersions
from kvshard.scatter.requests import DEFAULT_READ_POLICY, ReadPolicy, RequestIdentity, request_identity, write_columns
from kvshard.scatter.scatter import Scatter
from kvshard.telemetry import RouterMetrics

CLOCK = SystemClock()
PARTIAL = ReadPolicy(is_partial_accepted=True)
KEYS = [b"key-%03d" % number for number in range(100)]


class Setting:
    def __init__(self, replicas: int = 1, starts: bool = True) -> None:
        self.maps = FakeMapSource(cluster_map(shards=8, leaves=4, replicas=replicas))
        self.leaves = MemoryLeaves()
        self.leaves.client.starts = starts
        scatter = Scatter(self.maps, CLOCK, RouterMetrics(CollectorRegistry()), FakeLeafClient().ping)
        self.operations = KeyValueOperations(self.maps, self.leaves.client, scatter, KnownCounts(), CLOCK)

    async def put(self, keys, values=None, conditions=(), identity: RequestIdentity | None = None) -> kv.BatchWritten:
        columns = write_columns(list(keys), values or [b"v:" + key for key in keys], [], [], list(conditions))
        return await self.operations.batch_write("", columns, False, CLOCK.monotonic() + 5, identity)

    def written(self) -> list[ShardWrite]:
        return [call.request for call in self.leaves.client.calls_of(ShardWrite)]

    async def get(self, keys, policy=DEFAULT_READ_POLICY) -> kv.BatchRead:
        return await self.operations.batch_get("", list(keys), policy, CLOCK.monotonic() + 5)

    def leaf_of(self, key: bytes) -> str:
        current = self.maps.current
        return current.shards[current.shard_of_key(key)].primary


@pytest.fixture(params=[False, True], ids=["asked", "started"])
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(starts=request.param)


async def test_batch_comes_back_in_the_order_of_the_request(setting: Setting) -> None:
    written = await setting.put(KEYS)
    assert all(written.versions)
    assert written.failures == []
    asked = [*reversed(KEYS), b"absent", KEYS[0]]
    read = await setting.get(asked)
    assert read.values == [*(b"v:" + key for key in reversed(KEYS)), None, b"v:" + KEYS[0]]
    assert read.versions[-2] == 0
    assert read.coverage.is_complete
    assert read.coverage.legs == read.coverage.legs_ok == 8
    assert read.coverage.documents_considered == 100
    assert read.expires_at_ms == []


async def test_one_leg_a_shard(setting: Setting) -> None:
    await setting.put(KEYS)
    calls = setting.leaves.client.calls_of(ShardWrite)
    assert sorted(call.request.shard for call in calls) == list(range(8))


async def test_empty_value_differs_from_an_absent_key(setting: Setting) -> None:
    await setting.put([b"empty"], [b""])
    read = await setting.get([b"empty", b"absent"])
    assert read.values == [b"", None]
    assert read.versions[0] > 0
    assert read.versions[1] == 0


async def test_account_has_every_leg_also_when_the_batch_fails(setting: Setting) -> None:
    setting.leaves.fail("leaf-2", Unavailable("connection refused"))
    times = ReadTimes(CLOCK.monotonic())
    with pytest.raises(Unavailable):
        await setting.operations.batch_get("", KEYS, DEFAULT_READ_POLICY, CLOCK.monotonic() + 5, times)
    assert times.fan_out == 8
    rows = times.timing(CLOCK.monotonic()).legs
    assert [row.shard for row in rows] == list(range(8))
    silent = {row.shard for row in rows if not row.leaf}
    assert silent == {shard for shard, config in setting.maps.current.shards.items() if config.primary == "leaf-2"}
    assert {each.outcome for row in rows for each in row.tries} == {"unavailable"}


async def test_empty_batches(setting: Setting) -> None:
    assert (await setting.put([])).versions == []
    read = await setting.get([])
    assert read.values == []
    assert read.coverage.is_complete


async def test_same_key_twice_takes_effect_in_order(setting: Setting) -> None:
    written = await setting.put([b"k", b"k"], [b"1", b"2"])
    assert written.existed == [False, True]
    assert (await setting.get([b"k"])).values == [b"2"]


async def test_failed_condition_concerns_its_key_alone(setting: Setting) -> None:
    await setting.put(KEYS[:1])
    written = await setting.put(KEYS[:3], conditions=[0, 0, None])
    assert [(index, record.reason) for index, record in written.failures] == [(0, "VERSION_CONFLICT")]
    assert written.versions[0] == 0
    assert all(written.versions[1:])


async def test_dead_leaf_fails_a_batch_read_whole_and_names_the_shards(setting: Setting) -> None:
    await setting.put(KEYS)
    setting.leaves.fail("leaf-2", Unavailable("connection refused"))
    with pytest.raises(Unavailable) as caught:
        await setting.get(KEYS)
    assert caught.value.details.shards == (1, 5)
    assert caught.value.details.replicas_tried == ("leaf-2",)


async def test_dead_leaf_leaves_gaps_in_a_partial_batch_read(setting: Setting) -> None:
    await setting.put(KEYS)
    await setting.get(KEYS)  # The sizes of all shards are known now.
    setting.leaves.fail("leaf-2", Unavailable("connection refused"))
    read = await setting.get(KEYS, PARTIAL)
    dead = [index for index, key in enumerate(KEYS) if setting.leaf_of(key) == "leaf-2"]
    assert [index for index, _ in read.failures] == dead
    assert {record.details.shards for _, record in read.failures} == {(1,), (5,)}
    assert all(read.versions[index] for index in set(range(100)) - set(dead))
    assert (read.coverage.legs, read.coverage.legs_ok) == (8, 6)
    assert read.coverage.documents_total == 100
    assert read.coverage.documents_considered == 100 - len(dead)


async def test_min_coverage_forgives_a_small_gap(setting: Setting) -> None:
    await setting.put(KEYS)
    await setting.get(KEYS)
    setting.leaves.fail("leaf-2", Unavailable("connection refused"))
    read = await setting.get(KEYS, ReadPolicy(min_coverage=0.1))
    assert not read.coverage.is_complete


async def test_batch_write_survives_a_dead_leaf(setting: Setting) -> None:
    broken = Unavailable("connection broke", ErrorDetails(maybe_applied=True))
    setting.leaves.fail("leaf-3", broken)
    written = await setting.put(KEYS)
    dead = [index for index, key in enumerate(KEYS) if setting.leaf_of(key) == "leaf-3"]
    assert [index for index, _ in written.failures] == dead
    assert all(record.details.maybe_applied and record.details.shards for _, record in written.failures)
    assert all(written.versions[index] for index in set(range(100)) - set(dead))


async def test_leaf_that_finds_the_request_wrong_fails_the_call(setting: Setting) -> None:
    setting.leaves.fail("leaf-1", InvalidArgument("no such thing"))
    with pytest.raises(InvalidArgument, match="no such thing"):
        await setting.get(KEYS, PARTIAL)


async def test_answer_of_a_wrong_length_is_a_defect_and_not_a_wrong_answer(setting: Setting) -> None:
    setting.leaves.client.on("leaf-1", ShardRead, ShardReadReply([], []))
    read = await setting.get(KEYS)
    assert {record.reason for _, record in read.failures} == {"INTERNAL"}


async def test_answer_that_would_get_too_large(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    await setting.put(KEYS)
    monkeypatch.setattr(kv, "ANSWER_MAX_BYTES", 500)
    read = await setting.get(KEYS)
    assert read.failures
    assert {record.reason for _, record in read.failures} == {"RESOURCE_EXHAUSTED"}
    assert 0 < sum(len(value) for value in read.values if value) <= 500


async def test_legs_together_bring_no_more_than_one_answer_may_have(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    await setting.put(KEYS)
    monkeypatch.setattr(kv, "ANSWER_MAX_BYTES", 4_000)
    await setting.get(KEYS)
    asked = [call.request.max_bytes for call in setting.leaves.client.calls_of(ShardRead)]
    assert asked == [500] * 8


async def test_what_fits_an_answer_comes_however_it_lies_among_the_shards(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly all of it is one shard's: first it brings its share, then the rest."""
    keys = [*KEYS[:8], *(b"{tag}%02d" % number for number in range(30))]
    values = dict.fromkeys(keys, b"x" * 100)
    await setting.put(keys, list(values.values()))
    monkeypatch.setattr(kv, "ANSWER_MAX_BYTES", 3_900)
    read = await setting.get([*keys, b"absent"])
    assert read.values == [*values.values(), None]
    assert read.failures == []
    assert read.coverage.is_complete
    rounds = [call.request for call in setting.leaves.client.calls_of(ShardRead)]
    assert max(request.max_bytes for request in rounds) <= 3_900


async def test_leaves_of_an_earlier_version_bring_more_than_they_are_asked_for(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    await setting.put(KEYS)

    def read(request: ShardRead) -> ShardReadReply:
        return setting.leaves._read(changed(request, max_bytes=0))

    setting.leaves.client.on(ANY_LEAF, ShardRead, read)
    monkeypatch.setattr(kv, "ANSWER_MAX_BYTES", 50)
    read_ = await setting.get([key for key in KEYS if setting.leaf_of(key) == "leaf-1"])
    assert sum(len(value) for value in read_.values if value) == 45, "what there is room for comes all the same"
    assert {record.reason for _, record in read_.failures} == {"RESOURCE_EXHAUSTED"}


async def test_a_value_that_no_answer_has_room_for_fails_alone(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    await setting.put(KEYS[:20], [b"x" * 10] * 19 + [b"x" * 2_000])
    monkeypatch.setattr(kv, "ANSWER_MAX_BYTES", 1_000)
    read = await setting.get(KEYS[:20])
    assert [(index, record.reason, record.details.limit) for index, record in read.failures] == [
        (19, "RESOURCE_EXHAUSTED", 1_000)
    ]
    assert read.values == [b"x" * 10] * 19 + [None]


async def test_point_operations(setting: Setting) -> None:
    deadline = CLOCK.monotonic() + 5
    columns = write_columns([b"k"], [b"v"], [], [], [])
    written = await setting.operations.write("Put", "", columns, True, deadline)
    assert (written.versions, written.existed, written.token) == ([1], [False], b"")
    read = await setting.operations.get("default", b"k", DEFAULT_READ_POLICY, deadline)
    assert (read.value, read.version) == (b"v", 1)
    with pytest.raises(VersionConflict):
        await setting.operations.write("Put", "", write_columns([b"k"], [b"v"], [], [], [7]), False, deadline)
    setting.leaves.fail(setting.leaf_of(b"k"), Unavailable("down"))
    with pytest.raises(Unavailable):
        await setting.operations.get("", b"k", DEFAULT_READ_POLICY, deadline)


async def test_refresh_is_asked_only_of_collections_with_an_index(setting: Setting) -> None:
    columns = write_columns([b"k"], [b"{}"], [], [], [])
    await setting.operations.write("Put", "", columns, True, CLOCK.monotonic() + 5)
    await setting.operations.write("Put", "docs", columns, True, CLOCK.monotonic() + 5)
    await setting.operations.write("Put", "docs", columns, "wait", CLOCK.monotonic() + 5)
    calls = setting.leaves.client.calls_of(ShardWrite)
    assert [call.request.wait_for_refresh for call in calls] == [False, True, True]
    assert [call.request.next_refresh for call in calls] == [False, False, True]


async def test_a_write_tells_from_which_states_on_searches_see_it(setting: Setting) -> None:
    deadline = CLOCK.monotonic() + 5
    one = await setting.operations.write("Put", "docs", write_columns([b"k"], [b"{}"], [], [], []), False, deadline)
    shard = setting.maps.current.shard_of_key(b"k")
    assert MinVersions.decode(one.token).of(shard) == one.versions[0] > 0
    many = write_columns(KEYS, [b"{}"] * len(KEYS), [], [], [])
    written = await setting.operations.batch_write("docs", many, False, deadline)
    wanted = MinVersions.decode(written.token)
    newest: dict[int, int] = {}
    for key, version in zip(KEYS, written.versions, strict=True):
        shard = setting.maps.current.shard_of_key(key)
        newest[shard] = max(version, newest.get(shard, 0))
    assert {shard: wanted.of(shard) for shard in wanted.shards} == newest


async def test_unknown_collection_costs_one_refresh(setting: Setting) -> None:
    with pytest.raises(CollectionNotFound, match="'nowhere'"):
        await setting.operations.get("nowhere", b"k", DEFAULT_READ_POLICY, CLOCK.monotonic() + 5)
    assert setting.maps.refreshes == 1


async def test_collection_created_elsewhere_is_found_by_the_refresh(setting: Setting) -> None:
    current = setting.maps.current
    new = {**current.collections, "fresh": Collection("fresh", 3)}
    setting.maps.upcoming = type(current)(2, current.seed, current.leaves, current.shards, new)
    read = await setting.operations.get("fresh", b"k", DEFAULT_READ_POLICY, CLOCK.monotonic() + 5)
    assert read.value is None
    assert setting.leaves.client.calls_of(ShardRead)[0].request.collection_id == 3


class TestRequestIds:
    async def test_the_router_names_what_has_no_name(self, setting: Setting) -> None:
        await setting.put(KEYS)
        await setting.put(KEYS)
        legs = setting.written()
        assert len({(leg.client, leg.number) for leg in legs[:8]}) == 1
        assert [leg.number for leg in legs] == [1] * 8 + [2] * 8
        assert 1 <= len(legs[0].client) <= 64

    async def test_routers_never_share_a_name(self) -> None:
        settings = [Setting(), Setting()]
        for setting in settings:
            await setting.put(KEYS[:1])
        assert settings[0].written()[0].client != settings[1].written()[0].client

    async def test_a_first_sending_tells_what_the_router_has_seen(self, setting: Setting) -> None:
        await setting.put(KEYS)
        seen = {leg.shard: setting.leaves.done[leg.shard, leg.client, leg.number].seqno for leg in setting.written()}
        await setting.put(KEYS, identity=request_identity("c", 1, False, b""))
        assert {leg.shard: leg.since for leg in setting.written()[8:]} == seen
        assert {leg.client for leg in setting.written()[8:]} == {"c"}

    async def test_a_repetition_tells_what_its_client_had_seen(self, setting: Setting) -> None:
        await setting.put(KEYS)
        known = setting.operations.watermarks()
        seen = {leg.shard: setting.leaves.done[leg.shard, leg.client, leg.number].seqno for leg in setting.written()}
        first = await setting.put(KEYS, identity=request_identity("c", 1, False, b""))
        again = await setting.put(KEYS, identity=request_identity("c", 1, True, known))
        assert again == first
        assert setting.leaves.repeated == 8
        assert {leg.shard: leg.since for leg in setting.written()[16:]} == seen
        await setting.put(KEYS, identity=request_identity("c", 1, True, b""))
        assert {leg.since for leg in setting.written()[24:]} == {0}

    async def test_reads_teach_too(self, setting: Setting) -> None:
        setting.leaves.seqno = 77
        await setting.get(KEYS[:1])
        await setting.put(KEYS[:1])
        assert setting.written()[0].since == 77

    async def test_the_answer_lost_with_a_leaf_is_found_again(self) -> None:
        setting = Setting(replicas=3)
        apply, lost = setting.leaves._write, Unavailable("the lane broke", ErrorDetails(maybe_applied=True))

        def die_after_the_write(request: ShardWrite):
            apply(request)
            return lost

        setting.leaves.client.on("leaf-2", ShardWrite, die_after_the_write, die_after_the_write, apply)
        written = await setting.put(KEYS)
        assert written.failures == []
        assert setting.leaves.seqno == len(KEYS)
        assert setting.leaves.repeated == 2

    async def test_names_are_given_back(self, setting: Setting) -> None:
        setting.leaves.fail("leaf-1", Unavailable("down"))
        await setting.put(KEYS)
        assert setting.operations._names.under_way == 0


async def test_a_stale_read_says_what_it_saw() -> None:
    setting = Setting(replicas=3)
    stale = ReadPolicy(is_stale=True)

    def answer(request: ShardRead) -> ShardReadReply:
        count = len(request.keys)
        return ShardReadReply([b"v"] * count, [4] * count, seqno=9, age_ms=-1)

    setting.leaves.client.on("*", ShardRead, answer)
    read = await setting.get(KEYS, stale)
    assert [(state.shard, state.seqno, state.age_ms) for state in read.states] == [(shard, 9, -1) for shard in range(8)]
    assert all(call.request.is_stale_ok for call in setting.leaves.client.calls_of(ShardRead))
    point = await setting.operations.get("", KEYS[0], stale, CLOCK.monotonic() + 5)
    assert (point.state.seqno, point.state.age_ms) == (9, -1)


async def test_a_dead_leaf_of_several_is_no_gap() -> None:
    setting = Setting(replicas=2)
    await setting.put(KEYS)
    setting.leaves.fail("leaf-2", Unavailable("connection refused"))
    for _ in range(5):
        read = await setting.get(KEYS)
        assert read.coverage.is_complete
        assert all(read.versions)


async def test_a_shard_that_is_gone_for_good_ends_with_the_deadline() -> None:
    setting = Setting(replicas=2)
    setting.leaves.fail("leaf-2", Unavailable("connection refused"))
    columns = write_columns(KEYS, KEYS, [], [], [])
    written = await setting.operations.batch_write("", columns, False, CLOCK.monotonic() + 0.05)
    dead = [index for index, key in enumerate(KEYS) if setting.leaf_of(key) == "leaf-2"]
    assert [index for index, _ in written.failures] == dead
    assert {error_of(record).details.maybe_applied for _, record in written.failures} == {False}
