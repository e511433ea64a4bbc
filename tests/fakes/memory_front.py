"""A serving router over leaves in memory, and a client of it: what comes over real lanes, without real leaves."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from prometheus_client import CollectorRegistry

from kvshard import Client
from kvshard.clock import SystemClock
from kvshard.telemetry import RouterMetrics
from router.server import RouterServer


class MemoryFront:
    """See the module. kv: the client; server: the router."""

    def __init__(self, server: RouterServer, leaves: MemoryLeaves, maps: FakeMapSource, registry: CollectorRegistry) -> None:
        self.server = server
        self.leaves = leaves
        self.kv = Client(server.address)
        self._maps = maps
        self._registry = registry

    def put(self, collection_id: int, key: str, value: bytes) -> None:
        """The leaves hold this, as version 1."""
        shard = self._maps.current.shard_of_key(key.encode())
        self.leaves.shards.setdefault((shard, collection_id), {})[key.encode()] = (value, 1)

    @property
    def has_called(self) -> bool:
        """The client has called a method of the router that is none of its lanes'."""
        return bool(self.kv._connection.routers._opened)

    def counted(self, method: str, code: str = "OK") -> float:
        """Requests of this method that the router has answered so."""
        labels = {"method": method, "code": code}
        return self._registry.get_sample_value("kvshard_router_requests_total", labels) or 0.0


@asynccontextmanager
async def memory_front() -> AsyncIterator[MemoryFront]:
    """Four shards on two leaves."""
    leaves, registry, maps = MemoryLeaves(), CollectorRegistry(), FakeMapSource(cluster_map(shards=4, leaves=2))
    server = RouterServer("127.0.0.1:0", maps, leaves.client, SystemClock(), RouterMetrics(registry))
    await server.start("cluster")
    made = MemoryFront(server, leaves, maps, registry)
    try:
        yield made
    finally:
        await made.kv.close()
        await server.stop()
