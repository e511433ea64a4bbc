"""A leaf whose link goes down: no proxy in between, packets that vanish, connections that nobody closes."""

import asyncio
import pathlib
import time

import pytest
from harness.namespaces import NamespacedFleet, namespaces
from harness.workload import running

NAMES = ["leaf-1", "leaf-2", "leaf-3"]
TAKEN_OVER_WITHIN_S = 10.0
WHOLE_WITHIN_S = 25.0


async def test_a_link_that_goes_down_and_comes_up_again(tmp_path: pathlib.Path) -> None:
    with namespaces(NAMES) as network:
        if isinstance(network, str):
            pytest.skip(network)
        async with NamespacedFleet(tmp_path, network) as fleet:
            leaf = await fleet.primary(0)
            async with running(fleet.address, seed=5) as load:
                await load.progress(300)
                network.cut(leaf)
                began = time.monotonic()
                while any(each.primary == leaf for each in (await fleet.map()).shards.values()):
                    assert time.monotonic() - began < TAKEN_OVER_WITHIN_S, await fleet.map()
                    await asyncio.sleep(0.02)
                await load.progress(300)
                network.mend(leaf)
                await fleet.wait_whole(WHOLE_WITHIN_S)
                await load.progress(100)
            assert not load.errors, repr(load)
