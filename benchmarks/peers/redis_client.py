"""redis-py's asyncio client with hiredis, as fast as it goes: which of its defaults are left out, and why."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from benchmarks.measured import Absent
from benchmarks.peers.servers import Server

if TYPE_CHECKING:
    from redis.asyncio import Redis


def usable(server: Server | Absent, name: str) -> Server | Absent:
    """The server, if it runs and the client is installed; else why the arm of this name is absent."""
    if isinstance(server, Absent):
        return Absent(name, server.why)
    missing = [package for package in ("redis", "hiredis") if find_spec(package) is None]
    return Absent(name, f"{' and '.join(missing)} not installed: the bench extra has them") if missing else server


@asynccontextmanager
async def connected(server: Server, connections: int) -> AsyncIterator["Redis"]:
    """A client with a pool of so many connections; a caller waits for one that is free.

    RESP2 and no driver info: a proxy refuses the commands that the client would send first. No socket timeout: it would start
    a timer with each call.
    """
    from redis.asyncio import BlockingConnectionPool, Redis

    pool = BlockingConnectionPool(
        host="127.0.0.1",
        port=server.port,
        max_connections=connections,
        timeout=None,
        protocol=2,
        driver_info=None,
        socket_timeout=None,
    )
    client = Redis(connection_pool=pool)
    try:
        yield client
    finally:
        await client.aclose()
        await pool.disconnect()
