"""Following the cluster map through routers that come, go, lag behind, hang and speak of other clusters."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from fakes.map_source import cluster_map

from kvshard.client import map_watch
from kvshard.client.map_watch import MapWatch
from kvshard.clock import SystemClock
from kvshard.clustermap import ClusterMap
from kvshard.errors import Unavailable
from kvshard.rpc.channel import aio_server, bind
from kvshard.rpc.convert import cluster_map_to_proto
from kvshard.v1 import cluster_pb2, cluster_pb2_grpc

WAIT_S = 10


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_watch, "BACKOFF_S", 0.001)
    monkeypatch.setattr(map_watch, "BACKOFF_MAX_S", 0.002)


class MapRouter(cluster_pb2_grpc.ClusterServicer):
    """A router that only knows a map. `current` is set by `show`, which the watchers see; `known` what GetMap answers."""

    def __init__(self, current: ClusterMap, cluster_id: str = "blue") -> None:
        self.cluster_id = cluster_id
        self.current = self.known = cluster_map_to_proto(current)
        self.reads = 0
        self.watches = 0
        self.hang = False
        self.address = ""
        self._server = aio_server()
        self._changed = asyncio.Event()
        cluster_pb2_grpc.add_ClusterServicer_to_server(self, self._server)

    async def start(self, listen: str = "127.0.0.1:0") -> None:
        self.address = bind(self._server, listen)
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    def show(self, current: ClusterMap | cluster_pb2.ClusterMap, cluster_id: str = "blue") -> None:
        self.current = cluster_map_to_proto(current) if isinstance(current, ClusterMap) else current
        self.known, self.cluster_id = self.current, cluster_id
        self._changed.set()
        self._changed = asyncio.Event()

    async def GetMap(self, request, context):
        self.reads += 1
        if self.hang:
            await asyncio.Event().wait()
        return cluster_pb2.GetMapResponse(map=self.known, cluster_id=self.cluster_id)

    async def WatchMap(self, request, context):
        self.watches += 1
        while True:
            changed = self._changed
            await context.write(cluster_pb2.WatchMapResponse(map=self.current, cluster_id=self.cluster_id))
            await changed.wait()


@asynccontextmanager
async def routers(*maps: ClusterMap) -> AsyncIterator[list[MapRouter]]:
    made = [MapRouter(each) for each in maps]
    for router in made:
        await router.start()
    try:
        yield made
    finally:
        for router in made:
            await router.stop()


@asynccontextmanager
async def watching(*addresses: str) -> AsyncIterator[MapWatch]:
    watch = MapWatch(addresses, SystemClock())
    watch.start()
    try:
        yield watch
    finally:
        await watch.close()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_so():
            await asyncio.sleep(0.001)


async def test_it_follows_a_router() -> None:
    async with routers(cluster_map(version=3)) as (router,), watching(router.address) as watch:
        seen: list[int] = []
        watch.subscribe(lambda new: seen.append(new.version))
        assert not watch.has_map
        assert (await watch.wait_newer(-1, WAIT_S)).version == 3
        assert watch.cluster_id == "blue"
        assert watch.current == cluster_map(version=3)
        router.show(cluster_map(version=5, epoch=2))
        assert (await watch.wait_newer(3, WAIT_S)).shards[0].epoch == 2
        assert seen == [3, 5]
        assert (await watch.wait_newer(5, 0.001)).version == 5  # After the timeout, what there is.
        assert router.watches == 1


async def test_an_older_map_does_not_replace_a_newer_one() -> None:
    async with routers(cluster_map(version=7)) as (router,), watching(router.address) as watch:
        await watch.wait_newer(-1, WAIT_S)
        router.known = cluster_map_to_proto(cluster_map(version=6, epoch=9))
        assert (await watch.refresh()).version == 7
        router.show(cluster_map(version=6))
        router.show(cluster_map(version=8))
        assert (await watch.wait_newer(7, WAIT_S)).version == 8


async def test_an_invalid_map_is_refused_and_the_one_before_it_stays() -> None:
    async with routers(cluster_map(version=1)) as (router,), watching(router.address) as watch:
        await watch.wait_newer(-1, WAIT_S)
        broken = cluster_map_to_proto(cluster_map(version=2))
        del broken.shards[0]
        router.show(broken)
        router.show(cluster_map(version=3))
        assert (await watch.wait_newer(1, WAIT_S)).version == 3


async def test_another_cluster_begins_anew_though_its_version_is_lower() -> None:
    async with routers(cluster_map(version=9, shards=8)) as (router,), watching(router.address) as watch:
        await watch.wait_newer(-1, WAIT_S)
        router.show(cluster_map(version=2, shards=4), "green")
        await until(lambda: watch.cluster_id == "green")
        assert (watch.current.version, len(watch.current.shards)) == (2, 4)


async def test_a_router_that_is_too_old_to_name_its_cluster() -> None:
    async with routers(cluster_map(version=1)) as (router,):
        router.cluster_id = ""
        async with watching(router.address) as watch:
            await watch.wait_newer(-1, WAIT_S)
            assert watch.cluster_id == ""
            router.show(cluster_map(version=1), "blue")  # It was replaced by one that does.
            await until(lambda: watch.cluster_id == "blue")


async def test_when_a_router_goes_the_next_one_is_followed() -> None:
    async with (
        routers(cluster_map(version=1), cluster_map(version=4)) as (first, second),
        watching(first.address, second.address) as watch,
    ):
        assert (await watch.wait_newer(-1, WAIT_S)).version == 1
        await first.stop()
        assert (await watch.wait_newer(1, WAIT_S)).version == 4
        assert (await watch.refresh()).version == 4
        assert second.reads == 1


async def test_it_waits_for_a_router_that_is_not_there_yet() -> None:
    late = MapRouter(cluster_map(version=1))
    await late.start()
    address = late.address
    await late.stop()
    async with watching(address) as watch:
        with pytest.raises(Unavailable):
            await watch.wait_newer(-1, 0.05)
        with pytest.raises(Unavailable, match="cannot be read"):
            await watch.refresh()
        router = MapRouter(cluster_map(version=1))
        await router.start(address)
        try:
            assert (await watch.wait_newer(-1, WAIT_S)).version == 1
        finally:
            await router.stop()


async def test_those_who_refresh_together_share_a_read_that_begins_after_they_came() -> None:
    async with routers(cluster_map(version=1)) as (router,), watching(router.address) as watch:
        await watch.wait_newer(-1, WAIT_S)
        router.known = cluster_map_to_proto(cluster_map(version=2))
        found = await asyncio.gather(*(watch.refresh() for _ in range(100)))
        assert {each.version for each in found} == {2}
        assert router.reads == 1
        await watch.refresh()
        assert router.reads == 2


async def test_who_gives_up_does_not_take_the_read_from_the_others() -> None:
    async with routers(cluster_map(version=1)) as (router,), watching(router.address) as watch:
        await watch.wait_newer(-1, WAIT_S)
        impatient, patient = asyncio.create_task(watch.refresh()), asyncio.create_task(watch.refresh())
        await asyncio.sleep(0)
        impatient.cancel()
        assert (await patient).version == 1
        assert impatient.cancelled()


async def test_a_router_that_hangs_is_passed_over_by_a_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_watch, "REFRESH_TIMEOUT_S", 0.05)
    async with (
        routers(cluster_map(version=1), cluster_map(version=2)) as (first, second),
        watching(first.address, second.address) as watch,
    ):
        await watch.wait_newer(-1, WAIT_S)
        first.hang = True
        assert (await watch.refresh()).version == 2


async def test_its_close_ends_those_who_wait() -> None:
    async with routers(cluster_map(version=1)) as (router,):
        router.hang = True
        async with watching(router.address) as watch:
            await watch.wait_newer(-1, WAIT_S)
            reading = asyncio.create_task(watch.refresh())
            waiting = asyncio.create_task(watch.wait_newer(1, WAIT_S))
            await until(lambda: router.reads == 1)
        with pytest.raises(Unavailable):
            await reading
        assert (await waiting).version == 1
        with pytest.raises(Unavailable):
            await watch.refresh()
