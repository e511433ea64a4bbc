"""What a direct client needs around it: a map that is followed, and a router that takes what goes through one."""

from collections.abc import Callable

from fakes.map_source import FakeMapSource

from kvshard.client.transport import KeyTransport
from kvshard.clustermap import ClusterMap
from kvshard.errors import KvShardError
from kvshard.lane_messages import KeysRead, KeysReadReply, KeysWrite, KeysWriteReply

ROUTER_VERSION = 4711
"""Version of all that the fake router answers, by which an answer of its is known."""


class FollowedFakeMaps(FakeMapSource):
    """Implements kvshard.client.direct.FollowedMaps. A map that is there is known from the start on."""

    def __init__(self, current: ClusterMap | None) -> None:
        super().__init__(current)
        self.cluster_id = "cluster-1"
        self.is_started = False
        self.is_closed = False
        self._subscribers: list[Callable[[ClusterMap], None]] = []

    def start(self) -> None:
        self.is_started = True

    def subscribe(self, subscriber: Callable[[ClusterMap], None]) -> None:
        self._subscribers.append(subscriber)

    def install(self, new: ClusterMap) -> None:
        super().install(new)
        for subscriber in self._subscribers:
            subscriber(new)

    async def close(self) -> None:
        self.is_closed = True


class FakeRouterTransport(KeyTransport):
    """Answers whatever it is asked; `error` is raised instead while it is set. Keeps what it was asked."""

    def __init__(self) -> None:
        self.reads: list[KeysRead] = []
        self.writes: list[KeysWrite] = []
        self.error: KvShardError | None = None
        self.is_closed = False

    def __repr__(self) -> str:
        return f"FakeRouterTransport(reads={len(self.reads)}, writes={len(self.writes)})"

    async def read(self, request: KeysRead, deadline: float) -> KeysReadReply:
        self.reads.append(request)
        if self.error is not None:
            raise self.error
        count = len(request.keys)
        return KeysReadReply([b"through a router"] * count, [ROUTER_VERSION] * count)

    async def write(self, request: KeysWrite, deadline: float) -> KeysWriteReply:
        self.writes.append(request)
        if self.error is not None:
            raise self.error
        count = len(request.keys)
        return KeysWriteReply([ROUTER_VERSION] * count, [False] * count)

    async def close(self) -> None:
        self.is_closed = True
