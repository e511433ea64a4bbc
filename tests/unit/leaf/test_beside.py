"""A collection that gets another schema: its index is built beside the one that serves, and takes its place at once."""

import asyncio
import dataclasses
import json

import pytest

from kvshard.clock import SystemClock
from kvshard.clustermap import Collection, SchemaChange
from kvshard.errors import InvalidArgument, NotReady
from kvshard.model import ShardSearch
from leaf import index_slot
from leaf.index_report import IndexReport
from leaf.indexer import Indexer
from tests.fakes.log_source import FakeLogSource

OLD = Collection("docs", 2, {"body": "text"})
CHANGING = dataclasses.replace(OLD, change=SchemaChange({"body": "text", "n": "integer"}, 2), versions=2)
NEW = CHANGING.changed()
CALLED_OFF = dataclasses.replace(OLD, versions=2)


class House:
    """An indexer with its source; it refreshes when it is asked to."""

    def __init__(self, root):
        self.root = root
        self.clock = SystemClock()
        self.source = FakeLogSource(self.clock.wall_ms)
        self.indexer = Indexer(root, self.source, self.clock, refresh_interval_s=60.0)

    def put(self, shard, documents):
        values = {key: json.dumps(document).encode() for key, document in documents.items()}
        seqno = self.source.write(shard, OLD.id, values, 0)
        self.indexer.notify(shard, seqno)
        return seqno

    async def keys(self, collection, query, shard=0, **options):
        request = ShardSearch(shard=shard, epoch=1, collection_id=OLD.id, query=query, filters=[], limit=10, **options)
        reply = await self.indexer.search(request, collection, self.clock.monotonic() + 10)
        return sorted(hit.key for hit in reply.hits)

    async def until_ready(self, shards, version=2):
        async with asyncio.timeout(10):
            while self.indexer.ready(OLD.id, version) != frozenset(shards):
                await asyncio.sleep(0.001)

    async def reopened(self, collection):
        await self.indexer.close()
        house = House(self.root)
        house.source = self.source
        house.indexer = Indexer(self.root, self.source, self.clock, refresh_interval_s=60.0)
        for shard in (0, 1):
            house.indexer.open_shard(shard, [collection])
        return house


@pytest.fixture
async def house(tmp_path):
    house = House(tmp_path / "index")
    for shard in (0, 1):
        house.indexer.open_shard(shard, [OLD])
        await house.indexer.refresh(shard, house.put(shard, {b"a": {"body": "x", "n": 1}, b"b": {"body": "x", "n": "y"}}))
    yield house
    house.source.scan_gate.set()
    await house.indexer.close()


async def test_the_old_index_serves_until_the_map_says_otherwise(house):
    house.indexer.set_collections([0, 1], [CHANGING])
    await house.until_ready({0, 1})
    assert await house.keys(CHANGING, "x") == [b"a", b"b"]
    with pytest.raises(InvalidArgument, match="n"):
        await house.keys(CHANGING, "n:1")
    house.indexer.set_collections([0, 1], [NEW])
    assert await house.keys(NEW, "n:1") == [b"a"]
    assert await house.keys(NEW, "x") == [b"a", b"b"], "a value that does not fit is left out of its field alone"
    assert house.indexer.report(0, OLD.id).misfits == {"n": 1}
    await house.indexer.refresh(0, 0)
    async with asyncio.timeout(5):
        while (house.root / "0-2").exists():
            await asyncio.sleep(0.001)
    assert sorted(path.name for path in house.root.iterdir() if path.name.startswith("0-")) == ["0-2-2"]


async def test_a_search_sees_after_the_switch_what_it_saw_before(house):
    house.indexer.set_collections([0, 1], [CHANGING])
    await house.until_ready({0, 1})
    await house.indexer.refresh(0, house.put(0, {b"c": {"body": "x", "n": 1}}))
    assert await house.keys(CHANGING, "x") == [b"a", b"b", b"c"]
    house.indexer.set_collections([0, 1], [NEW])
    assert await house.keys(NEW, "x AND n:1") == [b"a", b"c"]


async def test_nobody_waits_for_an_index_that_is_not_used_yet(house):
    before = house.indexer.indexed_through(0, OLD.id)
    house.source.scan_gate.clear()
    house.source.has_scan_begun.clear()
    house.indexer.set_collections([0, 1], [CHANGING])
    assert house.indexer.indexed_through(0, OLD.id) == before > 0, "one that waits for its turn needs no log"
    await asyncio.to_thread(house.source.has_scan_begun.wait, 5)
    assert house.indexer.indexed_through(0, OLD.id) == 0, "the log from here on is needed for it"
    house.source.scan_gate.set()
    await house.until_ready({0, 1})
    seqno = house.put(0, {b"c": {"body": "y"}})
    await house.indexer.refresh(0, seqno)
    assert await house.keys(CHANGING, "y") == [b"c"]
    assert house.indexer.indexed_through(0, OLD.id) < seqno
    assert house.indexer.report(0, OLD.id) == IndexReport(seqno, 2, 0, 0, {"n": 1})


async def test_indexes_are_built_one_after_the_other(house, monkeypatch):
    monkeypatch.setattr(index_slot, "REBUILD_SLICE_S", 0.0)
    house.source.scan_gate.clear()
    house.indexer.set_collections([0, 1], [CHANGING])
    slots = [house.indexer._slots[shard, OLD.id, 2] for shard in (0, 1)]
    seen = set()
    original = slots[0].step, slots[1].step

    def noting(number):
        def step(should_stop):
            original[number](should_stop)
            seen.add(tuple(slot.has_begun for slot in slots))

        return step

    for number in (0, 1):
        slots[number].step = noting(number)
    house.source.scan_gate.set()
    await house.until_ready({0, 1})
    assert (True, True) not in seen
    assert {(True, False), (False, True)} <= seen


async def test_a_leaf_that_was_stopped_goes_on_where_an_index_was_whole(house):
    house.indexer.set_collections([0, 1], [CHANGING])
    await house.until_ready({0, 1})
    scans = house.source.scans
    again = await house.reopened(CHANGING)
    await again.until_ready({0, 1})
    assert house.source.scans == scans, "neither index was built anew"
    again.indexer.set_collections([0, 1], [NEW])
    assert await again.keys(NEW, "n:1") == [b"a"]
    await again.indexer.close()


async def test_a_leaf_that_was_away_during_the_switch_builds_the_new_index(house):
    again = await house.reopened(NEW)
    assert await again.keys(NEW, "n:1") == [b"a"]
    assert not (house.root / "0-2").exists()
    await again.indexer.close()


async def test_a_change_that_is_called_off_leaves_nothing(house):
    house.indexer.set_collections([0, 1], [CHANGING])
    await house.until_ready({0, 1})
    house.indexer.set_collections([0, 1], [CALLED_OFF])
    assert await house.keys(CALLED_OFF, "x") == [b"a", b"b"]
    async with asyncio.timeout(5):
        while (house.root / "0-2-2").exists():
            await asyncio.sleep(0.001)
    assert house.indexer.ready(OLD.id, 2) == frozenset()


async def test_the_index_of_a_splits_child_is_forked_off_the_new_one_too(house):
    house.indexer.set_collections([0, 1], [CHANGING])
    await house.until_ready({0, 1})
    house.indexer.split(0, 7, 0, house.source.last_slot(0), house.put(0, {b"c": {"body": "x", "n": 5}}))
    assert (7, OLD.id, 2) in house.indexer._awaited
    async with asyncio.timeout(5):
        while house.indexer._awaited:
            house.indexer._applied[0] = house.source.applied_seqno(0)
            house.indexer._start()
            await asyncio.sleep(0.001)
    assert {path.name for path in house.root.iterdir()} >= {"7-2", "7-2-2"}


async def test_a_collection_of_plain_values_becomes_searchable(house):
    plain = Collection("plain", 3)
    changing = dataclasses.replace(plain, change=SchemaChange({"body": "text"}, 2), versions=2)
    house.source.write(0, plain.id, {b"k": b"not JSON", b"d": b'{"body": "word"}'}, 0)
    house.indexer.notify(0, house.source.applied_seqno(0))
    house.indexer.set_collections([0], [OLD, changing])
    async with asyncio.timeout(10):
        while house.indexer.ready(plain.id, 2) != frozenset({0}):
            await asyncio.sleep(0.001)
    house.indexer.set_collections([0], [OLD, changing.changed()])
    request = ShardSearch(shard=0, epoch=1, collection_id=plain.id, query="word", filters=[], limit=10)
    reply = await house.indexer.search(request, changing.changed(), house.clock.monotonic() + 10)
    assert [hit.key for hit in reply.hits] == [b"d"]
    assert house.indexer.report(0, plain.id).misfits == {"": 1}


async def test_a_search_that_waits_for_the_old_index_is_told_to_ask_elsewhere(house):
    seqno = house.put(0, {b"c": {"body": "x"}})
    house.indexer.require(0, seqno + 1)
    house.source.commit(0, None)
    search = asyncio.create_task(house.keys(OLD, "x", refresh=True))
    await asyncio.sleep(0)
    house.indexer.set_collections([0, 1], [NEW])
    with pytest.raises(NotReady, match="was closed"):
        await search
