"""The driver with an engine in memory: what is shown when, what a failure does, how the map is followed."""

import asyncio
from dataclasses import replace

import pytest
from fakes.engines import BrokenRowEngine, FaultyEngine
from fakes.hosted_leaf import DOCS, HostedLeaf, hosted_leaf
from fakes.maps import FakeMaps, one_leaf_map

from kvshard.clustermap import Replica as MapReplica
from kvshard.errors import DataLoss, FailedPrecondition, Internal, NotReady, StaleEpoch, StorageFailed, Unavailable
from kvshard.model import ShardWrite, changed
from leaf import layout
from leaf.memory_engine import MemoryEngine
from leaf.operations import WriteOperation, keys_of
from leaf.replica import Replica
from leaf.replication import events as ev
from leaf.replication.actions import Action
from leaf.replication.core import APPLY_MAX_KEYS
from leaf.replication.events import Propose
from leaf.replication.messages import Entry, Outdated, Prepare


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0)


async def test_one_flush_for_the_writes_of_many_shards() -> None:
    engine = MemoryEngine()
    async with hosted_leaf(engine, FakeMaps(one_leaf_map(shards=8))) as leaf:
        before, groups = engine.flushes, len(leaf.groups)
        await asyncio.gather(*(leaf.write({b"k%d" % n: b"v"}, shard) for shard in range(8) for n in range(10)))
        assert engine.flushes == before + 1
        assert leaf.groups[groups:] == [80]
        assert all(leaf.read(b"k9", shard) == b"v" for shard in range(8))


async def test_nothing_is_acknowledged_or_shown_before_the_flush() -> None:
    engine = FaultyEngine()
    async with hosted_leaf(engine) as leaf:
        engine.hold()
        writes = engine.writes
        write = asyncio.ensure_future(leaf.write({b"k": b"v"}))
        await until(lambda: engine.writes > writes)
        conflict = asyncio.ensure_future(leaf.write({b"k": b"w"}, conditions=[0]))
        noop = asyncio.ensure_future(leaf.write({b"other": None}))
        for _ in range(20):
            await asyncio.sleep(0)
        assert leaf.read(b"k") is None
        assert leaf.scan().keys == []
        assert leaf.read_all([b"k"]).documents == 0
        assert not write.done()
        assert not conflict.done(), "it would show a version that may never be"
        assert noop.done(), "it rests on nothing in flight"
        engine.release()
        reply = await write
        assert (await conflict).errors[0].details.current_version == reply.versions[0]
        assert leaf.read(b"k") == b"v"
        assert leaf.index.notified[-1] == (0, reply.versions[0])


async def test_a_writer_that_gives_up_does_not_stop_its_write() -> None:
    engine = FaultyEngine()
    async with hosted_leaf(engine) as leaf:
        engine.hold()
        writes = engine.writes
        write = asyncio.ensure_future(leaf.write({b"k": b"v"}))
        await until(lambda: engine.writes > writes)
        write.cancel()
        with pytest.raises(asyncio.CancelledError):
            await write
        engine.release()
        await leaf.write({b"next": b"v"})
        assert leaf.read(b"k") == b"v"


@pytest.mark.parametrize("kind", ["fail_writes", "fail_flushes"])
async def test_a_storage_failure_stops_writes_on_all_shards_and_not_reads(kind: str) -> None:
    engine = FaultyEngine()
    async with hosted_leaf(engine) as leaf:
        await leaf.write({b"k": b"v"})
        setattr(engine, kind, "No space left on device")
        with pytest.raises(StorageFailed, match="No space left on device") as caught:
            await leaf.write({b"k": b"w"})
        assert caught.value.details.maybe_applied
        setattr(engine, kind, "")
        for shard in (0, 1):
            with pytest.raises(StorageFailed):
                await leaf.write({b"k": b"w"}, shard)
            assert leaf.driver.status()[shard].role == "failed"
            assert "No space left on device" in leaf.driver.status()[shard].error
        assert leaf.read(b"k") == b"v"
        await leaf.housekeeper.turn()


async def test_a_failure_to_apply_acknowledges_nothing() -> None:
    engine = FaultyEngine()
    async with hosted_leaf(engine) as leaf:
        engine.hold()
        writes = engine.writes
        write = asyncio.ensure_future(leaf.write({b"k": b"v"}))
        await until(lambda: engine.writes > writes)
        engine.fail_writes = "Input/output error"
        engine.release()
        with pytest.raises(StorageFailed):
            await write
        assert leaf.read(b"k") is None


async def test_a_new_leaf_claims_its_data_and_takes_an_epoch() -> None:
    maps = FakeMaps(one_leaf_map())
    engine = MemoryEngine()
    async with hosted_leaf(engine, maps) as leaf:
        assert [leaf.epoch(shard) for shard in (0, 1)] == [1, 1]
        assert leaf.index.opened == [0, 1]
    assert [maps.current.shards[shard].in_sync[0].incarnation for shard in (0, 1)] == ["incarnation-1", "incarnation-2"]
    async with hosted_leaf(engine.crash(), maps) as again:
        assert [again.epoch(shard) for shard in (0, 1)] == [2, 2], "what was promised in the first is not known any more"
        assert maps.current.shards[0].in_sync[0].incarnation == "incarnation-1"


async def test_a_crash_between_making_and_claiming_data_is_healed() -> None:
    maps = FakeMaps(one_leaf_map(shards=1))
    maps.refuse = [Unavailable("down")]
    leaf = HostedLeaf(maps=maps)
    leaf.driver.start()
    await until(lambda: not maps.refuse)
    await leaf.driver.close()
    assert isinstance(leaf.engine, MemoryEngine)
    async with hosted_leaf(leaf.engine.crash(), maps):
        assert maps.current.shards[0].in_sync[0].incarnation == "incarnation-1"


async def test_lost_data_is_never_served_as_empty() -> None:
    maps = FakeMaps(one_leaf_map())
    async with hosted_leaf(MemoryEngine(), maps) as leaf:
        await leaf.write({b"k": b"v"})
    async with hosted_leaf(MemoryEngine(), maps) as leaf:
        status = leaf.driver.status()[0]
        assert status.role == "failed"
        assert "lost" in status.error
        with pytest.raises(DataLoss, match="lost"):
            leaf.read(b"k")
        with pytest.raises(DataLoss):
            await leaf.write({b"k": b"v"})


async def test_data_of_another_identity_is_not_served() -> None:
    maps = FakeMaps(one_leaf_map())
    engine = MemoryEngine()
    async with hosted_leaf(engine, maps):
        pass
    maps.change_shard(0, in_sync=(MapReplica("leaf-1", "another"),))
    async with hosted_leaf(engine.crash(), maps) as leaf:
        assert "another" in leaf.driver.status()[0].error
        assert leaf.driver.status()[1].role == "primary"


async def test_a_request_routed_by_a_newer_map_makes_the_leaf_look() -> None:
    """One that was routed by an older map is served: the lease decides who may, not the map that led there."""
    async with hosted_leaf() as leaf:
        request = ShardWrite(0, leaf.epoch() - 1, 1, [b"k"], [b"v"])
        before = leaf.maps.refreshes
        await leaf.requests.write(request, 1e9)
        assert leaf.maps.refreshes == before
        await leaf.requests.write(changed(request, epoch=99), 1e9)
        assert leaf.maps.refreshes == before + 1
        with pytest.raises(StaleEpoch):
            await leaf.requests.write(changed(request, shard=55), 1e9)


async def test_a_newer_epoch_of_the_map_is_adopted_behind_a_barrier() -> None:
    engine = FaultyEngine()
    async with hosted_leaf(engine) as leaf:
        epoch = leaf.epoch()
        engine.hold()
        leaf.maps.change_shard(0, epoch=epoch + 5)
        with pytest.raises(NotReady):
            leaf.read(b"k")
        engine.release()
        await until(lambda: leaf.driver.status()[0].role == "primary")
        assert leaf.epoch() == epoch + 5
        await leaf.write({b"k": b"v"})


async def test_a_shard_that_moved_away_is_not_served() -> None:
    async with hosted_leaf() as leaf:
        maps = leaf.maps
        other = replace(maps.current.leaves["leaf-1"], id="leaf-2")
        moved = replace(maps.current.shards[0], epoch=9, primary="leaf-2", in_sync=(MapReplica("leaf-2"),), desired=("leaf-2",))
        maps.install(leaves={**maps.current.leaves, "leaf-2": other}, shards={**maps.current.shards, 0: moved})
        with pytest.raises(StaleEpoch):
            await leaf.requests.write(ShardWrite(0, 2, 1, [b"k"], [b"v"]), 1e9)
        await until(lambda: [status.shard for status in leaf.driver.status()] == [1])
        with pytest.raises(StaleEpoch):
            await leaf.requests.write(ShardWrite(0, 2, 1, [b"k"], [b"v"]), 1e9)


def place_elsewhere(maps: FakeMaps, shard: int) -> None:
    """Another leaf has the shard now."""
    held = maps.current.shards[shard]
    other = replace(maps.current.leaves["leaf-1"], id="leaf-2")
    members = (MapReplica("leaf-2", "another"),)
    moved = replace(held, epoch=held.epoch + 5, primary="leaf-2", in_sync=members, learners=(), desired=("leaf-2",))
    maps.install(leaves={**maps.current.leaves, "leaf-2": other}, shards={**maps.current.shards, shard: moved})


@pytest.mark.parametrize("passes", [0, 1, 2, 3, 5, 50])
async def test_a_shard_moves_away_and_back_with_entries_in_flight(passes: int) -> None:
    engine = FaultyEngine()
    async with asyncio.timeout(5), hosted_leaf(engine) as leaf:
        engine.hold()
        written = engine.writes
        writes = [asyncio.ensure_future(leaf.write({b"flushing": b"v"}))]
        await until(lambda: engine.writes > written)
        writes.append(asyncio.ensure_future(leaf.write({b"queued": b"v"})))
        await asyncio.sleep(0)
        place_elsewhere(leaf.maps, 0)
        for _ in range(passes):
            await asyncio.sleep(0)
        leaf.maps.change_shard(0, desired=("leaf-2", "leaf-1"))
        engine.release()
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        assert all(isinstance(each, Unavailable | StaleEpoch) and each.details.maybe_applied for each in outcomes), outcomes
        await until(lambda: leaf.driver.status()[0].role in ("idle", "removed"))
        await leaf.write({b"k": b"v"}, 1)
        assert leaf.driver.committer.failure is None
        assert not any(status.error for status in leaf.driver.status())


async def test_a_damaged_log_stops_its_replica_alone() -> None:
    engine, maps = MemoryEngine(), FakeMaps(one_leaf_map(shards=3))
    async with hosted_leaf(engine, maps) as leaf:
        for n in range(3):
            await leaf.write({b"k": b"%d" % n}, 1)
    rows = engine.crash(99).rows()
    del rows[layout.log_key(1, 3)]
    async with asyncio.timeout(5), hosted_leaf(MemoryEngine(rows), maps) as leaf:
        assert [status.role for status in leaf.driver.status()] == ["primary", "failed", "primary"]
        with pytest.raises(DataLoss, match="entry 3"):
            leaf.read(b"k", 1)
        await leaf.write({b"k": b"v"}, 2)


async def test_a_coordinator_that_is_down_at_the_start_is_waited_for() -> None:
    maps = FakeMaps(one_leaf_map())
    maps.refuse = [Unavailable("down")] * 3
    async with hosted_leaf(maps=maps) as leaf:
        assert leaf.read(b"k") is None


async def test_state_survives_a_restart_with_its_counts() -> None:
    engine, maps = MemoryEngine(), FakeMaps(one_leaf_map(collections=[DOCS]))
    async with hosted_leaf(engine, maps) as leaf:
        for n in range(30):
            await leaf.write({b"k%d" % (n % 7): b"v%d" % n})
        before = leaf.driver.status()[0]
        await leaf.write({b"k0": None})
    async with hosted_leaf(engine.crash(), maps) as leaf:
        assert leaf.read(b"k1") == b"v29"
        assert leaf.read(b"k0") is None
        after = leaf.driver.status()[0]
        assert after.collections[0].documents == before.collections[0].documents - 1 == 6
        assert after.collections[0].bytes == sum(len(b"k1v29") for _ in range(6))
        assert after.committed == before.committed + 2


async def test_data_that_the_map_does_not_know_is_not_adopted() -> None:
    """The coordinator's file was lost and a new cluster made: its map has other ranges, and lacks the old collections."""
    engine, maps = MemoryEngine(), FakeMaps(one_leaf_map(collections=[DOCS]))
    async with hosted_leaf(engine, maps) as leaf:
        await leaf.write({b"k": b'{"title": "t"}'}, collection_id=DOCS.id)
    kept, forgetful = engine.crash(99), FakeMaps(one_leaf_map())
    async with hosted_leaf(kept, forgetful) as leaf:
        assert "does not know" in leaf.driver.status()[0].error
        with pytest.raises(FailedPrecondition, match="does not know"):
            leaf.read(b"k")
        await leaf.housekeeper.turn()
        assert forgetful.current.shards[0].in_sync[0].incarnation == ""
    async with hosted_leaf(kept.crash(99), maps) as leaf:
        assert leaf.read(b"k", collection_id=DOCS.id) == b'{"title": "t"}'


async def test_a_disk_that_fails_during_the_opening_fails_every_replica() -> None:
    maps = FakeMaps(one_leaf_map(shards=3))
    engine = FaultyEngine()
    async with hosted_leaf(engine, maps):
        pass
    rows = engine.crash(99).rows()
    broken = BrokenRowEngine(rows, layout.meta_key(1, b"applied"))
    async with hosted_leaf(broken, maps) as leaf:
        for _ in range(20):
            await asyncio.sleep(0)
        assert [status.role for status in leaf.driver.status()] == ["failed"] * 3
        with pytest.raises(StorageFailed, match="checksum"):
            leaf.read(b"k")


async def test_the_loop_gets_its_turns_while_much_is_applied() -> None:
    engine = FaultyEngine()
    async with asyncio.timeout(20), hosted_leaf(engine) as leaf:
        engine.hold()
        writes = [asyncio.ensure_future(leaf.write({b"%d-%d" % (n, k): b"v" for k in range(100)})) for n in range(50)]
        await asyncio.sleep(0)
        other = asyncio.ensure_future(leaf.write({b"k": b"v"}, 1))
        await asyncio.sleep(0)
        engine.release()
        seen = {leaf.driver.replicas[0].applied}
        while not all(write.done() for write in writes):
            await asyncio.sleep(0)
            seen.add(leaf.driver.replicas[0].applied)
        assert len(seen) >= 50 * 100 // APPLY_MAX_KEYS
        await other


async def test_a_leaf_that_stops_applies_all_that_is_committed() -> None:
    engine = FaultyEngine()
    leaf = HostedLeaf(engine)
    leaf.driver.start()
    await leaf.driver.wait_open()
    await leaf.settle()
    engine.hold()
    writes = [asyncio.ensure_future(leaf.write({b"%d-%d" % (n, k): b"v" for k in range(100)})) for n in range(20)]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(leaf.driver.close())
    await asyncio.sleep(0)
    engine.release()
    await closing
    assert len(await asyncio.gather(*writes)) == 20


class Defect:
    """Makes a replica's machine fail at events of one kind; notes all that it is given."""

    def __init__(self, replica: Replica, kind: type, error: Exception) -> None:
        assert replica.machine is not None
        self.seen: list[object] = []
        self._step = replica.machine.step
        self._kind = kind
        self._error = error
        replica.machine.step = self  # type: ignore[method-assign]

    def __call__(self, event: ev.Event, now: float) -> list[Action]:
        self.seen.append(event)
        if isinstance(event, self._kind):
            raise self._error
        return self._step(event, now)


@pytest.mark.parametrize("error", [RuntimeError("a defect"), DataLoss("a damaged row")])
async def test_a_defect_stops_its_replica_alone_and_the_others_have_their_ticks(error: Exception) -> None:
    async with asyncio.timeout(5), hosted_leaf() as leaf:
        broken, sound = leaf.driver.replicas[0], leaf.driver.replicas[1]
        Defect(broken, ev.Tick, error)
        watched = Defect(sound, DataLoss, error)
        await until(lambda: broken.error is not None)
        watched.seen.clear()
        await until(lambda: watched.seen)
        assert str(error) in leaf.driver.status()[0].error
        await leaf.write({b"k": b"v"}, 1)


async def test_a_replica_that_stopped_hears_no_more() -> None:
    """Half a step was taken: what it said or acknowledged from then on would rest on nothing."""
    async with hosted_leaf() as leaf:
        replica = leaf.driver.replicas[0]
        broken = Defect(replica, ev.ConfigSeen, RuntimeError("a defect"))
        leaf.maps.change_shard(0, desired=("leaf-1",))
        broken.seen.clear()
        assert replica.machine is not None
        leaf.driver.receive(0, MapReplica("leaf-2", "x"), replica.machine.me, Outdated(99))
        with pytest.raises(Internal, match="a defect"):
            await leaf.write({b"k": b"v"})
        with pytest.raises(Internal, match="a defect"):
            await leaf.driver.wait_readable(0, None, True, 1e9)
        assert not broken.seen


async def test_a_secondary_with_a_slow_disk_holds_no_more_than_the_committers_bound(monkeypatch) -> None:
    """Each shard's primary has a window of entries under way here, and there may be hundreds of shards."""
    maps = FakeMaps(one_leaf_map(shards=4))
    primary = MapReplica("leaf-2", "another")
    other = replace(maps.current.leaves["leaf-1"], id="leaf-2")
    led = {
        shard: replace(config, primary="leaf-2", in_sync=(primary, *config.in_sync), desired=("leaf-2", "leaf-1"))
        for shard, config in maps.current.shards.items()
    }
    maps.install(leaves={**maps.current.leaves, "leaf-2": other}, shards=led)
    engine = FaultyEngine()
    async with asyncio.timeout(5), hosted_leaf(engine, maps) as leaf:
        committer = leaf.driver.committer
        await until(lambda: committer.queued_bytes == 0)
        monkeypatch.setattr("leaf.committer.QUEUE_MAX_BYTES", 200_000)
        engine.hold()
        operation = WriteOperation(1, [b"k"], [bytes(10_000)])

        def send(first: int) -> None:
            for seqno in range(first, first + 20):
                entry = Entry(1, seqno, operation, keys_of(operation), 10_001, None, b"")
                for shard, replica in leaf.driver.replicas.items():
                    assert replica.machine is not None
                    message = Prepare(1, int(seqno > 1), seqno - 1, (entry,), 0)
                    leaf.driver.receive(shard, primary, replica.machine.me, message)

        send(1)
        assert 200_000 <= committer.queued_bytes < 220_000
        taken = [replica.last for replica in leaf.driver.replicas.values()]
        assert max(taken) < 20
        engine.release()
        await until(lambda: committer.queued_bytes == 0)
        send(min(taken) + 1)
        await until(lambda: committer.queued_bytes == 0)
        assert min(replica.last for replica in leaf.driver.replicas.values()) > max(taken), "it goes on when there is room"


async def test_a_write_that_cannot_be_evaluated_concerns_its_caller_alone() -> None:
    def evaluate(token: int) -> Propose:
        raise ValueError("what nobody foresaw")

    async with hosted_leaf() as leaf:
        with pytest.raises(ValueError, match="nobody foresaw"):
            await leaf.driver.write(0, None, 1, evaluate, 1e9)
        await leaf.write({b"k": b"v"})
        assert leaf.read(b"k") == b"v"


async def test_opening_is_tried_again_after_a_failure_that_nobody_foresaw() -> None:
    maps = FakeMaps(one_leaf_map())
    maps.refuse = [RuntimeError("a defect")]
    async with asyncio.timeout(5), hosted_leaf(maps=maps) as leaf:
        assert leaf.read(b"k") is None


async def test_a_leaf_alone_may_stop_at_once_and_one_that_is_waited_for_stops_after_the_grace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with hosted_leaf() as leaf:
        await leaf.write({b"k": b"v"})
        async with asyncio.timeout(5):
            await leaf.driver.leave(60.0)
        assert all(replica.machine.is_stopping for replica in leaf.driver.replicas.values())
        await leaf.write({b"k": b"still"})
        assert leaf.read(b"k") == b"still", "it serves until it is closed"
        monkeypatch.setattr(Replica, "may_stop", lambda self, now: False)
        async with asyncio.timeout(5):
            await leaf.driver.leave(0.0)
