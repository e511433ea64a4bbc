"""Lanes and streams on real processes: what breaks them while hundreds of single calls share them, and readers that are slow.

No acknowledged write is lost, no answer is wrong, writes of one key keep their order, and callers see no error where another
router or replica could have served them. What a reader does not take stays at its leaf.
"""

import asyncio
import os
import pathlib
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from harness.cluster import free_port
from harness.fault_doors import FaultDoors
from harness.single_calls import CALLERS, SingleCalls, single_calls

from benchmarks.fleet import Fleet, ServiceProcess
from kvshard import Client, Item, ResourceExhausted
from kvshard.client.retries import NO_RETRIES

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEED = 7
FAILURE_TIMEOUT_S = 1.0
"""Shorter than the default, so that the tests are; long against the pauses of a machine that does other things too."""

WHOLE_WITHIN_S = 30.0
LARGE_VALUE = os.urandom(1024 * 1024)
LARGE_VALUES = 48
ROUTER_MAX_MB = 200.0


class TwoRouters(Fleet):
    """Three leaves and two routers, the first one behind proxies."""

    def __init__(self, folder: pathlib.Path) -> None:
        arguments = ("--failure-timeout", str(FAILURE_TIMEOUT_S))
        self.proxy = FaultDoors()
        self.second_port = free_port()
        super().__init__(
            folder,
            shards=4,
            router_port=self.proxy.ports[0],
            leaf_arguments=arguments,
            router_arguments=self.proxy.lane_arguments,
        )
        listen = ("--listen", f"127.0.0.1:{self.second_port}", "--coordinator", self.coordinator)
        self.second = ServiceProcess("router", listen, folder / "second-router.log")

    @property
    def addresses(self) -> list[str]:
        """Of the routers, as clients know them."""
        return [self.proxy.address, f"127.0.0.1:{self.second_port}"]

    async def start(self) -> "TwoRouters":
        await super().start()
        await self.proxy.start()
        self.second.start()
        await self.second.wait_ready()
        return self

    async def mend(self) -> None:
        """Start what is down; all replicas are in sync then."""
        self.proxy.heal()
        for process in (*self.processes.values(), self.second):
            if not process.is_running:
                process.start()
            await process.wait_ready()
        await self.wait_whole(WHOLE_WITHIN_S)

    async def close(self) -> None:
        await self.proxy.close()
        self.second.stop(signal.SIGKILL)
        await super().close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TwoRouters]:
    async with TwoRouters(tmp_path_factory.mktemp("streams")) as started:
        yield started


def assert_no_errors(load: SingleCalls) -> None:
    assert not load.errors, f"errors though somebody could serve: {load!r}"


def resident_mb(process: ServiceProcess) -> float:
    pages = int(pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def test_leaves_that_die_and_pause_under_single_calls(fleet: TwoRouters) -> None:
    await fleet.mend()
    first = await fleet.primary(0)
    second = next(leaf for leaf in fleet.names if leaf != first)
    async with Client(fleet.addresses) as kv, single_calls([kv], seed=SEED, prefix="leaves", unary=fleet.addresses[1]) as load:
        await load.progress(CALLERS)
        fleet.leaves[first].kill()
        await load.progress(2 * CALLERS)
        await fleet.mend()
        await load.progress(CALLERS)
        fleet.leaves[second].send(signal.SIGSTOP)
        await asyncio.sleep(1.5 * FAILURE_TIMEOUT_S)
        fleet.leaves[second].send(signal.SIGCONT)
        await load.progress(2 * CALLERS)
    assert_no_errors(load)
    assert load.counts["scan"] > 2
    assert load.counts["unary put"] > 2


async def test_routers_that_die_pause_and_stop_under_single_calls(fleet: TwoRouters) -> None:
    await fleet.mend()
    async with Client(fleet.addresses) as kv, single_calls([kv], seed=SEED, prefix="routers") as load:
        await load.progress(CALLERS)
        fleet.router.kill()
        await load.progress(CALLERS)
        fleet.second.send(signal.SIGSTOP)
        fleet.router.start()
        await asyncio.sleep(1.0)
        fleet.second.send(signal.SIGCONT)
        await fleet.router.wait_ready()
        await load.progress(CALLERS)
        await asyncio.to_thread(fleet.second.stop, signal.SIGTERM)
        await load.progress(CALLERS)
        fleet.second.start()
        await fleet.second.wait_ready()
        await asyncio.to_thread(fleet.router.stop, signal.SIGTERM)
        await load.progress(CALLERS)
    assert_no_errors(load)


async def test_connections_that_are_reset_in_the_middle_of_frames(fleet: TwoRouters) -> None:
    await fleet.mend()
    async with Client(fleet.proxy.address) as kv, single_calls([kv], seed=SEED, prefix="reset") as load:
        for _ in range(4):
            await load.progress(CALLERS // 2)
            fleet.proxy.reset()
            await asyncio.sleep(0.02)
            fleet.proxy.heal()
        await load.progress(CALLERS)
    assert_no_errors(load)


async def test_a_slow_reader_stops_the_stream_and_not_the_memory(fleet: TwoRouters) -> None:
    await fleet.mend()
    async with Client(fleet.addresses[1], timeout=20.0) as kv:
        for number in range(LARGE_VALUES):
            await kv.put(f"large:{number:03d}", LARGE_VALUE)
        async with kv.scan(prefix="large:") as scan:
            seen = [item.key for item in await scan.take(1)]
            await asyncio.sleep(0.3)
            processes = (fleet.second, *fleet.leaves.values())
            before = [resident_mb(process) for process in processes]
            await asyncio.sleep(0.5)
            grown = [resident_mb(process) - earlier for process, earlier in zip(processes, before, strict=True)]
            assert max(grown) < 8.0, f"somebody goes on fetching: {grown}"
            async for item in scan:
                seen.append(item.key)
                assert item.value == LARGE_VALUE
            assert seen == [f"large:{number:03d}" for number in range(LARGE_VALUES)]
        assert resident_mb(fleet.second) < ROUTER_MAX_MB


async def test_many_slow_readers_of_large_values_share_what_scans_may_hold(fleet: TwoRouters) -> None:
    """Runs behind the test that wrote the values. Those that come too late are refused, in time and with a reason."""
    async with Client(fleet.addresses[1], timeout=20.0, retries=NO_RETRIES) as kv:
        scans = [kv.scan(prefix="large:") for _ in range(40)]
        try:
            first = await asyncio.gather(*(scan.take(1) for scan in scans), return_exceptions=True)
            refused = [each for each in first if isinstance(each, BaseException)]
            assert all(isinstance(each, ResourceExhausted) for each in refused), refused
            assert len(refused) < len(first)
            assert resident_mb(fleet.second) < ROUTER_MAX_MB + 100.0
            readers = [scan for scan, each in zip(scans, first, strict=True) if not isinstance(each, BaseException)]
            rest = await asyncio.gather(*(_count(scan) for scan in readers[:3]))
            assert rest == [LARGE_VALUES - 1] * len(rest)
        finally:
            for scan in scans:
                await scan.aclose()


async def _count(scan) -> int:
    return len([item async for item in scan])


async def test_a_batch_of_large_values_comes_in_several_answers(fleet: TwoRouters) -> None:
    """Runs behind the test that wrote the values: 96 MB, while the router holds a fraction of it."""
    keys = [f"large:{number:03d}" for number in range(LARGE_VALUES)] * 2
    async with Client(fleet.addresses[1], timeout=20.0) as kv:
        items = await kv.get_many(keys)
        wrong = [item for item in items if not isinstance(item, Item) or item.value != LARGE_VALUE]
        assert not wrong, f"{len(wrong)} of {len(keys)}: {wrong[0]!r}"
        assert resident_mb(fleet.second) < ROUTER_MAX_MB + 100.0
