"""A whole cluster of one real leaf and a router in this process: RocksDB, tantivy, lanes and gRPC, no process to start."""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable

from harness.leaf import LEAF, bootstrap, coordinator_url

from leaf.server import LeafOptions
from leaf.server import run as run_leaf
from router.server import RouterOptions
from router.server import run as run_router

Run = Callable[[asyncio.Event, Callable[[str], None]], Awaitable[None]]


@contextlib.asynccontextmanager
async def _running(run: Run) -> AsyncIterator[str]:
    """Its address."""
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    running = asyncio.ensure_future(run(stop, ready.set_result))
    try:
        await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        yield await ready
    finally:
        stop.set()
        await running


@contextlib.asynccontextmanager
async def small_cluster(folder: pathlib.Path, shards: int = 4) -> AsyncIterator[str]:
    """Runs until the block ends; the router's address."""
    await bootstrap(folder, shards)
    url = coordinator_url(folder)
    leaf = LeafOptions(LEAF, folder / LEAF, url, "127.0.0.1:0")
    async with (
        _running(lambda stop, on_ready: run_leaf(leaf, stop, on_ready)),
        _running(lambda stop, on_ready: run_router(RouterOptions(url, "127.0.0.1:0"), stop, on_ready)) as address,
    ):
        yield address
