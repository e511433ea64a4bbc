"""A crash after every write and every flush, keeping any prefix of what was not synced: what was acknowledged is there."""

from fakes.clock import HurryingClock
from fakes.engines import CrashingEngine
from fakes.hosted_leaf import hosted_leaf
from fakes.maps import FakeMaps, one_leaf_map

from kvshard.model import ShardRead
from leaf.memory_engine import MemoryEngine
from leaf.shard_store import ShardStore

BATCHES: list[dict[bytes, bytes | None]] = [
    {b"a": b"1", b"b": b"1"},
    {b"a": b"2", b"b": b"2"},
    {b"a": None, b"b": b"x" * 40_000},
    {b"a": b"4", b"b": None},
]
"""Keys a and b change together, so that half a batch would show."""

LEGAL = [(None, None), *((batch[b"a"], batch[b"b"]) for batch in BATCHES)]


def recovered(engine: MemoryEngine) -> tuple[ShardStore, tuple[bytes | None, bytes | None]]:
    """The state after all of the log that a crash left behind is applied: this replica is the only one, so it is committed."""
    store = ShardStore(engine)
    loaded = store.load(0)
    rest = [entry for entry in loaded.entries if entry.seqno > loaded.applied]
    if rest:
        store.apply(0, rest, loaded.dedup)
    first, second = store.read(ShardRead(0, 0, 1, [b"a", b"b"]), now_ms=0).values
    return store, (first, second)


async def test_every_crash_leaves_every_acknowledged_write_and_no_half_one() -> None:
    states: list[tuple[int, MemoryEngine]] = []
    acknowledged = 0
    engine = CrashingEngine(on_state=lambda state: states.append((acknowledged, state)))
    async with hosted_leaf(engine, FakeMaps(one_leaf_map(shards=1))) as leaf:
        for number, batch in enumerate(BATCHES, 1):
            await leaf.write(batch)
            acknowledged = number
    assert len(states) > 30
    for acked, state in states:
        store, found = recovered(state)
        assert found in LEGAL, "half a batch"
        assert LEGAL.index(found) >= acked, f"{acked} were acknowledged"
        counts = store.counts(0, 1)
        live = [(key, value) for key, value in zip((b"a", b"b"), found, strict=True) if value is not None]
        assert counts == (len(live), sum(len(key) + len(value) for key, value in live))


async def test_a_leaf_that_crashed_during_its_recovery_comes_up_again() -> None:
    states: list[MemoryEngine] = []
    maps = FakeMaps(one_leaf_map(shards=1))
    engine = CrashingEngine()
    async with hosted_leaf(engine, maps) as leaf:
        for batch in BATCHES:
            await leaf.write(batch)
        lagging = engine.crash(1)
    second = CrashingEngine(lagging.rows(), on_state=states.append)
    async with hosted_leaf(second, maps) as leaf:
        assert leaf.read(b"a") == b"4"
    for state in states:
        async with hosted_leaf(state, maps, HurryingClock()) as leaf:
            assert (leaf.read(b"a"), leaf.read(b"b")) == (b"4", None)
            await leaf.write({b"a": b"5"})
            assert leaf.read(b"a") == b"5"
