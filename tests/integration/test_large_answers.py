"""Batches whose values do not fit one answer: they come in several, and only what is too large alone fails."""

from collections.abc import AsyncIterator

import pytest
from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from prometheus_client import CollectorRegistry

from kvshard import Client, Item, ResourceExhausted
from kvshard.clock import SystemClock
from kvshard.model import ShardRead
from kvshard.scatter import key_frames
from kvshard.telemetry import RouterMetrics
from router.server import RouterServer

CLOCK = SystemClock()
KEYS = [f"key-{number:03d}" for number in range(100)]
VALUE = b"x" * 1_000


class Front:
    """A serving router over leaves in memory, and a client of it."""

    def __init__(self, server: RouterServer, leaves: MemoryLeaves, maps: FakeMapSource) -> None:
        self.leaves = leaves
        self.maps = maps
        self.kv = Client(server.address)

    def put(self, key: str, value: bytes) -> None:
        shard = self.maps.current.shard_of_key(key.encode())
        self.leaves.shards.setdefault((shard, 1), {})[key.encode()] = (value, 1)


@pytest.fixture
async def front(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Front]:
    monkeypatch.setattr(key_frames, "FRAME_ANSWER_BYTES", 40_000)
    leaves, maps = MemoryLeaves(), FakeMapSource(cluster_map(shards=4, leaves=2))
    server = RouterServer("127.0.0.1:0", maps, leaves.client, CLOCK, RouterMetrics(CollectorRegistry()))
    await server.start("cluster")
    made = Front(server, leaves, maps)
    for key in KEYS:
        made.put(key, VALUE)
    try:
        yield made
    finally:
        await made.kv.close()
        await server.stop()


async def test_values_that_do_not_fit_one_answer_come_in_several(front: Front) -> None:
    found = await front.kv.get_many([*KEYS, "absent"])
    assert [item and (item.key, item.value) for item in found] == [*((key, VALUE) for key in KEYS), None]
    assert found.coverage.complete
    assert len(front.leaves.client.calls_of(ShardRead)) > 4


async def test_a_value_that_fits_no_answer_fails_alone(front: Front) -> None:
    front.put(KEYS[7], b"x" * 50_000)
    found = await front.kv.get_many(KEYS)
    (failed,) = [index for index, item in enumerate(found) if not isinstance(item, Item)]
    assert failed == 7
    assert isinstance(found[7], ResourceExhausted)
    assert found[7].details.limit == 40_000
