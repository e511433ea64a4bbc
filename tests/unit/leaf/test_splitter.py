"""A split on one leaf, from the wish in the map to the child that serves: what callers see, and what a restart leaves."""

import asyncio

import pytest
from fakes.clock import HurryingClock
from fakes.engines import CrashingEngine
from fakes.hosted_leaf import DOCS, HostedLeaf, hosted_leaf
from fakes.maps import FakeMaps, one_leaf_map

from kvshard import hashing
from kvshard.clustermap import ClusterMap, Leaf, Replica, WantedSplit
from kvshard.errors import NotReady, ShardMoved, Unavailable
from kvshard.model import ShardRead, ShardScan, ShardWrite, changed
from leaf import layout
from leaf.memory_engine import MemoryEngine
from leaf.operations import Split
from leaf.replication.messages import Entry

KEYS = [b"key-%03d" % n for n in range(100)]


def maps_of_one_shard() -> FakeMaps:
    return FakeMaps(one_leaf_map(shards=1, collections=[DOCS]))


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


def halves(at_slot: int) -> tuple[list[bytes], list[bytes]]:
    low = [key for key in KEYS if hashing.slot(key, 0) < at_slot]
    return low, [key for key in KEYS if key not in low]


async def split(leaf: HostedLeaf) -> int:
    """Split shard 0 and wait until the child serves; its number."""
    child = leaf.maps.wish_split(0).child
    await until(lambda: child in leaf.driver.replicas and leaf.driver.replicas[child].is_primary)
    return child


async def test_each_half_is_where_the_map_says_and_nowhere_else() -> None:
    async with hosted_leaf(maps=maps_of_one_shard()) as leaf:
        await leaf.write({key: b"v" + key for key in KEYS})
        child = await split(leaf)
        low, high = halves(leaf.maps.current.shards[child].first_slot)
        assert low
        assert high
        assert leaf.read_all(low).values == [b"v" + key for key in low]
        assert leaf.read_all(high, child).values == [b"v" + key for key in high]
        assert {error.reason for error in leaf.read_all(high).errors.values()} == {"SHARD_MOVED"}
        assert leaf.read_all(high).values == [None] * len(high)
        counts = [leaf.store.counts(shard, 1).documents for shard in (0, child)]
        assert counts == [len(low), len(high)]
        await until(lambda: not leaf.store.state(0).splits.departed)
        assert leaf.scan().keys == low
        assert leaf.store.headers(0, 1, high) == [None] * len(high)
        for each in (0, child):
            await leaf.write({low[0] if each == 0 else high[0]: b"new"}, each)
        assert leaf.read(high[0], child) == b"new"


async def test_a_write_of_both_halves_does_its_half_and_names_the_other() -> None:
    async with hosted_leaf(maps=maps_of_one_shard()) as leaf:
        child = await split(leaf)
        _, high = halves(leaf.maps.current.shards[child].first_slot)
        request = ShardWrite(0, leaf.epoch(), 1, KEYS, [b"v"] * 100, client="c", number=1)
        reply = await leaf.requests.write(request, 1e9)
        assert sorted(KEYS[index] for index in reply.errors) == high
        assert {error.reason for error in reply.errors.values()} == {"SHARD_MOVED"}
        part = [KEYS.index(key) for key in high]
        moved = ShardWrite(child, 1, 1, high, [b"v"] * len(high), client="c", number=1, positions=part, total=100)
        done = await leaf.requests.write(moved, 1e9)
        assert not done.errors
        again = await leaf.requests.write(request, 1e9)
        assert (again.versions, again.errors.keys()) == (reply.versions, reply.errors.keys())
        assert (await leaf.requests.write(moved, 1e9)).versions == done.versions


async def test_a_write_done_before_the_split_is_known_to_both_halves() -> None:
    async with hosted_leaf(maps=maps_of_one_shard()) as leaf:
        await leaf.write(dict.fromkeys(KEYS, b"0"))
        request = ShardWrite(0, leaf.epoch(), 1, KEYS, [b"v"] * 100, conditions=[1] * 100, client="c", number=7)
        before = {key: header[0] for key, header in zip(KEYS, leaf.store.headers(0, 1, KEYS), strict=True) if header}
        request = changed(request, conditions=[before[key] for key in KEYS])
        done = await leaf.requests.write(request, 1e9)
        assert not done.errors
        child = await split(leaf)
        for shard, keys in zip((0, child), halves(leaf.maps.current.shards[child].first_slot), strict=True):
            positions = [KEYS.index(key) for key in keys]
            part = ShardWrite(shard, 1, 1, keys, [b"v"] * len(keys), client="c", number=7, positions=positions, total=100)
            reply = await leaf.requests.write(part, 1e9)
            assert (reply.versions, reply.errors) == ([done.seqno] * len(keys), {}), "done once, and known"


async def test_scans_are_told_of_a_split_in_either_direction() -> None:
    async with hosted_leaf(maps=maps_of_one_shard()) as leaf:
        await leaf.write(dict.fromkeys(KEYS, b"v"))
        request = ShardScan(0, 1, 1, b"", None, 1_000, cuts=0)
        assert leaf.requests.scan(request) is not None
        with pytest.raises(NotReady):
            leaf.requests.scan(changed(request, cuts=1))
        child = await split(leaf)
        with pytest.raises(ShardMoved):
            leaf.requests.scan(request)
        low, high = halves(leaf.maps.current.shards[child].first_slot)
        reply = leaf.requests.scan(changed(request, cuts=1))
        assert reply is not None
        assert (reply.keys, reply.documents) == (low, len(low))
        reply = leaf.requests.scan(ShardScan(child, 1, 1, b"", None, 1_000, cuts=0))
        assert reply is not None
        assert reply.keys == high


async def test_shards_can_be_split_again_and_again() -> None:
    async with hosted_leaf(maps=maps_of_one_shard()) as leaf:
        await leaf.write(dict.fromkeys(KEYS, b"v"))
        await split(leaf)
        child = await split(leaf)
        leaf.maps.wish_split(1)
        await until(lambda: 3 in leaf.driver.replicas and leaf.driver.replicas[3].is_primary)
        assert leaf.maps.current.shards[0].cuts == 2
        read = [leaf.read_all([key], leaf.maps.current.shard_of_key(key)).values[0] for key in KEYS]
        assert read == [b"v"] * 100
        counted = sum(leaf.store.counts(shard, 1).documents for shard in leaf.maps.current.shards)
        assert counted == 100
        assert child == 2


async def test_the_end_is_written_though_the_coordinator_is_away_for_a_while() -> None:
    async with hosted_leaf(maps=maps_of_one_shard()) as leaf:
        await leaf.write(dict.fromkeys(KEYS, b"v"))
        leaf.maps.refuse = [Unavailable("down")] * 2
        child = await split(leaf)
        assert leaf.store.counts(child, 1).documents > 0
        assert not leaf.driver.replicas[0].machine.is_dividing


async def test_writes_of_the_part_that_leaves_are_refused_from_the_entry_on() -> None:
    async with hosted_leaf(maps=maps_of_one_shard()) as leaf:
        await leaf.write(dict.fromkeys(KEYS, b"v"))
        leaf.maps.refuse = [Unavailable("down")] * 10**6
        wanted = leaf.maps.wish_split(0)
        await until(lambda: leaf.store.state(0).splits.cuts == 1)
        low, high = halves(wanted.at_slot)
        assert leaf.driver.replicas[0].machine.is_dividing
        reply = await leaf.write(dict.fromkeys((low[0], high[0]), b"w"))
        assert [error.reason for error in reply.errors.values()] == ["SHARD_MOVED"]
        assert leaf.read(low[0]) == b"w"


async def test_a_leaf_that_dies_anywhere_in_a_split_ends_it_after_its_restart() -> None:
    """With every prefix of what was not synced, and the map as it was just then."""
    states: list[tuple[ClusterMap, dict[bytes, bytes], MemoryEngine]] = []
    maps, engine = maps_of_one_shard(), CrashingEngine()
    value_of = dict.fromkeys(KEYS, b"0")

    async def write_on(leaf: HostedLeaf) -> None:
        for number in range(1, 40):
            key = KEYS[number * 7 % 100]
            shard = maps.current.shard_of_key(key)
            if shard in leaf.driver.replicas and leaf.driver.replicas[shard].is_primary:
                reply = await leaf.write({key: b"%d" % number}, shard)
                if not reply.errors:
                    value_of[key] = b"%d" % number

    async with hosted_leaf(engine, maps) as leaf:
        leaf.store.splits.chunk_rows = 10
        await leaf.write(dict.fromkeys(KEYS, b"0"))
        engine.on_state = lambda state: states.append((maps.current, dict(value_of), state))
        writer = asyncio.ensure_future(write_on(leaf))
        await split(leaf)
        await writer
        await until(lambda: not leaf.store.state(0).splits.departed)
        engine.on_state = None
    assert len(states) > 200
    for current, acknowledged, state in states[::7]:
        async with hosted_leaf(state, FakeMaps(current), HurryingClock()) as leaf:
            if len(leaf.maps.current.shards) == 1:
                leaf.maps.change_shard(0, split=WantedSplit(1, 1 << 15))
            await until(lambda leaf=leaf: 1 in leaf.driver.replicas and leaf.driver.replicas[1].is_primary)
            for key, value in acknowledged.items():
                found = leaf.read(key, leaf.maps.current.shard_of_key(key))
                assert found is not None
                assert int(found) >= int(value), f"{key!r} has lost a write"
            documents = [leaf.store.counts(shard, 1).documents for shard in (0, 1)]
            assert documents == [len(half) for half in halves(1 << 15)]


async def test_expired_keys_of_the_part_are_swept_by_the_child_alone() -> None:
    async with hosted_leaf(maps=maps_of_one_shard()) as leaf:
        await leaf.write(dict.fromkeys(KEYS, b"v"), ttl_ms=[1_000] * 100)
        leaf.maps.refuse = [Unavailable("down")] * 10**6
        leaf.maps.wish_split(0)
        await until(lambda: leaf.store.state(0).splits.cuts == 1)
        leaf.clock.advance(2)
        await leaf.housekeeper.turn()
        low, high = halves(1 << 15)
        await until(lambda: leaf.store.counts(0, 1).documents == 0)
        assert leaf.store.headers(0, 1, low) == [None] * len(low)
        leaf.maps.refuse = []
        await until(lambda: 1 in leaf.driver.replicas and leaf.driver.replicas[1].is_primary)
        assert leaf.store.counts(1, 1).documents == len(high)
        await leaf.housekeeper.turn()
        await until(lambda: leaf.store.counts(1, 1).documents == 0)


async def test_a_stale_read_does_not_show_what_has_left() -> None:
    async with hosted_leaf(maps=maps_of_one_shard()) as leaf:
        await leaf.write(dict.fromkeys(KEYS, b"v"))
        child = await split(leaf)
        high = halves(leaf.maps.current.shards[child].first_slot)[1][0]
        reply = leaf.requests.read(ShardRead(0, 1, 1, [high], is_stale_ok=True, cuts=0))
        assert reply is not None
        assert reply.errors[0].reason == "SHARD_MOVED"


def in_a_set_of_two(maps: FakeMaps, primary: str = "leaf-2") -> None:
    """Let another leaf be in sync of shard 0 too; nothing is heard of it."""
    config = maps.current.shards[0]
    maps.install(leaves={**maps.current.leaves, "leaf-2": Leaf("leaf-2", "127.0.0.1:2")})
    members = (*config.in_sync, Replica("leaf-2", "other"))
    maps.change_shard(0, epoch=config.epoch + 1, primary=primary, in_sync=members, desired=("leaf-2", "leaf-1"))


async def end_elsewhere(maps: FakeMaps) -> None:
    """The other leaf, as the primary, has split the shard and written it into the map."""
    wanted = WantedSplit(1, 1 << 15)
    maps.change_shard(0, split=wanted)
    await maps.finish_split(0, maps.current.shards[0].epoch, wanted, frozenset({"leaf-1", "leaf-2"}))


def apply_split(leaf: HostedLeaf) -> None:
    """What the replica does once the split is committed."""
    replica = leaf.driver.replicas[0]
    entry = Entry(replica.epoch, leaf.store.state(0).applied + 1, Split(1, 1 << 15, (1 << 16) - 1), None)
    leaf.store.append(0, [entry])
    leaf.driver._apply(replica, [entry], None)


async def test_a_replica_in_sync_waits_for_the_split_instead_of_counting_its_data_as_lost() -> None:
    async with hosted_leaf(maps=maps_of_one_shard()) as leaf:
        await leaf.write(dict.fromkeys(KEYS, b"v"))
        in_a_set_of_two(leaf.maps)
        await end_elsewhere(leaf.maps)
        await until(lambda: 1 in leaf.driver.replicas)
        assert leaf.driver.replicas[1].role == "recovering"
        assert leaf.store.held(1).incarnation == ""
        with pytest.raises(NotReady):
            leaf.read(KEYS[0], 1)
        apply_split(leaf)
        await until(lambda: leaf.driver.replicas[1].machine is not None)
        machine = leaf.driver.replicas[1].machine
        assert machine.me.incarnation == "incarnation-1.1"
        assert (machine.applied, machine.role.value) == (leaf.store.state(0).applied, "secondary")
        assert leaf.store.counts(1, 1).documents == len(halves(1 << 15)[1])


async def test_a_learner_keeps_what_it_has_of_the_child_and_asks_to_join_with_it() -> None:
    async with hosted_leaf(maps=maps_of_one_shard()) as leaf:
        await leaf.write(dict.fromkeys(KEYS, b"v"))
        in_a_set_of_two(leaf.maps)
        config = leaf.maps.current.shards[0]
        me = config.in_sync[0]
        leaf.maps.change_shard(
            0, epoch=config.epoch + 1, in_sync=config.in_sync[1:], learners=(me,), split=WantedSplit(1, 1 << 15)
        )
        await until(lambda: (shadow := leaf.store.state(0).splits.shadow) is not None and shadow.is_complete)
        await end_elsewhere(leaf.maps)
        await until(lambda: 1 in leaf.driver.replicas)
        assert leaf.driver.replicas[1].machine is None, "it is being made"
        apply_split(leaf)
        await until(lambda: leaf.driver.replicas[1].machine is not None)
        assert leaf.driver.replicas[1].role == "idle"
        assert leaf.driver.replicas[1].machine.me.incarnation == "incarnation-1.1"


async def test_data_that_did_not_come_out_of_the_split_is_made_anew() -> None:
    """The parent's replica here got a state that was cut already: nothing is waited for."""
    async with hosted_leaf(maps=maps_of_one_shard()) as leaf:
        in_a_set_of_two(leaf.maps)
        await end_elsewhere(leaf.maps)
        await until(lambda: 1 in leaf.driver.replicas)
        batch = leaf.engine.new_batch()
        batch.put(layout.range_key(0), layout.pack_range((1 << 15) - 1, 1))
        leaf.engine.write(batch)
        leaf.driver.look_at_places()
        await until(lambda: leaf.driver.replicas[1].machine is not None)
        assert leaf.driver.replicas[1].machine.me.incarnation == "incarnation-2"


async def test_a_parent_that_moves_away_is_kept_until_its_part_is_copied() -> None:
    async with hosted_leaf(maps=maps_of_one_shard()) as leaf:
        leaf.store.splits.chunk_rows = 1
        await leaf.write(dict.fromkeys(KEYS, b"v"))
        in_a_set_of_two(leaf.maps)
        await end_elsewhere(leaf.maps)
        apply_split(leaf)
        config = leaf.maps.current.shards[0]
        leaf.maps.change_shard(0, epoch=99, in_sync=config.in_sync[1:], desired=("leaf-2",))
        await until(lambda: 0 not in leaf.driver.replicas)
        await until(lambda: leaf.driver.replicas[1].machine is not None)
        assert leaf.store.counts(1, 1).documents == len(halves(1 << 15)[1])
        assert leaf.store.held(0).incarnation == ""
