"""Reads, writes and scans at a leaf's core."""

import asyncio
from dataclasses import replace

import pytest
from fakes.hosted_leaf import DOCS, hosted_leaf

from kvshard.clustermap import Collection, SchemaChange
from kvshard.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotReady,
    ResourceExhausted,
    SchemaChanged,
)
from kvshard.limits import BATCH_MAX_KEYS, KEY_MAX_BYTES
from kvshard.model import ShardRead, ShardSearch, ShardWrite, changed
from leaf.disk_guard import RESERVE_BYTES
from leaf.key_reader import READ_REPLY_MAX_BYTES
from leaf.layout import INLINE_MAX_BYTES
from leaf.scan_reader import SCAN_REPLY_MAX_BYTES


async def test_reads_and_writes() -> None:
    async with hosted_leaf() as leaf:
        reply = await leaf.write({b"a": b"1", b"b": b"", b"large": b"x" * (INLINE_MAX_BYTES + 1)})
        version = reply.versions[0]
        assert reply.versions == [version] * 3
        assert reply.existed == [False] * 3
        read = leaf.read_all([b"b", b"nope", b"a", b"large", b"a"])
        assert read.values == [b"", None, b"1", b"x" * (INLINE_MAX_BYTES + 1), b"1"]
        assert read.versions == [version, 0, version, version, version]
        assert (read.expires_at_ms, read.errors, read.documents) == ([], {}, 3)
        again = await leaf.write({b"a": b"2", b"large": b"small now", b"b": None})
        assert again.existed == [True, True, True]
        assert again.versions[0] > version
        assert leaf.read_all([b"a", b"large", b"b"]).values == [b"2", b"small now", None]
        assert leaf.read_all([]).documents == 2


async def test_conditions() -> None:
    async with hosted_leaf() as leaf:
        first = (await leaf.write({b"k": b"1"}, conditions=[0])).versions[0]
        conflict = await leaf.write({b"k": b"2", b"other": b"2"}, conditions=[0, None])
        assert conflict.errors[0].details.current_version == first
        assert conflict.versions[0] == 0
        assert leaf.read(b"other") == b"2"
        second = (await leaf.write({b"k": b"3"}, conditions=[first])).versions[0]
        assert (await leaf.write({b"k": None}, conditions=[first])).errors[0].details.current_version == second
        assert (await leaf.write({b"k": None}, conditions=[second])).existed == [True]
        assert (await leaf.write({b"k": b"4"}, conditions=[second])).errors[0].details.current_version == 0


async def test_of_racing_conditional_writes_exactly_one_wins() -> None:
    async with hosted_leaf() as leaf:
        replies = await asyncio.gather(*(leaf.write({b"k": b"%d" % n}, conditions=[0]) for n in range(20)))
        winners = [n for n, reply in enumerate(replies) if not reply.errors]
        assert len(winners) == 1
        assert leaf.read(b"k") == b"%d" % winners[0]


async def test_expired_keys_vanish_everywhere_at_their_time() -> None:
    async with hosted_leaf() as leaf:
        now = leaf.clock.wall_ms()
        await leaf.write({b"a": b"1", b"b": b"2"}, ttl_ms=[1_000, 0])
        read = leaf.read_all([b"a", b"b"])
        assert read.expires_at_ms == [now + 1_000, 0]
        assert leaf.scan().expires_at_ms == [now + 1_000, 0]
        leaf.clock.advance(0.999)
        assert leaf.read(b"a") == b"1"
        leaf.clock.advance(0.001)
        read = leaf.read_all([b"a", b"b"])
        assert (read.values, read.versions, read.expires_at_ms) == ([None, b"2"], [0, read.versions[1]], [])
        assert leaf.scan().keys == [b"b"]
        reply = await leaf.write({b"a": b"new"}, conditions=[0])
        assert (reply.errors, reply.existed) == ({}, [False])


async def test_scans_in_chunks() -> None:
    async with hosted_leaf() as leaf:
        keys = [b"%03d" % n for n in range(50)]
        await leaf.write(dict.fromkeys(keys, b"v"))
        await leaf.write({b"zzz": b"other collection"}, collection_id=1, shard=1)
        found: list[bytes] = []
        start, chunks = b"", 0
        while True:
            reply = leaf.scan(start, limit=7)
            found += reply.keys
            chunks += 1
            if not reply.has_more:
                break
            start = reply.resume
        assert (found, chunks) == (keys, 8)
        assert leaf.scan(b"010", b"013").keys == [b"010", b"011", b"012"]
        assert leaf.scan(b"013", b"010").keys == []
        only = leaf.scan(limit=2, keys_only=True)
        assert (only.keys, only.values, only.has_more, only.documents) == ([b"000", b"001"], [], True, 50)
        with pytest.raises(InvalidArgument):
            leaf.scan(limit=0)


async def test_scans_of_large_values_stop_at_the_size_bound() -> None:
    async with hosted_leaf() as leaf:
        size = SCAN_REPLY_MAX_BYTES // 3 + 1
        for n in range(4):
            await leaf.write({b"k%d" % n: bytes(size)})
        first = leaf.scan()
        assert (first.keys, first.has_more, first.resume) == ([b"k0", b"k1"], True, b"k2")
        rest = leaf.scan(first.resume)
        assert (rest.keys, rest.has_more) == ([b"k2", b"k3"], False)


async def test_a_scan_stops_at_the_bytes_that_were_asked_for() -> None:
    async with hosted_leaf() as leaf:
        await leaf.write({b"k%d" % n: bytes(1_000) for n in range(9)} | {b"l": bytes(100_000), b"m": b"last"})
        first = leaf.scan(max_bytes=3_500)
        assert (first.keys, first.has_more) == ([b"k0", b"k1", b"k2"], True)
        assert leaf.scan(first.resume, max_bytes=1).keys == [b"k3"], "one key comes however large it is"
        large = leaf.scan(b"k8", max_bytes=20_000)
        assert (large.keys, large.has_more, large.resume) == ([b"k8"], True, b"l")
        assert leaf.scan(b"l", max_bytes=20_000).keys == [b"l"]
        assert len(leaf.scan(max_bytes=1 << 30).keys) == 11
        assert len(leaf.scan(keys_only=True, max_bytes=1).keys) == 11, "without values there is little to bound"


async def test_a_read_of_too_many_bytes_fails_key_by_key() -> None:
    async with hosted_leaf() as leaf:
        size = READ_REPLY_MAX_BYTES // 4
        for n in range(5):
            await leaf.write({b"k%d" % n: bytes(size)})
        reply = leaf.read_all([b"k%d" % n for n in range(5)] + [b"none"])
        assert [value is None for value in reply.values] == [False] * 4 + [True, True]
        assert {index: record.reason for index, record in reply.errors.items()} == {4: "RESOURCE_EXHAUSTED"}
        assert "fewer" in reply.errors[4].message


@pytest.mark.parametrize("size", [1_000, 100_000], ids=["small", "large"])
async def test_a_read_keeps_to_the_bytes_that_were_asked_for(size: int) -> None:
    async with hosted_leaf() as leaf:
        keys = [b"k%d" % n for n in range(5)]
        await leaf.write(dict.fromkeys(keys, bytes(size)))
        for _ in range(2):  # From the engine, and from the cache.
            reply = leaf.requests.read(ShardRead(0, leaf.epoch(), 1, keys, max_bytes=2 * size))
            assert reply is not None
            assert [value is None for value in reply.values] == [False] * 2 + [True] * 3
            assert {record.reason for record in reply.errors.values()} == {"RESOURCE_EXHAUSTED"}
            assert sorted(reply.errors) == [2, 3, 4]


async def test_illegal_keys_and_batches() -> None:
    async with hosted_leaf() as leaf:
        reply = await leaf.write({b"": b"1", b"k" * (KEY_MAX_BYTES + 1): b"1", b"ok": b"1"})
        assert {index: record.details.field for index, record in reply.errors.items()} == {0: "key", 1: "key"}
        assert leaf.read(b"ok") == b"1"
        read = leaf.read_all([b"", b"ok", b"k" * (KEY_MAX_BYTES + 1)])
        assert {index: record.details.limit for index, record in read.errors.items()} == {0: KEY_MAX_BYTES, 2: KEY_MAX_BYTES}
        with pytest.raises(InvalidArgument):
            leaf.read_all([b"k"] * (BATCH_MAX_KEYS + 1))


async def test_documents_must_fit_their_schema() -> None:
    async with hosted_leaf() as leaf:
        reply = await leaf.write(
            {b"good": b'{"title": "t", "year": 1}', b"bad": b'{"year": "x"}', b"worse": b"nonsense"},
            collection_id=DOCS.id,
            wait_for_refresh=True,
        )
        assert {index: record.details.field for index, record in reply.errors.items()} == {1: "document.year", 2: "document"}
        assert leaf.read_all([b"good", b"bad", b"worse"], collection_id=DOCS.id).values[1:] == [None, None]
        assert leaf.index.refreshed == [(0, reply.versions[0])]
        await leaf.write({b"plain": b"nonsense"}, wait_for_refresh=True)
        assert len(leaf.index.refreshed) == 1
        document = {b"good": b"{}"}
        await leaf.write(document, collection_id=DOCS.id, wait_for_refresh=True, next_refresh=True)
        assert leaf.index.hurried == [True, False]


async def test_a_search_for_a_write_that_is_not_there_says_so_before_its_deadline() -> None:
    async with hosted_leaf() as leaf:
        await leaf.write({b"k": b"{}"}, collection_id=DOCS.id)

        async def never(shard: int, seqno: int, *, is_hurried: bool = True) -> None:
            await asyncio.Event().wait()

        leaf.index.refresh = never  # type: ignore[method-assign]
        deadline = leaf.clock.monotonic() + 0.2
        held = leaf.requests._replica(0).applied
        future = ShardSearch(0, leaf.epoch(), DOCS.id, "*", [], 0, 10, min_seqno=held + 1)
        with pytest.raises(FailedPrecondition, match=f"shard 0 .* version {held + 1}, but this replica has none beyond {held}"):
            await leaf.requests.search(future, deadline)
        with pytest.raises(DeadlineExceeded, match=f"shard 0 .* version {held}, but its index was not refreshed in time"):
            await leaf.requests.search(changed(future, min_seqno=held), deadline)


async def test_a_refresh_that_takes_too_long_says_that_the_write_is_durable() -> None:
    async with hosted_leaf() as leaf:

        async def never(shard: int, seqno: int, *, is_hurried: bool) -> None:
            await asyncio.Event().wait()

        leaf.index.refresh = never  # type: ignore[method-assign]
        request = ShardWrite(0, leaf.epoch(), DOCS.id, [b"k"], [b"{}"], wait_for_refresh=True)
        with pytest.raises(DeadlineExceeded) as caught:
            await leaf.requests.write(request, deadline=leaf.clock.monotonic() + 0.1)
        assert caught.value.details.maybe_applied
        assert leaf.read(b"k", collection_id=DOCS.id) == b"{}"


async def test_an_unknown_collection_makes_the_leaf_look_once() -> None:
    async with hosted_leaf() as leaf:
        before = leaf.maps.refreshes
        with pytest.raises(CollectionNotFound):
            await leaf.write({b"k": b"v"}, collection_id=99)
        assert leaf.maps.refreshes == before + 1
        request = ShardRead(0, leaf.epoch(), 99, [b"k"])
        assert leaf.requests.read_now(request, leaf.clock.monotonic(), 1e9) is None
        leaf.maps.hide(collections={**leaf.maps.current.collections, "late": Collection("late", 99)})
        assert (await leaf.write({b"k": b"v"}, collection_id=99)).errors == {}
        assert leaf.requests.read_now(request, leaf.clock.monotonic(), 1e9) is not None
        assert leaf.index.collections == ["default", "docs", "late"]


async def test_a_full_disk_refuses_writes_until_it_has_room() -> None:
    async with hosted_leaf() as leaf:
        await leaf.write({b"k": b"v"})
        leaf.free = RESERVE_BYTES - 1
        leaf.driver.guard.probe()
        with pytest.raises(ResourceExhausted, match="disk almost full"):
            await leaf.write({b"k": b"w"})
        assert leaf.read(b"k") == b"v"
        assert leaf.driver.status()[0].role == "primary"
        leaf.free = RESERVE_BYTES
        leaf.driver.guard.probe()
        await leaf.write({b"k": b"w"})


async def test_a_search_is_answered_by_the_schema_that_it_was_read_by() -> None:
    async with hosted_leaf() as leaf:
        changing = replace(DOCS, change=SchemaChange({**DOCS.schema, "lang": "keyword"}, 2), versions=2)
        leaf.maps.install(collections={**leaf.maps.current.collections, "docs": changing})
        search = ShardSearch(0, leaf.epoch(), DOCS.id, "*", [], 0, 1)
        with pytest.raises(NotReady, match="does not know schema version 2"):
            await leaf.requests.search(changed(search, schema_version=2), 1e9)
        leaf.maps.hide(collections={**leaf.maps.current.collections, "docs": changing.changed()})
        assert (await leaf.requests._searchable(changed(search, schema_version=2))).version == 2
        with pytest.raises(SchemaChanged, match="has schema version 2"):
            await leaf.requests.search(changed(search, schema_version=1), 1e9)
        assert (await leaf.requests._searchable(search)).version == 2, "who does not say it is not asked"


async def test_writes_must_fit_the_schema_that_is_to_come() -> None:
    async with hosted_leaf() as leaf:
        await leaf.write({b"a": b'{"title": "x", "lang": 5}'}, collection_id=DOCS.id)
        changing = replace(DOCS, change=SchemaChange({**DOCS.schema, "lang": "keyword"}, 2), versions=2)
        leaf.maps.install(collections={**leaf.maps.current.collections, "docs": changing})
        reply = await leaf.write({b"a": b'{"title": "x", "lang": 5}', b"b": b'{"lang": "en"}'}, collection_id=DOCS.id)
        assert {index: error.details.field for index, error in reply.errors.items()} == {0: "document.lang"}


async def test_only_collections_with_a_schema_are_searched() -> None:
    async with hosted_leaf() as leaf:
        with pytest.raises(FailedPrecondition):
            await leaf.requests.search(ShardSearch(0, leaf.epoch(), 1, "q", [], 1), 1e9)
