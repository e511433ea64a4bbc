"""Frames: columns in, columns out; what fails alone, and what fails whole."""

import pytest
from fakes.leaf_client import FakeLeafClient
from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from prometheus_client import CollectorRegistry

from kvshard.clock import SystemClock
from kvshard.errors import (
    CollectionNotFound,
    ErrorDetails,
    Expired,
    InvalidArgument,
    KvShardError,
    Unavailable,
    VersionConflict,
)
from kvshard.lane_messages import KeysRead, KeysReadReply, KeysWrite, KeysWriteReply
from kvshard.limits import BATCH_MAX_KEYS, KEY_MAX_BYTES, VALUE_MAX_BYTES
from kvshard.model import ShardRead, ShardReadReply, ShardWrite
from kvshard.scatter.coverage import KnownCounts
from kvshard.scatter.key_frames import FrameAccount, KeyFrames
from kvshard.scatter.kv import KeyValueOperations
from kvshard.scatter.ledger import ReadTimes
from kvshard.scatter.requests import TTL_MAX_MS
from kvshard.scatter.scatter import Scatter
from kvshard.telemetry import RouterMetrics
from kvshard.v1 import kv_pb2, types_pb2

CLOCK = SystemClock()
KEYS = [b"key-%03d" % number for number in range(60)]
STALE = types_pb2.ReadOptions(consistency=types_pb2.CONSISTENCY_STALE)


class Setting:
    def __init__(self) -> None:
        self.maps = FakeMapSource(cluster_map(shards=8, leaves=4))
        self.leaves = MemoryLeaves()
        self.registry = CollectorRegistry()
        scatter = Scatter(self.maps, CLOCK, RouterMetrics(self.registry), FakeLeafClient().ping)
        operations = KeyValueOperations(self.maps, self.leaves.client, scatter, KnownCounts(), CLOCK)
        self.frames = KeyFrames(operations, CLOCK)
        self.account = FrameAccount()

    async def read(self, keys, options: types_pb2.ReadOptions | None = None, *, alone: bool = True) -> KeysReadReply:
        encoded = b"" if options is None else options.SerializeToString()
        self.account = FrameAccount()
        return await self.frames.read(KeysRead("", list(keys), encoded, alone), CLOCK.monotonic() + 5, self.account)

    async def write(self, keys, values=None, *, alone: bool = True, id=None, **columns) -> KeysWriteReply:
        values = [b"v:" + key for key in keys] if values is None else values
        encoded = b"" if id is None else id.SerializeToString()
        request = KeysWrite("", list(keys), values, request_id=encoded, is_each_alone=alone, **columns)
        self.account = FrameAccount()
        return await self.frames.write(request, CLOCK.monotonic() + 5, self.account)

    def keys_of(self, leaf: str) -> list[bytes]:
        current = self.maps.current
        return [key for key in KEYS if current.shards[current.shard_of_key(key)].primary == leaf]


@pytest.fixture
async def setting() -> Setting:
    setting = Setting()
    await setting.write(KEYS, alone=False)
    return setting


def rest_of(reply: KeysReadReply) -> kv_pb2.BatchGetResponse:
    return kv_pb2.BatchGetResponse.FromString(reply.rest)


def failures_of(reply: KeysWriteReply) -> dict[int, str]:
    return {each.index: each.failure.reason for each in kv_pb2.BatchWriteResponse.FromString(reply.rest).failures}


class TestReading:
    async def test_columns_in_the_order_of_the_keys(self, setting: Setting) -> None:
        await setting.write([b"empty"], [b""])
        reply = await setting.read([KEYS[7], b"absent", b"empty", KEYS[3], KEYS[7]], alone=False)
        assert reply.values == [b"v:key-007", None, b"", b"v:key-003", b"v:key-007"]
        assert [version > 0 for version in reply.versions] == [True, False, True, True, True]
        assert reply.expires_at_ms == []

    async def test_a_batch_tells_its_coverage_and_single_reads_do_not(self, setting: Setting) -> None:
        batch = rest_of(await setting.read(KEYS, alone=False))
        assert (batch.coverage.complete, batch.coverage.legs) == (True, 8)
        assert not batch.values
        assert (await setting.read(KEYS)).rest == b""

    async def test_expiry(self, setting: Setting) -> None:
        setting.leaves.client.on("*", ShardRead, ShardReadReply([b"v"], [5], expires_at_ms=[123]))
        assert (await setting.read(KEYS[:1])).expires_at_ms == [123]
        assert (await setting.read(KEYS[:1], alone=False)).expires_at_ms == [123]

    async def test_nothing_asked(self, setting: Setting) -> None:
        for alone in (True, False):
            assert (await setting.read([], alone=alone)).values == []

    async def test_a_silent_shard_fails_the_single_reads_of_its_keys_and_no_others(self, setting: Setting) -> None:
        setting.leaves.fail("leaf-2", Unavailable("connection refused"))
        silent = setting.keys_of("leaf-2")
        assert 0 < len(silent) < len(KEYS)
        reply = await setting.read(KEYS)
        assert [key for key, value in zip(KEYS, reply.values, strict=True) if value is None] == silent
        failures = rest_of(reply).failures
        assert [KEYS[each.index] for each in failures] == silent
        assert {each.failure.reason for each in failures} == {"UNAVAILABLE"}
        assert [KEYS[index] for index, _ in setting.account.failures] == silent
        with pytest.raises(Unavailable):
            await setting.read(KEYS, alone=False)

    async def test_a_wrong_key_fails_alone(self, setting: Setting) -> None:
        asked = [KEYS[0], b"", KEYS[1], b"k" * (KEY_MAX_BYTES + 1), b"absent"]
        reply = await setting.read(asked)
        assert reply.values == [b"v:key-000", None, b"v:key-001", None, None]
        assert reply.versions[1] == 0
        failures = rest_of(reply).failures
        assert [(each.index, each.failure.reason, each.failure.field) for each in failures] == [
            (1, "INVALID_ARGUMENT", "key"),
            (3, "INVALID_ARGUMENT", "key"),
        ]
        with pytest.raises(InvalidArgument) as caught:
            await setting.read(asked, alone=False)
        assert caught.value.details.field == "keys[1]"

    async def test_failures_of_both_kinds_come_in_order(self, setting: Setting) -> None:
        setting.leaves.fail("leaf-2", Unavailable("connection refused"))
        silent = setting.keys_of("leaf-2")
        reply = await setting.read([silent[0], b"", silent[1], KEYS[0] if KEYS[0] not in silent else KEYS[1]])
        assert [(each.index, each.failure.reason) for each in rest_of(reply).failures] == [
            (0, "UNAVAILABLE"),
            (1, "INVALID_ARGUMENT"),
            (2, "UNAVAILABLE"),
        ]

    async def test_only_wrong_keys(self, setting: Setting) -> None:
        reply = await setting.read([b"", b""])
        assert (reply.values, reply.versions, reply.expires_at_ms) == ([None, None], [0, 0], [])
        assert len(rest_of(reply).failures) == 2

    @pytest.mark.parametrize("wrong", [[], [b""]])
    async def test_too_many_keys_are_too_many(self, setting: Setting, wrong: list[bytes]) -> None:
        with pytest.raises(InvalidArgument) as caught:
            await setting.read([*wrong, *[b"k"] * (BATCH_MAX_KEYS + 1)])
        assert (caught.value.details.field, caught.value.details.limit) == ("keys", BATCH_MAX_KEYS)

    async def test_the_only_key_of_a_frame_raises(self, setting: Setting) -> None:
        assert (await setting.read(KEYS[:1])).values == [b"v:key-000"]
        assert (await setting.read([b"absent"])).values == [None]
        with pytest.raises(InvalidArgument):
            await setting.read([b""])
        setting.leaves.fail("*", Unavailable("connection refused"))
        with pytest.raises(Unavailable):
            await setting.read(KEYS[:1])

    async def test_a_lone_key_is_a_get(self, setting: Setting) -> None:
        await setting.read(KEYS[:1])
        await setting.read(KEYS[:1], alone=False)
        for method in ("Get", "BatchGet"):
            labels = {"method": method, "outcome": "ok"}
            assert setting.registry.get_sample_value("kvshard_router_legs_total", labels) == 1

    async def test_options_are_obeyed(self, setting: Setting) -> None:
        assert [state.shard for state in rest_of(await setting.read(KEYS, STALE)).states] == list(range(8))
        (state,) = rest_of(await setting.read(KEYS[:1], STALE)).states
        assert state.seqno == len(KEYS)
        assert all(call.request.is_stale_ok for call in setting.leaves.client.calls_of(ShardRead))
        assert not rest_of(await setting.read(KEYS, alone=False)).states

    async def test_timing_on_request(self, setting: Setting) -> None:
        options = types_pb2.ReadOptions(explain_timing=True)
        assert len(rest_of(await setting.read(KEYS[:1], options)).timing.legs) == 1
        assert len(rest_of(await setting.read(KEYS, options)).timing.legs) == 8
        reply = await setting.frames.read(KeysRead("", KEYS, options.SerializeToString()), CLOCK.monotonic() + 5)
        assert len(rest_of(reply).timing.legs) == 8

    async def test_the_account_has_the_legs(self, setting: Setting) -> None:
        account = FrameAccount(ReadTimes(CLOCK.monotonic()))
        await setting.frames.read(KeysRead("", KEYS, b"", True), CLOCK.monotonic() + 5, account)
        assert account.times is not None
        assert account.times.fan_out == 8

    async def test_partial_answers_of_a_batch(self, setting: Setting) -> None:
        setting.leaves.fail("leaf-2", Unavailable("connection refused"))
        options = types_pb2.ReadOptions(on_shortfall=types_pb2.SHORTFALL_POLICY_PARTIAL)
        rest = rest_of(await setting.read(KEYS, options, alone=False))
        assert not rest.coverage.complete
        assert len(rest.failures) == len(setting.keys_of("leaf-2"))

    @pytest.mark.parametrize("alone", [True, False])
    async def test_what_hits_the_whole_frame(self, setting: Setting, alone: bool) -> None:
        with pytest.raises(CollectionNotFound):
            await setting.frames.read(KeysRead("nope", KEYS, b"", alone), CLOCK.monotonic() + 5)
        for options in (b"\xff", types_pb2.ReadOptions(consistency=9).SerializeToString()):
            with pytest.raises(InvalidArgument) as caught:
                await setting.frames.read(KeysRead("", KEYS, options, alone), CLOCK.monotonic() + 5)
            assert (caught.value.details.field or "").startswith("options")


class TestWriting:
    @pytest.mark.parametrize("alone", [True, False])
    async def test_puts_and_deletes_in_columns(self, setting: Setting, alone: bool) -> None:
        reply = await setting.write([KEYS[0], b"new", b"absent"], [None, b"v", None], alone=alone)
        assert reply.existed == [True, False, False]
        assert reply.versions[1] > 0
        assert reply.rest == b""
        assert (await setting.read([KEYS[0], b"new"])).values == [None, b"v"]

    async def test_nothing_to_write(self, setting: Setting) -> None:
        for alone in (True, False):
            assert (await setting.write([], alone=alone)).versions == []

    async def test_conditions_and_expiry_reach_the_shards(self, setting: Setting) -> None:
        reply = await setting.write(KEYS[:2], conditions=[0, None], ttl_ms=[0, 5000])
        assert failures_of(reply) == {0: "VERSION_CONFLICT"}
        assert (reply.versions[0], reply.existed[0]) == (0, True)
        sent = [call.request for call in setting.leaves.client.calls_of(ShardWrite)[-2:]]
        assert sorted(ttl for request in sent for ttl in request.ttl_ms) == [0, 5000]

    async def test_a_wrong_operation_fails_alone(self, setting: Setting) -> None:
        keys = [b"a", b"", b"b", b"c", b"d", b"e"]
        values = [b"1", b"1", bytes(VALUE_MAX_BYTES + 1), b"1", b"1", b"1"]
        ttl_ms, conditions = [0, 0, 0, TTL_MAX_MS + 1, 0, 0], [None, None, None, None, -1, 0]
        reply = await setting.write(keys, values, ttl_ms=ttl_ms, conditions=conditions)
        assert failures_of(reply) == dict.fromkeys([1, 2, 3, 4], "INVALID_ARGUMENT")
        failures = kv_pb2.BatchWriteResponse.FromString(reply.rest).failures
        assert [each.failure.field for each in failures] == ["key", "value", "ttl_ms", "condition"]
        assert [version > 0 for version in reply.versions] == [True, False, False, False, False, True]
        assert (await setting.read(keys)).values == [b"1", None, None, None, None, b"1"]
        with pytest.raises(InvalidArgument):
            await setting.write(keys, values, ttl_ms=ttl_ms, conditions=conditions, alone=False)

    async def test_only_wrong_operations(self, setting: Setting) -> None:
        seqno = setting.leaves.seqno
        reply = await setting.write([b"", b""], [b"1", None], id=types_pb2.RequestId(client="me", number=1))
        assert (reply.versions, reply.existed) == ([0, 0], [False, False])
        assert setting.leaves.seqno == seqno

    async def test_a_silent_shard_fails_its_operations_only(self, setting: Setting) -> None:
        setting.leaves.fail("leaf-2", Unavailable("connection refused", ErrorDetails(maybe_applied=True)))
        reply = await setting.write(KEYS)
        failures = kv_pb2.BatchWriteResponse.FromString(reply.rest).failures
        assert [KEYS[each.index] for each in failures] == setting.keys_of("leaf-2")
        assert all(each.failure.maybe_applied for each in failures)

    async def test_the_only_operation_of_a_frame_raises(self, setting: Setting) -> None:
        with pytest.raises(VersionConflict):
            await setting.write(KEYS[:1], conditions=[0])
        with pytest.raises(InvalidArgument) as caught:
            await setting.write([b""])
        assert caught.value.details.field == "key"
        assert (await setting.write(KEYS[:1], [None])).existed == [True]
        for method in ("Put", "Delete"):
            legs = setting.registry.get_sample_value("kvshard_router_legs_total", {"method": method, "outcome": "ok"})
            assert legs == 1

    async def test_sent_again_it_takes_effect_once(self, setting: Setting) -> None:
        id = types_pb2.RequestId(client="me", number=1, wants_watermarks=True)
        first = await setting.write(KEYS, id=id)
        watermarks = kv_pb2.BatchWriteResponse.FromString(first.rest).watermarks
        assert watermarks
        id.is_retry, id.watermarks = True, watermarks
        seqno = setting.leaves.seqno
        assert (await setting.write(KEYS, id=id)).versions == first.versions
        assert setting.leaves.seqno == seqno

    async def test_so_it_does_when_some_operations_are_wrong(self, setting: Setting) -> None:
        """The others are a part of what the id names, wherever they stand in it."""
        keys = [KEYS[0], b"", *KEYS[1:]]
        id = types_pb2.RequestId(client="me", number=1)
        first = await setting.write(keys, [b"v"] * len(keys), id=id)
        id.is_retry = True
        seqno = setting.leaves.seqno
        again = await setting.write(keys, [b"v"] * len(keys), id=id)
        assert (again.versions, failures_of(again)) == (first.versions, {1: "INVALID_ARGUMENT"})
        id.positions.extend([0, 1, 5])
        id.total = len(keys)
        part = await setting.write([keys[0], b"", keys[5]], [b"v"] * 3, id=id)
        assert part.versions == [first.versions[0], 0, first.versions[5]]
        assert setting.leaves.seqno == seqno

    @pytest.mark.parametrize("alone", [True, False])
    @pytest.mark.parametrize(
        "columns",
        [{"values": [b"v"]}, {"values": []}, {"values": [b"v"] * 3}, {"ttl_ms": [1]}, {"conditions": [None] * 3}],
        ids=str,
    )
    async def test_columns_must_be_of_equal_length(self, setting: Setting, alone: bool, columns: dict) -> None:
        seqno = setting.leaves.seqno
        for keys in ([b"a", b"b"], [b"", b"b"]):
            with pytest.raises(InvalidArgument):
                await setting.write(keys, **{"values": [b"v"] * 2, **columns}, alone=alone)
        assert setting.leaves.seqno == seqno

    @pytest.mark.parametrize(
        ("id", "field"),
        [
            (b"\xff", "request_id"),
            (types_pb2.RequestId(client="c").SerializeToString(), "request_id.number"),
            (types_pb2.RequestId(client="c", number=1, positions=[0], total=5).SerializeToString(), "request_id.positions"),
        ],
    )
    async def test_a_wrong_request_id_is_refused(self, setting: Setting, id: bytes, field: str) -> None:
        request = KeysWrite("", KEYS[:2], [b"v", b"v"], request_id=id, is_each_alone=True)
        with pytest.raises(InvalidArgument) as caught:
            await setting.frames.write(request, CLOCK.monotonic() + 5)
        assert caught.value.details.field == field

    @pytest.mark.parametrize("error", [Expired("forgotten"), Unavailable("down")])
    async def test_errors_of_a_lone_operation_keep_what_they_say(self, setting: Setting, error: KvShardError) -> None:
        setting.leaves.fail("*", type(error)(error.message, ErrorDetails(maybe_applied=True)))
        with pytest.raises(type(error)) as caught:
            await setting.write(KEYS[:1], id=types_pb2.RequestId(client="me", number=1, is_retry=True))
        assert caught.value.details.maybe_applied
