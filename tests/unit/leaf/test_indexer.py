import asyncio
import json
import threading

import pytest

from kvshard.clock import SystemClock
from kvshard.clustermap import Collection
from kvshard.collapsing import shown_after
from kvshard.errors import (
    DeadlineExceeded,
    InvalidArgument,
    MalformedQuery,
    NotReady,
    ResourceExhausted,
    Unavailable,
)
from kvshard.model import SearchAfter, SearchShape, ShardSearch, TermStatistics
from kvshard.rpc.request_times import waited_s
from leaf import indexer as indexer_module
from leaf.admission import SearchQueue
from leaf.hit_finder import READ_CHUNK
from leaf.index_slot import IndexSlot, Phase, fold
from leaf.indexer import Indexer
from leaf.operations import DropCollection, WriteOperation
from leaf.text_index import IndexFailed, TextIndex
from tests.fakes.clock import ManualClock
from tests.fakes.log_source import FakeLogSource

DOCS = Collection("docs", 2, {"body": "text", "tag": "keyword", "n": "integer"})
PLAIN = Collection("default", 1)


class WallClock(SystemClock):
    """Real durations, and a wall clock that is set by hand."""

    def __init__(self):
        self.now_ms = 1_000_000

    def wall_ms(self):
        return self.now_ms

    def __repr__(self):
        return f"WallClock({self.now_ms} ms)"


class House:
    """An indexer with its source."""

    def __init__(self, root):
        self.root = root
        self.clock = WallClock()
        self.source = FakeLogSource(self.clock.wall_ms)
        # Refreshes only when asked: what a test sees is then what it asked for.
        self.wasted: list[float] = []
        self.indexer = Indexer(root, self.source, self.clock, refresh_interval_s=60.0, on_wasted_seconds=self.wasted.append)

    def reopened(self):
        house = House(self.root)
        house.source = self.source
        house.clock = self.clock
        house.indexer = Indexer(self.root, self.source, self.clock, refresh_interval_s=60.0)
        return house

    def put(self, shard, documents, expires_at_ms=0):
        values = {key: None if document is None else json.dumps(document).encode() for key, document in documents.items()}
        seqno = self.source.write(shard, DOCS.id, values, expires_at_ms)
        self.indexer.notify(shard, seqno, [operation for _, operation in self.source.shards[shard].entries[-1:]])
        return seqno

    async def search(self, query="*", shard=0, timeout=10.0, **options):
        request = ShardSearch(
            shard=shard, epoch=1, collection_id=DOCS.id, query=query, **({"filters": [], "limit": 10} | options)
        )
        return await self.indexer.search(request, DOCS, self.clock.monotonic() + timeout)

    async def keys(self, query="*", **options):
        return [hit.key for hit in (await self.search(query, **options)).hits]


@pytest.fixture
async def house(tmp_path):
    house = House(tmp_path / "index")
    yield house
    house.source.scan_gate.set()
    house.source.read_gate.set()
    await house.indexer.close()


async def test_writes_are_found_after_a_refresh(house):
    house.indexer.open_shard(0, [DOCS, PLAIN])
    await house.indexer.refresh(0, 0)
    seqno = house.put(0, {b"a": {"body": "hello world"}, b"b": {"body": "hello"}})
    house.source.write(0, PLAIN.id, {b"a": b"not a document"})
    house.source.commit(0, None)
    await house.indexer.refresh(0, seqno + 2)
    reply = await house.search("hello")
    assert [hit.key for hit in reply.hits] == [b"b", b"a"]
    assert json.loads(reply.hits[0].document) == {"body": "hello"}
    assert (reply.hits[0].version, reply.total, reply.documents, reply.indexed_through) == (seqno, 2, 2, seqno + 2)
    assert house.indexer.indexed_through(0, DOCS.id) == seqno + 2
    assert house.indexer.indexed_through(0, 77) == 0


async def test_refresh_of_a_search(house):
    house.indexer.open_shard(0, [DOCS])
    assert await house.keys() == []
    house.put(0, {b"a": {"body": "hello"}})
    assert await house.keys("hello", refresh=True) == [b"a"]


async def test_news_are_refreshed_without_being_asked(tmp_path):
    house = House(tmp_path)
    stepped = asyncio.Event()
    loop = asyncio.get_running_loop()
    house.indexer = Indexer(tmp_path / "index", house.source, house.clock, 0.001, lambda seconds: loop.call_soon(stepped.set))
    house.indexer.open_shard(0, [DOCS])
    await house.indexer.refresh(0, 0)
    for round_ in range(3):
        seqno = house.put(0, {b"%d" % round_: {"body": "hello"}})
        while house.indexer.indexed_through(0, DOCS.id) < seqno:
            stepped.clear()
            await asyncio.wait_for(stepped.wait(), 5)
    assert await house.keys() == [b"0", b"1", b"2"]
    await house.indexer.close()


async def test_who_is_patient_waits_for_the_refresh_in_turn(house):
    house.indexer.open_shard(0, [DOCS])
    await house.indexer.refresh(0, 0)  # built, so that the next entry is a refresh
    await house.indexer.refresh(0, house.put(0, {b"a": {"body": "hello"}}))
    first = house.put(0, {b"b": {"body": "hello"}})
    patient = asyncio.create_task(house.indexer.refresh(0, first, is_hurried=False))
    for _ in range(5):
        await asyncio.sleep(0)
    house.indexer.notify(0, first)  # more news do not hurry it either
    _, waits = await asyncio.wait({patient}, timeout=0.05)
    assert waits
    assert await house.keys("hello") == [b"a"]
    await house.indexer.refresh(0, house.put(0, {b"c": {"body": "hello"}}))
    await asyncio.wait_for(patient, 5)
    assert await house.keys("hello") == [b"a", b"b", b"c"]


async def test_what_is_waited_for_before_it_is_there_is_seen_as_soon_as_it_is(house):
    house.indexer.open_shard(0, [DOCS])
    before = house.put(0, {b"a": {"body": "hello"}})
    await house.indexer.refresh(0, before)
    waiting = asyncio.create_task(house.indexer.refresh(0, before + 2))
    _, waits = await asyncio.wait({waiting}, timeout=0.05)
    assert waits
    looks = house.source.looks
    _, waits = await asyncio.wait({waiting}, timeout=0.05)
    assert waits
    assert house.source.looks == looks, "nothing is looked at again and again for it"
    house.put(0, {b"b": {"body": "hello"}})
    house.put(0, {b"c": {"body": "hello"}})
    await asyncio.wait_for(waiting, 5)
    assert await house.keys("hello") == [b"a", b"b", b"c"]


async def test_an_answer_tells_how_old_the_oldest_write_is_that_it_does_not_show(house):
    house.indexer.open_shard(0, [DOCS])
    await house.indexer.refresh(0, 0)
    await house.indexer.refresh(0, house.put(0, {b"a": {"body": "hello"}}))
    assert (await house.search("hello")).unseen_age_ms == 0
    plain = house.source.write(0, PLAIN.id, {b"a": b"plain"})
    house.indexer.notify(0, plain, [operation for _, operation in house.source.shards[0].entries[-1:]])
    assert (await house.search("hello")).unseen_age_ms == 0, "no index lacks a write to another collection"
    began = house.clock.monotonic()
    first = house.put(0, {b"b": {"body": "hello"}})
    await asyncio.sleep(0.02)
    house.put(0, {b"c": {"body": "hello"}})
    reply = await house.search("hello")
    assert 20 <= reply.unseen_age_ms <= (house.clock.monotonic() - began) * 1000 + 1
    assert (await house.search("hello", refresh=True)).unseen_age_ms == 0
    assert (await house.search("hello")).indexed_through > first


async def test_documents_come_from_the_store_and_gone_ones_are_left_out(house):
    house.indexer.open_shard(0, [DOCS])
    await house.indexer.refresh(0, house.put(0, {b"%02d" % i: {"body": "x", "n": i} for i in range(20)}))
    house.put(0, {b"00": {"body": "changed"}, b"01": None, b"03": None})
    reply = await house.search("x", limit=5)
    assert [hit.key for hit in reply.hits] == [b"00", b"02", b"04", b"05", b"06"]
    assert reply.has_more
    assert json.loads(reply.hits[0].document) == {"body": "changed"}
    assert reply.total == 18
    after = SearchAfter([], reply.hits[-1].score, b"06")
    following = await house.search("x", limit=5, after=after, taken=5)
    assert [hit.key for hit in following.hits] == [b"07", b"08", b"09", b"10", b"11"]


async def test_a_collapsed_search_finds_each_group_however_many_documents_come_before_it(house):
    """The groups found are left out of the next look; what was shown on earlier pages is passed over."""
    house.indexer.open_shard(0, [DOCS])
    documents = {b"%03d" % i: {"body": "x", "n": i, "tag": "large" if i < 300 else f"t{i % 3}"} for i in range(330)}
    documents |= {b"none%d" % i: {"body": "x", "n": 1_000 + i} for i in range(5)}
    await house.indexer.refresh(0, house.put(0, documents))
    await house.indexer.refresh(0, house.put(0, {b"000": None}))
    shape = SearchShape(collapse="tag")
    reply = await house.search("x", sort="n", limit=3, shape=shape)
    assert [(hit.key, hit.group, hit.group_size) for hit in reply.hits] == [
        (b"001", "large", 299),
        (b"300", "t0", 10),
        (b"301", "t1", 10),
    ]
    assert (reply.total, reply.has_more) == (334, True)
    shape = SearchShape(collapse="tag", shown=shown_after(b"", reply.hits))
    after = SearchAfter([301], 0.0, b"301")
    reply = await house.search("x", sort="n", limit=3, shape=shape, after=after, taken=3)
    assert [(hit.key, hit.group, hit.group_size) for hit in reply.hits] == [(b"302", "t2", 10), (b"none0", None, 5)]
    assert not reply.has_more
    by_number = await house.search("x", sort="-n", limit=400, shape=SearchShape(collapse="n"))
    assert [hit.group for hit in by_number.hits] == [*range(1_004, 999, -1), *range(329, 0, -1)]
    counted = await house.search("x", sort="n", limit=5, shape=SearchShape(count_up_to=7))
    assert (counted.total, counted.is_total_exact) == (38, False), "a window of hits tells that there are more than seven"
    assert (await house.search("x", sort="n", limit=5, shape=SearchShape(count_up_to=100))).total == 334


async def test_expired_documents_vanish_at_their_time(house):
    house.indexer.open_shard(0, [DOCS])
    house.put(0, {b"a": {"body": "x"}}, expires_at_ms=house.clock.now_ms + 10)
    await house.indexer.refresh(0, house.put(0, {b"b": {"body": "x"}}))
    assert (await house.search("x")).total == 2
    house.clock.now_ms += 10
    reply = await house.search("x")
    assert ([hit.key for hit in reply.hits], reply.total) == ([b"b"], 1)
    assert (await house.search("x", limit=0)).total == 1


async def test_options_of_a_search(house):
    house.indexer.open_shard(0, [DOCS])
    documents = {b"%d" % i: {"body": "some ÄÖ words here", "tag": ["all", f"t{i % 2}"], "n": 9 - i} for i in range(4)}
    await house.indexer.refresh(0, house.put(0, documents | {b"x": {"body": ["nothing", "other wordy text"]}}))
    reply = await house.search("wor*", filters=["tag:all"], sort="n", facets=["tag"], facet_limit=2, keys_only=True, limit=2)
    assert [(hit.key, hit.sort_values, hit.score, hit.document) for hit in reply.hits] == [
        (b"3", [6], 0.0, b""),
        (b"2", [7], 0.0, b""),
    ]
    assert reply.total == 4
    assert reply.facets["tag"]["all"] == 4
    assert reply.facet_errors == {"tag": 2}
    counted = await house.search("wor*", limit=0, facets=["tag"])
    assert (counted.hits, counted.total, counted.facet_errors) == ([], 5, {})
    (marked,) = (await house.search('"äö words"', limit=1, highlight=["body"])).hits
    (fragment,) = marked.highlights
    assert [fragment.fragment[start:end] for start, end in fragment.spans] == ["ÄÖ", "words"]
    (marked,) = (await house.search("wordy*", highlight=["body"], keys_only=True)).hits
    assert (marked.document, marked.highlights[0].fragment) == (b"", "other wordy text")
    (unmarked, *_) = (await house.search("tag:all", highlight=["body"])).hits
    assert unmarked.highlights == []


@pytest.mark.parametrize(
    ("options", "field", "part"),
    [
        ({"query": 'a "b'}, "query", "unbalanced quote at character 3"),
        ({"filters": ["a", "nope:x"]}, "filters[1]", "unknown field nope"),
        ({"sort": "-body"}, "sort", "body is a text field"),
        ({"sort": "tga"}, "sort", "did you mean tag?"),
        ({"facets": ["n"]}, "facets", "n is no keyword field"),
        ({"highlight": ["tag"]}, "highlight", "tag is no text field"),
        ({"limit": 1001}, "limit", "1000"),
        ({"facet_limit": 1001}, "facet_limit", "1000"),
    ],
)
async def test_requests_that_are_refused(house, options, field, part):
    house.indexer.open_shard(0, [DOCS])
    with pytest.raises(InvalidArgument, match=None) as caught:
        await house.search(**options)
    assert (caught.value.details.field, part in caught.value.message) == (field, True)
    if "query" in options:
        assert isinstance(caught.value, MalformedQuery)


async def test_a_search_that_shares_its_page_tells_what_is_among_its_hits(house):
    house.indexer.open_shard(0, [DOCS])
    house.put(0, {b"k%d" % number: {"body": "tail " + "end " * (number // 2), "n": number} for number in range(8)})
    await house.indexer.refresh(0, 1)
    shipped = TermStatistics(800, {"body": 3_600}, {"body": {"tail": 80}})
    whole = await house.search("tail", statistics=shipped, together=10)
    assert (len(whole.hits), whole.complete_to) == (8, None), "nothing is missing"
    scores = [hit.score for hit in whole.hits]
    for limit in range(1, 8):
        part = await house.search("tail", statistics=shipped, together=10, limit=limit)
        assert [hit.score for hit in part.hits] == scores[:limit]
        assert part.has_more
        assert scores[limit] < part.complete_to < scores[limit] + 1e-6, "no more than the next one has"
    assert (await house.search("tail", statistics=shipped, limit=3)).complete_to is None, "it was not asked for"
    house.source.write(0, DOCS.id, {whole.hits[0].key: None})
    part = await house.search("tail", statistics=shipped, together=10, limit=3)  # one is gone, and the page is filled up
    assert [hit.score for hit in part.hits] == scores[1:4]
    assert part.complete_to is None or part.complete_to > scores[4]
    collapsed = await house.search("tail", statistics=shipped, together=10, limit=2, shape=SearchShape(collapse="n"))
    assert collapsed.complete_to is None


async def test_what_cannot_be_searched(house):
    with pytest.raises(NotReady):
        await house.search(shard=5)
    house.indexer.open_shard(0, [DOCS])
    with pytest.raises(InvalidArgument, match="has no schema"):
        await house.indexer.search(ShardSearch(0, 1, 1, "*", [], 1), PLAIN, house.clock.monotonic() + 5)
    await house.indexer.refresh(0, 0)
    with pytest.raises(DeadlineExceeded):
        await house.search(timeout=-1.0)


async def test_reopening_replays_only_the_rest(house):
    house.indexer.open_shard(0, [DOCS])
    first = house.put(0, {b"a": {"body": "x"}})
    await house.indexer.refresh(0, first)
    await house.indexer.close()
    house.source.scans = 0
    again = house.reopened()
    second = again.source.write(0, DOCS.id, {b"b": b'{"body": "x"}', b"a": None})
    again.indexer.open_shard(0, [DOCS])
    await again.indexer.refresh(0, second)
    assert await again.keys("x") == [b"b"]
    assert again.source.scans == 0
    await again.indexer.close()


async def test_a_compacted_log_leads_to_a_rebuild(house):
    house.indexer.open_shard(0, [DOCS])
    await house.indexer.refresh(0, house.put(0, {b"a": {"body": "x"}}))
    house.source.write(0, DOCS.id, {b"b": b'{"body": "x"}', b"a": None})
    seqno = house.source.write(0, DOCS.id, {b"c": b'{"body": "x"}'})
    house.source.trim(0)
    house.indexer.notify(0, seqno)
    await house.indexer.refresh(0, seqno)
    assert await house.keys("x") == [b"b", b"c"]


async def test_an_index_ahead_of_the_log_is_rebuilt(house):
    house.indexer.open_shard(0, [DOCS])
    for _ in range(3):
        await house.indexer.refresh(0, house.put(0, {b"a": {"body": "x"}}))
    await house.indexer.close()
    again = house.reopened()
    again.source = FakeLogSource(house.clock.wall_ms)
    again.indexer = Indexer(house.root, again.source, house.clock)
    again.indexer.open_shard(0, [DOCS])
    assert await again.keys("x") == []
    await again.indexer.close()


@pytest.mark.parametrize("damage", ["removed", "truncated", "no sidecar"])
async def test_a_damaged_folder_is_rebuilt(house, damage):
    house.indexer.open_shard(0, [DOCS])
    seqno = house.put(0, {b"%04d" % i: {"body": "x"} for i in range(1500)})
    await house.indexer.refresh(0, seqno)
    await house.indexer.close()
    (folder,) = house.root.iterdir()
    if damage == "removed":
        for path in (folder / "segments").iterdir():
            path.unlink()
    elif damage == "truncated":
        path = next((folder / "segments").glob("*.idx"))
        path.write_bytes(path.read_bytes()[:10])
    else:
        (folder / "indexed.json").unlink()
    house.source.trim(0)
    again = house.reopened()
    again.indexer.open_shard(0, [DOCS])
    assert (await again.search("x")).total == 1500
    assert again.source.scans >= 3
    assert again.indexer.indexed_through(0, DOCS.id) == seqno
    await again.indexer.close()


async def test_a_search_waits_for_a_rebuild_until_its_deadline(house):
    house.put(0, {b"a": {"body": "x"}})
    house.source.scan_gate.clear()
    house.indexer.open_shard(0, [DOCS])
    with pytest.raises(NotReady, match="index of shard 0 is being rebuilt") as caught:
        await house.search("x", timeout=0.05)
    assert caught.value.details.shards == (0,)
    assert house.indexer.indexed_through(0, DOCS.id) == 0
    waiting = asyncio.create_task(house.keys("x"))
    await asyncio.sleep(0)
    house.source.scan_gate.set()
    assert await waiting == [b"a"]


async def test_writes_during_a_rebuild_are_not_lost(house):
    house.put(0, {b"%04d" % i: {"body": "x"} for i in range(600)})
    house.source.scan_gate.clear()
    house.indexer.open_shard(0, [DOCS])
    seqno = house.put(0, {b"0000": None, b"9999": {"body": "x"}, b"0001": {"body": "y"}})
    house.source.scan_gate.set()
    await house.indexer.refresh(0, seqno)
    assert ((await house.search("x")).total, await house.keys("y")) == (599, [b"0001"])


async def test_damage_found_by_a_search_is_mended(house, monkeypatch):
    house.indexer.open_shard(0, [DOCS])
    await house.indexer.refresh(0, house.put(0, {b"a": {"body": "x"}}))
    await house.search("x")
    slot = house.indexer._slots[0, DOCS.id, 1]
    slot._rebuilt_at = float("-inf")  # long ago
    broken, scans = slot.index, house.source.scans
    broken.statistics.searcher = FailingSearcher()
    assert await house.keys("x") == [b"a"]
    assert slot.index is not broken
    assert house.source.scans > scans


async def test_a_query_that_always_fails_does_not_rebuild_for_ever(house):
    house.indexer.open_shard(0, [DOCS])
    await house.indexer.refresh(0, house.put(0, {b"a": {"body": "x"}}))
    slot = house.indexer._slots[0, DOCS.id, 1]
    slot.index.statistics.searcher = FailingSearcher()
    scans = house.source.scans
    for _ in range(3):
        with pytest.raises(Exception, match="the search index of shard 0 failed"):
            await house.search("x")
    assert house.source.scans == scans


class FailingSearcher:
    def __getattr__(self, name):
        raise ValueError("Data corrupted: test")


async def test_collections_come_and_go(house):
    other = Collection("other", 3, {"body": "text"})
    house.indexer.open_shard(0, [DOCS])
    house.indexer.open_shard(1, [DOCS])
    house.indexer.set_collections([0, 1, 2], [DOCS, other, PLAIN])
    await house.indexer.refresh(0, 0)
    await house.indexer.refresh(1, 0)
    assert sorted(path.name for path in house.root.iterdir()) == ["0-2", "0-3", "1-2", "1-3"]
    house.indexer.set_collections([0, 1], [other])
    house.indexer.open_shard(2, [other])
    await house.indexer.refresh(2, 0)
    assert sorted(path.name for path in house.root.iterdir()) == ["0-3", "1-3", "2-3"]
    house.indexer.close_shard(0)
    with pytest.raises(NotReady):
        await house.search(shard=0)
    await house.indexer.refresh(0, 5)  # nothing to wait for


async def test_folders_of_collections_dropped_meanwhile_are_removed(house):
    (house.root / "0-77" / "segments").mkdir(parents=True)
    (house.root / "10-77").mkdir()
    house.indexer.open_shard(0, [DOCS])
    await house.indexer.refresh(0, 0)
    assert sorted(path.name for path in house.root.iterdir()) == ["0-2", "10-77"]


async def test_a_failing_source_delays_but_does_not_stop_the_index(house):
    house.indexer.open_shard(0, [DOCS])
    await house.indexer.refresh(0, house.put(0, {b"a": {"body": "x"}}))
    house.source.failure = Unavailable("not now")
    seqno = house.put(0, {b"b": {"body": "x"}})
    waiting = asyncio.create_task(house.indexer.refresh(0, seqno))
    await asyncio.to_thread(house.source.has_failed.wait, 5)
    assert await house.keys("x") == [b"a"]  # searches go on with what there is
    house.source.failure = None
    await waiting
    assert await house.keys("x") == [b"a", b"b"]


async def test_a_poison_document_is_skipped(house):
    house.indexer.open_shard(0, [DOCS])
    house.put(0, {b"a": {"body": "x"}, b"b": {"body": 5}, b"c": [1]})
    await house.indexer.refresh(0, house.put(0, {b"d": {"body": "x"}}))
    assert await house.keys() == [b"a", b"b", b"d"]
    assert await house.keys("body:*") == [b"a", b"d"]
    assert house.indexer.report(0, DOCS.id).misfits == {"body": 1, "": 1}


async def test_a_killed_writer_is_reopened_and_its_poison_left_out(house):
    house.indexer.open_shard(0, [DOCS])
    await house.indexer.refresh(0, house.put(0, {b"a": {"body": "x"}}))
    index = house.indexer._slots[0, DOCS.id, 1].index
    write = index.write

    def killed(changes):
        if b"b" in changes:
            index.discard_changes()
            raise indexer_module.IndexFailed("An index writer was killed")
        write(changes)

    index.write = killed
    seqno = house.put(0, {b"b": {"body": "x"}, b"c": {"body": "x"}})
    await house.indexer.refresh(0, seqno)
    assert await house.keys("x") == [b"a", b"c"]


async def test_too_many_searches_are_shed(house, monkeypatch):
    monkeypatch.setattr(house.indexer, "queue", SearchQueue(indexer_module.SEARCH_THREADS, searches_max=3))
    house.put(0, {b"a": {"body": "x"}})
    house.source.scan_gate.clear()
    house.indexer.open_shard(0, [DOCS])
    waiting = [asyncio.create_task(house.keys("x")) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted) as caught:
        await house.search("x")
    assert caught.value.details.retry_after_ms
    house.source.scan_gate.set()
    assert await asyncio.gather(*waiting) == [[b"a"]] * 3
    assert await house.keys("x") == [b"a"]


async def test_a_cancelled_search_leaves_nothing_behind(house):
    house.put(0, {b"a": {"body": "x"}})
    house.source.scan_gate.clear()
    house.indexer.open_shard(0, [DOCS])
    waiting = asyncio.create_task(house.keys("x"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert house.indexer.queue.searches == 0
    house.source.scan_gate.set()
    assert await house.keys("x") == [b"a"]


async def under_way(house, **options):
    """A search that is in the middle of reading its first documents, of more than two chunks."""
    house.indexer.open_shard(0, [DOCS])
    seqno = house.put(0, {b"%03d" % n: {"body": "x"} for n in range(3 * READ_CHUNK)})
    await house.indexer.refresh(0, seqno)
    house.source.read_gate.clear()
    search = asyncio.create_task(house.search("x", limit=3 * READ_CHUNK, **options))
    assert await asyncio.to_thread(house.source.has_read_begun.wait, 10.0)
    return search


async def test_a_running_search_that_is_cancelled_stops_at_its_next_slice(house):
    search = await under_way(house)
    search.cancel()
    with pytest.raises(asyncio.CancelledError):
        await search
    assert house.indexer.queue.searches == 0
    house.source.read_gate.set()
    while not house.wasted:
        await asyncio.sleep(0)
    assert house.source.reads == 1
    assert house.wasted[0] > 0.0


async def test_a_running_search_stops_after_its_deadline(house):
    search = await under_way(house, timeout=0.5)
    with pytest.raises(DeadlineExceeded):
        await search
    house.source.read_gate.set()
    while not house.wasted:
        await asyncio.sleep(0)
    assert house.source.reads == 1


async def test_a_queued_search_that_is_cancelled_never_starts(house):
    running = [await under_way(house)]
    running += [asyncio.create_task(house.search(f"x n:{n}")) for n in range(1, indexer_module.SEARCH_THREADS)]
    gone = asyncio.create_task(house.search("x tag:gone"))
    kept = asyncio.create_task(house.search("x tag:kept"))
    while house.indexer.queue.searches < len(running) + 2:
        await asyncio.sleep(0)
    gone.cancel()
    house.source.read_gate.set()
    await asyncio.gather(kept, *running)
    assert gone.cancelled()
    assert not house.wasted
    assert house.source.reads == 3 + len(running) - 1 + 1


async def test_time_in_the_queue_is_told_from_time_of_work(house):
    search = await under_way(house)
    began = house.clock.monotonic()
    others = [asyncio.create_task(timed(house, f"x n:{n}")) for n in range(2 * indexer_module.SEARCH_THREADS)]
    while house.clock.monotonic() < began + 0.05:
        await asyncio.sleep(0)
    house.source.read_gate.set()
    await search
    waits = await asyncio.gather(*others)
    assert max(waits) >= 0.04


async def timed(house, query):
    """How long a search noted that it waited."""
    await house.search(query)
    return waited_s()


async def test_closing_fails_who_waits_and_ends_the_threads(tmp_path):
    house = House(tmp_path / "index")
    house.put(0, {b"a": {"body": "x"}})
    house.source.scan_gate.clear()
    house.indexer.open_shard(0, [DOCS])
    waiting = asyncio.create_task(house.search("x"))
    await asyncio.to_thread(house.source.has_scan_begun.wait, 5)
    closing = asyncio.create_task(house.indexer.close())
    await asyncio.sleep(0)
    house.source.scan_gate.set()
    await closing
    with pytest.raises(NotReady):
        await waiting
    with pytest.raises(NotReady):
        await house.search("x")
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("indexing", "search"))]


async def test_an_indexer_without_shards_closes(tmp_path):
    await Indexer(tmp_path, FakeLogSource(), SystemClock()).close()


async def test_shards_do_not_mix(house):
    for shard in range(3):
        house.indexer.open_shard(shard, [DOCS])
        await house.indexer.refresh(shard, house.put(shard, {b"k%d" % shard: {"body": "x"}}))
    assert [await house.keys("x", shard=shard) for shard in range(3)] == [[b"k0"], [b"k1"], [b"k2"]]


def test_fold_keeps_the_last_state_of_each_key():
    entries = [
        (1, WriteOperation(2, [b"a", b"b", b"a"], [b"1", b"2", None], [0, 9, 0])),
        (2, WriteOperation(3, [b"c"], [b"3"])),
        (3, None),
        (4, WriteOperation(2, [b"a"], [b"4"])),
    ]
    assert fold(entries, 2) == (False, {b"a": (b"4", 0), b"b": (b"2", 9)})
    assert fold([*entries, (5, DropCollection(2)), (6, WriteOperation(2, [b"z"], [b"5"]))], 2) == (True, {b"z": (b"5", 0)})
    assert fold([*entries, (5, DropCollection(3))], 3) == (True, {})


def split(house, child=7, at_slot=1 << 15):
    seqno = house.source.split(0, child, at_slot)
    house.indexer.notify(0, seqno)
    house.indexer.split(0, child, at_slot, (1 << 16) - 1, seqno)
    house.indexer.open_shard(child, [DOCS])
    return seqno


async def test_a_split_gives_each_shard_its_half_without_a_rebuild(house):
    house.indexer.open_shard(0, [DOCS])
    keys = [b"k%02d" % n for n in range(40)]
    house.put(0, {key: {"body": "word"} for key in keys})
    assert (await house.search("word", refresh=True)).total == 40
    house.put(0, {b"late": {"body": "word"}})
    scans = house.source.scans
    split(house)
    found = [await house.search("word", shard=shard, limit=100) for shard in (0, 7)]
    by_half = [{hit.key for hit in reply.hits} for reply in found]
    everything = {*keys, b"late"}
    high = {key for key in everything if house.source.slot_of(key) >= 1 << 15}
    assert by_half == [everything - high, high]
    assert [reply.total for reply in found] == [len(half) for half in by_half]
    assert house.source.scans == scans, "the child's index was forked, not built"
    await house.indexer.refresh(7, house.source.applied_seqno(7))
    house.put(7, {max(high): None})
    assert (await house.search("word", shard=7, refresh=True)).total == len(high) - 1


async def test_without_a_fork_the_childs_index_is_built_from_its_values(house, monkeypatch):
    house.indexer.open_shard(0, [DOCS])

    def fails(*_):
        raise IndexFailed("no links on this disk")

    monkeypatch.setattr(TextIndex, "fork", fails)
    house.put(0, {b"k%02d" % n: {"body": "word"} for n in range(40)})
    await house.search("word", refresh=True)
    split(house)
    totals = [(await house.search("word", shard=shard)).total for shard in (0, 7)]
    assert sum(totals) == 40
    assert min(totals) > 0


async def test_a_parent_that_is_closed_in_a_split_lets_the_child_build_its_own(house):
    house.indexer.open_shard(0, [DOCS])
    house.put(0, {b"k%02d" % n: {"body": "word"} for n in range(40)})
    await house.search("word", refresh=True)
    seqno = house.source.split(0, 7, 1 << 15)
    house.indexer.split(0, 7, 1 << 15, (1 << 16) - 1, seqno)
    house.indexer.close_shard(0)
    house.indexer.open_shard(7, [DOCS])
    assert (await house.search("word", shard=7)).total > 0


async def test_an_index_that_was_not_cut_before_a_restart_is_cut_after_it(house):
    house.indexer.open_shard(0, [DOCS])
    house.put(0, {b"k%02d" % n: {"body": "word"} for n in range(40)})
    await house.search("word", refresh=True)
    await house.indexer.close()
    house.source.split(0, 7, 1 << 15)
    again = house.reopened()
    again.indexer.open_shard(0, [DOCS])
    again.indexer.open_shard(7, [DOCS])
    totals = [(await again.search("word", shard=shard)).total for shard in (0, 7)]
    assert sum(totals) == 40
    await again.indexer.close()


async def test_an_index_that_is_read_while_the_shard_is_split_is_not_forked(house):
    """A part of what has left was not read any more: the child would lack it."""
    keys = [b"k%04d" % n for n in range(1_500)]
    house.put(0, {key: {"body": "word"} for key in keys})
    house.source.scan_gate.clear()
    house.indexer.open_shard(0, [DOCS])
    searching = asyncio.create_task(house.search("word", limit=1))
    await asyncio.to_thread(house.source.has_scan_begun.wait, 5)
    seqno = house.source.split(0, 7, 1 << 15)
    house.source.scan_gate.set()
    house.indexer.notify(0, seqno)
    house.indexer.split(0, 7, 1 << 15, (1 << 16) - 1, seqno)
    house.indexer.open_shard(7, [DOCS])
    low = [key for key in keys if house.source.slot_of(key) < 1 << 15]
    assert (await searching).total == len(low)
    assert (await house.search("word", shard=7)).total == len(keys) - len(low)


async def test_an_index_behind_answers_nothing_before_it_has_what_is_required(house):
    house.indexer.open_shard(0, [DOCS])
    house.put(0, {b"a": {"body": "word"}})
    assert (await house.search("word", refresh=True)).total == 1
    seqno = house.put(0, {b"b": {"body": "word"}})
    assert (await house.search("word")).total == 1, "as it is, until the next refresh"
    house.indexer.require(0, seqno)
    assert (await house.search("word")).total == 2


async def test_writes_of_shards_without_an_index_wake_nobody(house, monkeypatch):
    rounds = []
    original = house.indexer._step_slots

    async def step_slots():
        rounds.append(len(rounds))
        return await original()

    monkeypatch.setattr(house.indexer, "_step_slots", step_slots)
    house.indexer.open_shard(0, [PLAIN])
    house.indexer.remove_shard(1)  # Something to do, so that the task runs.
    while not rounds:
        await asyncio.sleep(0)
    for seqno in range(1, 20):
        house.indexer.notify(0, seqno)
        for _ in range(5):
            await asyncio.sleep(0)
    assert len(rounds) == 1
    house.indexer.open_shard(0, [DOCS, PLAIN])
    seqno = house.put(0, {b"a": {"body": "hello"}})
    await house.indexer.refresh(0, seqno)
    assert len(rounds) > 1


@pytest.mark.parametrize(("took_s", "ahead_s"), [(0.04, 0.08), (0.3, 0.1)])
def test_a_refresh_begins_so_early_that_a_write_is_seen_after_the_interval(tmp_path, monkeypatch, took_s, ahead_s):
    clock, source = ManualClock(), FakeLogSource()
    slot = IndexSlot(tmp_path / "index", 0, DOCS, source, clock)
    while slot.phase is not Phase.SERVING:
        slot.step(lambda: False)
    seqno = source.write(0, DOCS.id, {b"a": b'{"body": "hello"}'})
    pull, began = source.committed_entries, clock.monotonic()

    def slowly(*arguments):
        clock.advance(took_s)
        return pull(*arguments)

    monkeypatch.setattr(source, "committed_entries", slowly)
    slot.step(lambda: False)
    assert slot.covers(seqno)
    assert clock.monotonic() == pytest.approx(began + took_s)
    seqno = source.write(0, DOCS.id, {b"b": b'{"body": "hello"}'})
    assert slot.due_at(seqno, 0, 0.5) == pytest.approx(began + took_s + 0.5 - ahead_s)
    slot.close()
