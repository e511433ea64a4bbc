"""A whole cluster of real leaves, usually one, and a router in this process: RocksDB, tantivy, lanes and gRPC."""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial

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
async def small_cluster(folder: pathlib.Path, shards: int = 4, leaves: Sequence[str] = (LEAF,)) -> AsyncIterator[str]:
    """Runs until the block ends; the router's address. Each leaf has a replica of every shard."""
    await bootstrap(folder, shards, leaves)
    url = coordinator_url(folder)
    async with contextlib.AsyncExitStack() as stack:
        for name in leaves:
            options = LeafOptions(name, folder / name, url, "127.0.0.1:0")
            await stack.enter_async_context(_running(partial(run_leaf, options)))
        yield await stack.enter_async_context(_running(partial(run_router, RouterOptions(url, "127.0.0.1:0"))))
