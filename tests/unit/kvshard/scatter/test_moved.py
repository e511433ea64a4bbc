"""Requests that meet a split: everything is found and written once, whichever map the router has."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from fakes.leaf_client import ANY_LEAF, FakeLeafClient
from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from prometheus_client import CollectorRegistry

from kvshard.clock import SystemClock
from kvshard.clustermap import ClusterMap, WantedSplit
from kvshard.errors import ErrorDetails, ShardMoved, Unavailable
from kvshard.model import ShardRead, ShardScan, ShardSearch, ShardWrite
from kvshard.scatter import scan as scan_module
from kvshard.scatter import scan_chunks
from kvshard.scatter.coverage import KnownCounts
from kvshard.scatter.kv import KeyValueOperations
from kvshard.scatter.requests import (
    DEFAULT_READ_POLICY,
    ReadPolicy,
    SearchQuery,
    WriteColumns,
    key_range,
    request_identity,
    request_identity_of_part,
    write_columns,
)
from kvshard.scatter.scan import ScanOperation, ScanRequest
from kvshard.scatter.scatter import Scatter
from kvshard.scatter.tokens import TokenCodec
from kvshard.splitting import divided
from kvshard.telemetry import RouterMetrics
from router.search import SearchOperation

CLOCK = SystemClock()
KEYS = [b"key-%03d" % number for number in range(60)]


class SlowMaps(FakeMapSource):
    """The split shows in the map after so many reads of it."""

    def __init__(self, current: ClusterMap) -> None:
        super().__init__(current)
        self.reads_until_shown = 0
        self.later: ClusterMap | None = None

    async def refresh(self) -> ClusterMap:
        self.reads_until_shown -= 1
        if self.later is not None and self.reads_until_shown <= 0:
            self.upcoming, self.later = self.later, None
        return await super().refresh()


class Setting:
    """Two shards; `split` cuts shard 0, of which the router learns later."""

    def __init__(self, starts: bool = False) -> None:
        self.maps = SlowMaps(cluster_map(shards=2, leaves=2))
        self.leaves = MemoryLeaves()
        self.leaves.client.starts = starts
        self.scatter = Scatter(self.maps, CLOCK, RouterMetrics(CollectorRegistry()), FakeLeafClient().ping)
        self.known = KnownCounts()
        self.kv = KeyValueOperations(self.maps, self.leaves.client, self.scatter, self.known, CLOCK)
        codec = TokenCodec("cluster")
        self.scans = ScanOperation(self.maps, self.leaves.client, self.scatter, self.known, codec, CLOCK)
        self.searches = SearchOperation(self.maps, self.leaves.client, self.scatter, self.known, codec, CLOCK)

    def split(self, shard: int = 0, reads_until_shown: int = 1) -> int:
        current = self.maps.later or self.maps.current
        child = max(current.shards) + 1
        config = current.shards[shard]
        parent, made = divided(replace(config, split=WantedSplit(child, config.middle_slot)))
        self.leaves.split(shard, child, made.first_slot)
        self.maps.later = replace(current, version=current.version + 1, shards={**current.shards, shard: parent, child: made})
        self.maps.reads_until_shown = reads_until_shown
        return child

    async def put(self, keys: list[bytes], value: bytes = b"v", deadline_s: float = 5.0, **more: Any) -> Any:
        columns = write_columns(keys, [value] * len(keys), [], [], [])
        return await self.kv.batch_write("", columns, False, CLOCK.monotonic() + deadline_s, **more)

    async def get(self, keys: list[bytes], deadline_s: float = 5.0, policy: Any = DEFAULT_READ_POLICY) -> Any:
        return await self.kv.batch_get("", keys, policy, CLOCK.monotonic() + deadline_s)

    def sent(self, kind: type) -> list[Any]:
        return [call.request for call in self.leaves.client.calls_of(kind)]

    def held(self) -> dict[bytes, int]:
        """Key -> in how many shards it is."""
        found: dict[bytes, int] = {}
        for held in self.leaves.shards.values():
            for key in held:
                found[key] = found.get(key, 0) + 1
        return found


@pytest.fixture(params=[False, True], ids=["asked", "started"])
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param)


@pytest.mark.parametrize("reads_until_shown", [1, 4])
async def test_reads_find_what_has_moved(setting: Setting, reads_until_shown: int) -> None:
    await setting.put(KEYS)
    setting.split(reads_until_shown=reads_until_shown)
    moved = next(key for key in KEYS if setting.maps.later and setting.maps.later.shard_of_key(key) == 2)
    read = await setting.kv.get("", moved, DEFAULT_READ_POLICY, CLOCK.monotonic() + 5)
    assert (read.value, read.state.shard) == (b"v", 2)


@pytest.mark.parametrize("reads_until_shown", [1, 3])
async def test_a_batch_read_is_whole_and_counts_each_document_once(setting: Setting, reads_until_shown: int) -> None:
    await setting.put(KEYS)
    setting.split(reads_until_shown=reads_until_shown)
    read = await setting.get(KEYS, policy=ReadPolicy(is_stale=True))
    assert read.values == [b"v"] * len(KEYS)
    assert read.failures == []
    assert read.coverage.is_complete
    assert (read.coverage.legs, read.coverage.documents_considered) == (3, len(KEYS))
    assert [state.shard for state in read.states] == [0, 1, 2]


async def test_a_batch_write_sends_again_what_has_moved_and_nothing_else(setting: Setting) -> None:
    setting.split()
    written = await setting.put(KEYS)
    assert written.failures == []
    assert all(written.versions)
    assert setting.held() == dict.fromkeys(KEYS, 1)
    again = setting.sent(ShardWrite)[-1]
    assert again.shard == 2
    assert [KEYS[position] for position in again.positions] == again.keys
    assert again.total == len(KEYS)
    assert {(each.client, each.number) for each in setting.sent(ShardWrite)} == {(again.client, again.number)}


async def test_a_write_whose_first_answer_was_lost_takes_effect_once(setting: Setting) -> None:
    """It was done before the split; its repetition goes by the new map, cut into other parts."""
    lost = Unavailable("the answer was lost", ErrorDetails(maybe_applied=True))

    def do_and_lose(request: ShardWrite) -> Any:
        setting.leaves._write(request)
        return lost

    setting.leaves.client.on("leaf-1", ShardWrite, do_and_lose).on("leaf-2", ShardWrite, do_and_lose)
    identity = request_identity("client", 1, False, b"")
    first = await setting.put(KEYS, identity=identity)
    assert len(first.failures) == len(KEYS)
    before = {place: dict(held) for place, held in setting.leaves.shards.items()}
    setting.split()
    for leaf in ("leaf-1", "leaf-2"):
        setting.leaves.serve(leaf)
    await setting.maps.refresh()
    repeated = await setting.put(KEYS, b"never", identity=request_identity("client", 1, True, b""))
    assert repeated.failures == []
    versions = {key: version for held in before.values() for key, (_, version) in held.items()}
    assert repeated.versions == [versions[key] for key in KEYS]
    assert all(value == b"v" for held in setting.leaves.shards.values() for value, _ in held.values())


async def test_a_part_of_a_batch_that_is_sent_again_after_a_split_takes_effect_once(setting: Setting) -> None:
    """A client sends only the keys again whose shard did not answer; the shard knows them by their places in the batch."""
    lost = Unavailable("the answer was lost", ErrorDetails(maybe_applied=True))

    def do_and_lose(request: ShardWrite) -> Any:
        setting.leaves._write(request)
        return lost

    setting.leaves.client.on("leaf-2", ShardWrite, do_and_lose)
    first = await setting.put(KEYS, identity=request_identity("client", 1, False, b""))
    failed = [index for index, _ in first.failures]
    assert 0 < len(failed) < len(KEYS)
    before = {place: dict(held) for place, held in setting.leaves.shards.items()}
    setting.split()
    for leaf in ("leaf-1", "leaf-2"):
        setting.leaves.serve(leaf)
    await setting.maps.refresh()
    identity = request_identity_of_part(request_identity("client", 1, True, b""), failed, len(KEYS), len(failed))
    again = await setting.put([KEYS[index] for index in failed], b"never", identity=identity)
    assert again.failures == []
    versions = {key: version for held in before.values() for key, (_, version) in held.items()}
    assert again.versions == [versions[KEYS[index]] for index in failed]
    assert all(value == b"v" for held in setting.leaves.shards.values() for value, _ in held.values())


async def test_what_was_in_doubt_claims_no_knowledge_of_the_child(setting: Setting) -> None:
    """The shard's number for `since` must be known from before the first sending; of a child it cannot be."""
    setting.scatter.heard.committed.learn(2, 1_000)
    setting.split()
    await setting.put(KEYS[:20])
    assert setting.sent(ShardWrite)[-1].since == 1_000, "the first sending was refused for certain"
    identity = request_identity("client", 5, True, b"")
    await setting.put(KEYS[20:40], identity=identity)
    assert all(each.since == 0 for each in setting.sent(ShardWrite) if each.client == "client")


async def test_one_key_is_written_where_it_has_moved(setting: Setting) -> None:
    setting.split(reads_until_shown=3)
    moved = next(key for key in KEYS if setting.maps.later and setting.maps.later.shard_of_key(key) == 2)
    written = await setting.kv.write("Put", "", WriteColumns([moved], [b"v"], [], []), False, CLOCK.monotonic() + 5)
    assert (written.versions[0] > 0, written.existed) == (True, [False])
    assert setting.leaves.shards[2, 1][moved][0] == b"v"


async def test_a_split_that_never_shows_is_told_at_the_deadline(setting: Setting) -> None:
    await setting.put(KEYS)
    setting.split(reads_until_shown=10**9)
    assert setting.maps.later is not None
    moved = [key for key in KEYS if setting.maps.later.shard_of_key(key) == 2]
    written = await setting.put(KEYS, b"w", deadline_s=0.05)
    assert [KEYS[index] for index, _ in written.failures] == moved
    assert {record.reason for _, record in written.failures} == {"SHARD_MOVED"}
    with pytest.raises(Unavailable) as caught:
        await setting.get(KEYS, deadline_s=0.05)
    assert caught.value.details.shards == (0,)
    read = await setting.get(KEYS, 0.05, replace(DEFAULT_READ_POLICY, is_partial_accepted=True))
    assert not read.coverage.is_complete
    assert [KEYS[index] for index, _ in read.failures] == moved
    with pytest.raises(ShardMoved):
        await setting.kv.get("", moved[0], DEFAULT_READ_POLICY, CLOCK.monotonic() + 0.05)
    assert all(each.cuts == 0 for each in setting.sent(ShardRead))


def have_small_pages(monkeypatch: pytest.MonkeyPatch, *, chunk: int, page: int) -> None:
    monkeypatch.setattr(scan_chunks, "CHUNK_MAX_KEYS", chunk)
    monkeypatch.setattr(scan_module, "PAGE_MAX_KEYS", page)
    monkeypatch.setattr(scan_module, "PAGE_MIN_KEYS", 1)


@pytest.mark.parametrize("at_page", [0, 1, 3])
@pytest.mark.parametrize("reads_until_shown", [1, 3])
async def test_a_scan_goes_on_behind_what_it_has(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, at_page: int, reads_until_shown: int
) -> None:
    have_small_pages(monkeypatch, chunk=5, page=8)
    await setting.put(KEYS)
    request = ScanRequest(key_range(b"", b"", b""), (b"", b"", b""), 0, False, b"")
    found: list[bytes] = []
    async with aclosing(setting.scans.scan("", request, DEFAULT_READ_POLICY, CLOCK.monotonic() + 5)) as pages:
        number = 0
        if at_page == 0:
            setting.split(reads_until_shown=reads_until_shown)
        async for page in pages:
            found += page.keys
            last = page
            number += 1
            if number == at_page:
                setting.split(reads_until_shown=reads_until_shown)
    assert found == KEYS
    assert last.coverage is not None
    assert last.coverage.is_complete
    assert last.coverage.documents_considered == len(KEYS)


async def test_a_shard_that_is_split_twice_during_a_scan(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    have_small_pages(monkeypatch, chunk=2, page=4)
    await setting.put(KEYS)
    request = ScanRequest(key_range(b"", b"", b""), (b"", b"", b""), 0, True, b"")
    found: list[bytes] = []
    async with aclosing(setting.scans.scan("", request, DEFAULT_READ_POLICY, CLOCK.monotonic() + 5)) as pages:
        number = 0
        async for page in pages:
            found += page.keys
            number += 1
            if number in (1, 3):
                setting.split()
            elif number == 5:
                setting.split(2)
    assert found == KEYS
    assert {each.shard for each in setting.sent(ShardScan)} == {0, 1, 2, 3, 4}


async def test_a_search_begins_anew(setting: Setting) -> None:
    for number in range(30):
        key = b"doc-%02d" % number
        shard = setting.maps.current.shard_of_key(key)
        setting.leaves.shards.setdefault((shard, 2), {})[key] = (b'{"title": "word"}', 1)
    setting.split(reads_until_shown=2)
    query = SearchQuery("word", [], 100, "", [], 10, [], False, False, None)
    found = await setting.searches.search("docs", query, b"", DEFAULT_READ_POLICY, CLOCK.monotonic() + 5)
    assert (found.total, len(found.hits), found.coverage.documents_considered) == (30, 30, 30)
    assert found.coverage.is_complete
    assert found.coverage.legs == 3
    assert {(each.shard, each.cuts) for each in setting.sent(ShardSearch)} >= {(0, 0), (0, 1), (2, 0)}


@pytest.mark.parametrize("splits_before_page", [{1}, {2}, {1, 2}, {2, 3}])
async def test_pages_of_a_search_go_on_across_splits(setting: Setting, splits_before_page: set[int]) -> None:
    for number in range(40):
        key = b"doc-%02d" % number
        shard = setting.maps.current.shard_of_key(key)
        title = "word " * (1 + number % 3)
        setting.leaves.shards.setdefault((shard, 2), {})[key] = (b'{"title": "%s"}' % title.encode(), 1)
    query = SearchQuery("word", [], 7, "", [], 10, [], False, False, None)
    found: list[bytes] = []
    token = b""
    for page_number in range(10):
        if page_number in splits_before_page:
            setting.split(0)
        page = await setting.searches.search("docs", query, token, DEFAULT_READ_POLICY, CLOCK.monotonic() + 5)
        assert (page.total, page.coverage.is_complete) == (40, True)
        found += [hit.key for _, hit in page.hits]
        token = page.next_token
        if not token:
            break
    assert found == sorted((b"doc-%02d" % n for n in range(40)), key=lambda key: (-(int(key[4:]) % 3), key))


async def test_a_refusal_as_moved_ends_a_leg_at_once(setting: Setting) -> None:
    setting.leaves.client.on(ANY_LEAF, ShardSearch, ShardMoved("moved"))
    request = ShardSearch(0, 1, 2, "*", [], 10)
    async with asyncio.timeout(1):
        leg = await setting.scatter.ask("Search", setting.leaves.client.search, request, CLOCK.monotonic() + 5)
    assert isinstance(leg.error, ShardMoved)
    assert leg.attempts == 1


async def test_a_page_behind_a_split_that_lacks_a_part_says_so_on_all_pages_behind_it(setting: Setting) -> None:
    """What the missing part had there is passed over, since the pages behind go on in the order of all shards."""
    for number in range(40):
        key = b"doc-%02d" % number
        shard = setting.maps.current.shard_of_key(key)
        setting.leaves.shards.setdefault((shard, 2), {})[key] = (b'{"title": "word"}', 1)
    query = SearchQuery("word", [], 10, "", [], 10, [], False, False, None)
    partial = replace(DEFAULT_READ_POLICY, is_partial_accepted=True)

    async def page(token: bytes, policy: Any = partial) -> Any:
        return await setting.searches.search("docs", query, token, policy, CLOCK.monotonic() + 5)

    pages = [await page(b"", DEFAULT_READ_POLICY)]
    child = setting.split(0)
    await setting.maps.refresh()
    gone = Unavailable("connection refused")
    setting.leaves.client.on(
        ANY_LEAF, ShardSearch, lambda request: gone if request.shard == child else setting.leaves._search(request)
    )
    with pytest.raises(Unavailable) as caught:
        await page(pages[0].next_token, DEFAULT_READ_POLICY)
    assert set(caught.value.details.shards) == {child}
    pages.append(await page(pages[0].next_token))
    coverage = pages[1].coverage
    coverage.check_invariants()
    assert (coverage.legs, [leg.shard for leg in coverage.failed]) == (3, [child])
    setting.leaves.serve(ANY_LEAF)
    while token := pages[-1].next_token:
        pages.append(await page(token))
        assert not pages[-1].coverage.is_complete
        assert pages[-1].coverage.failed == ()
    found = [hit.key for each in pages for _, hit in each.hits]
    assert found == sorted(set(found)), "none comes twice, and all in order"
    first, last = pages[0].hits[-1][1].key, pages[1].hits[-1][1].key
    passed = {b"doc-%02d" % number for number in range(40)} - set(found)
    of_child = {key for key in setting.leaves.shards[child, 2] if first < key < last}
    assert passed == of_child
