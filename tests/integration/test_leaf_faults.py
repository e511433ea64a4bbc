"""Faults of real leaves, asked over real lanes: what they stop, what they leave alone, and that they end by themselves."""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator

import pytest
from harness.leaf import LeafCaller, coordinator_url, leaf_caller

from kvshard.clock import SystemClock
from kvshard.clustermap import Leaf
from kvshard.coordination import mapwriter
from kvshard.coordination.connect import connect
from kvshard.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, Unavailable
from kvshard.fault_model import FaultOrder, FaultRecord
from kvshard.model import (
    LeafStatusRequest,
    ShardRead,
    ShardScan,
    ShardSearch,
    ShardWrite,
)
from leaf.server import LeafOptions, run

FAILURE_TIMEOUT_S = 1.0
SHORT_S = 0.15
"""Long for an answer of a leaf that is not hampered, and a fraction of the failure timeout."""


@contextlib.asynccontextmanager
async def running_leaves(folder: pathlib.Path, count: int, *, are_faults_allowed: bool = True) -> AsyncIterator[LeafCaller]:
    """Leaves of one cluster with one shard each leaf leads, every leaf a replica of each."""
    leaves = [f"leaf-{number}" for number in range(1, count + 1)]
    coordinator = connect(coordinator_url(folder), SystemClock())
    plan = mapwriter.BootstrapPlan(leaves=tuple(map(Leaf, leaves)), shards=2, replicas=count)
    assert await mapwriter.bootstrap(coordinator, plan)
    await coordinator.close()
    stop, tasks = asyncio.Event(), []
    ready = [asyncio.get_running_loop().create_future() for _ in leaves]
    for leaf, future in zip(leaves, ready, strict=True):
        options = LeafOptions(
            leaf,
            folder / leaf,
            coordinator_url(folder),
            "127.0.0.1:0",
            failure_timeout_s=FAILURE_TIMEOUT_S,
            are_faults_allowed=are_faults_allowed,
        )
        tasks.append(asyncio.create_task(run(options, stop, future.set_result)))
    try:
        async with asyncio.timeout(20.0):
            await asyncio.gather(*ready)
        async with leaf_caller(folder) as caller:
            yield caller
    finally:
        stop.set()
        await asyncio.gather(*tasks)


@pytest.fixture
async def caller(tmp_path: pathlib.Path) -> AsyncIterator[LeafCaller]:
    async with running_leaves(tmp_path, 1) as made:
        yield made


async def inject(caller: LeafCaller, leaf: str, kind: str, **fields) -> None:
    values = {"probability": 1.0, "duration_s": 30.0, "seed": 1} | fields
    order = FaultOrder(inject=FaultRecord(f"{kind}-1", kind, **values))
    await caller.client.order_faults(leaf, order, caller.deadline(2.0))


async def clear(caller: LeafCaller, leaf: str) -> int:
    return (await caller.client.order_faults(leaf, FaultOrder(clear=True), caller.deadline(2.0))).cleared


def read_of(caller: LeafCaller, key: bytes = b"k", shard: int = 0) -> ShardRead:
    return ShardRead(shard, caller.epoch(shard), 1, [key])


async def write(caller: LeafCaller, leaf: str, value: bytes, shard: int = 0) -> None:
    request = ShardWrite(shard, caller.epoch(shard), 1, [b"k"], [value])
    assert not (await caller.client.write(leaf, request, caller.deadline(5.0))).reply.errors


async def took(caller: LeafCaller, call) -> float:
    began = caller.clock.monotonic()
    await call
    return caller.clock.monotonic() - began


async def test_a_pause_stops_everything_that_comes_over_a_lane(caller: LeafCaller) -> None:
    leaf = "leaf-1"
    docs = await caller.maps.create_collection("docs", {"title": "text"})
    await write(caller, leaf, b"v")
    search = ShardSearch(0, caller.epoch(0), docs.id, "word", [], 5)
    asked = {
        "read": lambda deadline: caller.client.read(leaf, read_of(caller), deadline),
        "scan": lambda deadline: caller.client.scan(leaf, ShardScan(0, caller.epoch(0), 1, b"", None, 5), deadline),
        "search": lambda deadline: caller.client.search(leaf, search, deadline),
        "status": lambda deadline: caller.client.status(leaf, LeafStatusRequest(), deadline),
        "ping": lambda deadline: caller.client.ping(leaf, deadline),
    }
    for ask in asked.values():
        await ask(caller.deadline())
    await inject(caller, leaf, "pause")
    await inject(caller, leaf, "delay", delay_s=0.001)  # Counts the requests that are begun.
    for ask in asked.values():
        with pytest.raises(DeadlineExceeded):
            await ask(caller.deadline(SHORT_S))
    report = await caller.client.order_faults(leaf, FaultOrder(), caller.deadline(2.0))
    assert [(each.fault.kind, each.hits) for each in report.faults] == [("pause", 1), ("delay", 0)]
    waiting = [asyncio.create_task(ask(caller.deadline())) for ask in asked.values()]
    assert await clear(caller, leaf) == 2
    await asyncio.gather(*waiting)  # What waited is answered then.


async def test_an_answer_that_is_ready_waits_for_the_end_of_a_pause(caller: LeafCaller) -> None:
    leaf = "leaf-1"
    await write(caller, leaf, b"v")
    await inject(caller, leaf, "delay", delay_s=SHORT_S, methods=["read"])
    reading = asyncio.create_task(caller.client.read(leaf, read_of(caller), caller.deadline()))
    await caller.client.ping(leaf, caller.deadline())  # The leaf has read the request before it.
    order = FaultOrder(inject=FaultRecord("p", "pause", 1.0, duration_s=30.0))
    await caller.client.order_faults(leaf, order, caller.deadline(2.0))
    done, _ = await asyncio.wait({reading}, timeout=3 * SHORT_S)
    assert not done
    await clear(caller, leaf)
    assert (await reading).reply.values == [b"v"]


async def test_orders_get_through_although_the_lane_is_full(caller: LeafCaller) -> None:
    await inject(caller, "leaf-1", "pause")
    value = bytes(1 << 20)  # Together more than the windows of stream and connection.
    writes = [asyncio.create_task(write(caller, "leaf-1", value)) for _ in range(32)]
    await asyncio.sleep(SHORT_S)
    assert not any(task.done() for task in writes)
    assert await clear(caller, "leaf-1") == 1
    await asyncio.gather(*writes)


async def test_a_pause_ends_by_itself(caller: LeafCaller) -> None:
    leaf = "leaf-1"
    await inject(caller, leaf, "pause", duration_s=SHORT_S)
    assert await took(caller, caller.client.ping(leaf, caller.deadline())) > SHORT_S / 2
    assert (await caller.client.order_faults(leaf, FaultOrder(), caller.deadline())).faults == []
    assert await clear(caller, leaf) == 0


async def test_short_pauses_come_again(caller: LeafCaller) -> None:
    await inject(caller, "leaf-1", "pause", probability=0.5, delay_s=0.002)
    faults = []
    while not faults or faults[0].hits < 20:  # A second has about 250 of them.
        faults = (await caller.client.order_faults("leaf-1", FaultOrder(), caller.deadline())).faults
        await caller.client.ping("leaf-1", caller.deadline())
    await clear(caller, "leaf-1")


async def test_replication_goes_on_while_a_secondary_is_paused(tmp_path: pathlib.Path) -> None:
    async with running_leaves(tmp_path, 2) as caller:
        shard = next(each for each in caller.maps.current.shards.values() if len(each.in_sync) == 2)
        primary = shard.primary
        (secondary,) = {replica.leaf for replica in shard.in_sync} - {primary}
        before = {each.id: each.epoch for each in caller.maps.current.shards.values()}
        await inject(caller, secondary, "pause")
        until = caller.deadline(2.5 * FAILURE_TIMEOUT_S)  # A leaf that does not beat is evicted after 0.6 of one.
        writes = 0
        while caller.clock.monotonic() < until:
            await write(caller, primary, b"%d" % writes, shard.id)  # The secondary has to acknowledge it.
            writes += 1
            await asyncio.sleep(0.01)
        with pytest.raises(DeadlineExceeded):
            await caller.client.ping(secondary, caller.deadline(SHORT_S))
        await clear(caller, secondary)
        found = await caller.client.read(secondary, read_of(caller, shard=shard.id), caller.deadline())
        assert found.reply.values == [b"%d" % (writes - 1)]
        await caller.maps.refresh()
        assert {each.id: each.epoch for each in caller.maps.current.shards.values()} == before


async def test_slow_delay_error_and_drop(caller: LeafCaller) -> None:
    leaf = "leaf-1"
    await write(caller, leaf, b"v")

    def read(seconds: float = 10.0):
        return caller.client.read(leaf, read_of(caller), caller.deadline(seconds))

    await inject(caller, leaf, "slow", factor=200.0)  # Of 0.5 ms: 100 ms
    assert await took(caller, read()) > 0.09
    await clear(caller, leaf)
    await inject(caller, leaf, "delay", delay_s=0.1, methods=["read"])
    assert await took(caller, read()) > 0.09
    await write(caller, leaf, b"w")
    (found,) = (await caller.client.order_faults(leaf, FaultOrder(), caller.deadline())).faults
    assert found.hits == 1
    await clear(caller, leaf)
    await inject(caller, leaf, "error")
    with pytest.raises(Unavailable, match="injected"):
        await read()
    await clear(caller, leaf)
    await inject(caller, leaf, "drop")
    with pytest.raises(DeadlineExceeded):
        await read(SHORT_S)
    await caller.client.ping(leaf, caller.deadline(SHORT_S))
    status = await caller.client.status(leaf, LeafStatusRequest(), caller.deadline())
    assert status.in_flight <= 1  # What was dropped is not held either.
    await clear(caller, leaf)
    assert (await read()).reply.values == [b"w"]


async def test_a_request_fault_ends_by_itself(caller: LeafCaller) -> None:
    await inject(caller, "leaf-1", "error", duration_s=SHORT_S)
    with pytest.raises(Unavailable, match="injected"):
        await caller.client.read("leaf-1", read_of(caller), caller.deadline())
    await asyncio.sleep(1.2 * SHORT_S)
    await caller.client.read("leaf-1", read_of(caller), caller.deadline())


async def test_a_leaf_stops_in_spite_of_a_pause(tmp_path: pathlib.Path) -> None:
    async with asyncio.timeout(10.0):
        async with running_leaves(tmp_path, 1) as caller:
            await inject(caller, "leaf-1", "pause")


async def test_refused_unless_allowed(tmp_path: pathlib.Path) -> None:
    async with running_leaves(tmp_path, 1, are_faults_allowed=False) as caller:
        with pytest.raises(FailedPrecondition, match="--allow-faults"):
            await inject(caller, "leaf-1", "error")
        assert (await caller.client.order_faults("leaf-1", FaultOrder(), caller.deadline())).faults == []
        await caller.client.ping("leaf-1", caller.deadline())


async def test_a_wrong_fault_is_refused_and_changes_nothing(caller: LeafCaller) -> None:
    with pytest.raises(InvalidArgument, match="factor"):
        await inject(caller, "leaf-1", "slow")
    assert (await caller.client.order_faults("leaf-1", FaultOrder(), caller.deadline())).faults == []
