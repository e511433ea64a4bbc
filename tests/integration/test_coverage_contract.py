"""The coverage contract, alike for searches, batches and scans: through a real router and the client, leaves in memory."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from prometheus_client import CollectorRegistry

from kvshard import Client, Unavailable
from kvshard.client.results import Coverage
from kvshard.clock import SystemClock
from kvshard.telemetry import RouterMetrics
from router.server import RouterServer

KEYS = [f"key-{number:03}" for number in range(200)]
DEAD = Unavailable("connection refused")


class Cluster:
    """Eight shards on four leaves; `docs` and the default collection hold a document under every key."""

    def __init__(self, kv: Client[str], leaves: MemoryLeaves) -> None:
        self.kv = kv
        self.leaves = leaves
        self.docs = kv.collection("docs")

    async def load(self) -> None:
        await self.kv.put_many(dict.fromkeys(KEYS, b"v"))
        await self.docs.raw.put_many({key: json.dumps({"title": "word"}).encode() for key in KEYS})

    async def search(self, **how) -> Coverage:
        return (await self.docs.search("word", limit=1000, **how)).coverage

    async def batch(self, **how) -> Coverage:
        return (await self.kv.get_many(KEYS, **how)).coverage

    async def scan(self, **how) -> Coverage:
        scan = self.kv.scan(**how)
        async for _ in scan:
            pass
        assert scan.coverage is not None
        return scan.coverage


Read = Callable[..., Awaitable[Coverage]]
every_read = pytest.mark.parametrize("read", [Cluster.search, Cluster.batch, Cluster.scan], ids=["search", "batch", "scan"])


@asynccontextmanager
async def running(replicas: int) -> AsyncIterator[Cluster]:
    leaves = MemoryLeaves()
    maps = FakeMapSource(cluster_map(shards=8, leaves=4, replicas=replicas))
    server = RouterServer("127.0.0.1:0", maps, leaves.client, SystemClock(), RouterMetrics(CollectorRegistry()))
    await server.start("cluster")
    try:
        async with Client(server.address, timeout=5) as kv:
            cluster = Cluster(kv, leaves)
            await cluster.load()
            yield cluster
    finally:
        await server.stop()


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with running(replicas=1) as cluster:
        yield cluster


def check(coverage: Coverage, failed: list[int]) -> None:
    """The counts of a read over eight shards of which these are missing."""
    assert (coverage.complete, coverage.legs, coverage.legs_ok) == (not failed, 8, 8 - len(failed))
    assert [each.shard for each in coverage.failed] == failed
    assert coverage.documents_total == len(KEYS)
    assert coverage.fraction == coverage.documents_considered / len(KEYS)
    assert (coverage.fraction == 1.0) == (not failed)


@every_read
async def test_a_whole_answer_says_so(cluster: Cluster, read: Read) -> None:
    check(await read(cluster), [])


@every_read
async def test_what_is_missing_is_named_with_its_reason_and_who_was_asked(cluster: Cluster, read: Read) -> None:
    await read(cluster)  # The sizes of all shards are known now.
    cluster.leaves.fail("leaf-2", DEAD)
    for how in ({"on_shortfall": "partial"}, {"min_coverage": 0.5}, {"min_coverage": 0.99, "on_shortfall": "partial"}):
        coverage = await read(cluster, **how)
        check(coverage, [1, 5])
        assert [each.error.reason for each in coverage.failed] == ["UNAVAILABLE"] * 2
        assert [each.error.details.replicas_tried for each in coverage.failed] == [("leaf-2",)] * 2


@every_read
@pytest.mark.parametrize("how", [{}, {"min_coverage": 0.99}], ids=["default", "min_coverage"])
async def test_too_little_is_an_error_that_names_the_same(cluster: Cluster, read: Read, how: dict[str, float]) -> None:
    await read(cluster)
    cluster.leaves.fail("leaf-2", DEAD)
    with pytest.raises(Unavailable, match="2 of 8 shards did not answer") as caught:
        await read(cluster, timeout=0.3, **how)
    assert caught.value.details.shards == (1, 5)
    assert caught.value.details.replicas_tried == ("leaf-2",)


@every_read
async def test_every_replica_is_tried_before_a_shard_is_given_up(read: Read) -> None:
    async with running(replicas=2) as cluster:
        await read(cluster)
        cluster.leaves.fail("leaf-2", DEAD)
        check(await read(cluster), [])
        cluster.leaves.fail("leaf-3", DEAD)
        coverage = await read(cluster, on_shortfall="partial", timeout=0.4)
        check(coverage, [1, 5])  # Those which live on these two leaves.
        assert [sorted(each.error.details.replicas_tried) for each in coverage.failed] == [["leaf-2", "leaf-3"]] * 2


async def test_each_key_of_a_batch_tells_who_was_asked(cluster: Cluster) -> None:
    cluster.leaves.fail("leaf-2", DEAD)
    found = await cluster.kv.get_many(KEYS, on_shortfall="partial")
    errors = [each for each in found if isinstance(each, Unavailable)]
    assert errors
    assert {each.details.replicas_tried for each in errors} == {("leaf-2",)}
    assert {shard for each in errors for shard in each.details.shards} == {1, 5}
    assert sum(each is not None and not isinstance(each, Unavailable) for each in found) == len(KEYS) - len(errors)


async def test_pages_of_a_search_that_continue_an_incomplete_one_say_so(cluster: Cluster) -> None:
    cluster.leaves.fail("leaf-2", DEAD)
    page = await cluster.docs.search("word", limit=30, on_shortfall="partial")
    assert not page.complete
    cluster.leaves.serve("leaf-2")
    seen = [hit.key for hit in page.hits]
    while page.next:
        page = await cluster.docs.search("word", limit=30, next=page.next)
        assert not page.complete
        assert page.coverage.failed == ()
        seen += [hit.key for hit in page.hits]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("given", [1, 100, 120])
async def test_a_scan_that_goes_on_behind_an_incomplete_chunk_says_so(cluster: Cluster, given: int) -> None:
    """Wherever it was left: what the missing shards have before that place is never asked for again."""
    cluster.leaves.fail("leaf-2", DEAD)
    async with cluster.kv.scan(on_shortfall="partial") as scan:
        keys = [(await anext(scan)).key for _ in range(given)]
    cluster.leaves.serve("leaf-2")
    for _ in range(2):
        rest = cluster.kv.scan(resume=scan.token, limit=20)
        keys += [item.key async for item in rest]
        assert rest.coverage is not None
        assert (rest.coverage.complete, rest.coverage.failed) == (False, ())
        scan = rest
    assert keys == sorted(set(keys))


async def test_a_scan_that_was_whole_so_far_is_whole_when_it_goes_on(cluster: Cluster) -> None:
    async with cluster.kv.scan() as scan:
        keys = [(await anext(scan)).key for _ in range(10)]
    rest = cluster.kv.scan(resume=scan.token)
    keys += [item.key async for item in rest]
    assert keys == KEYS
    assert rest.coverage is not None
    assert rest.coverage.complete
