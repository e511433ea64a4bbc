"""redis-benchmark, the load client in C that comes with redis: what a server or a proxy does when no client is in the way."""

import asyncio
import csv
import itertools
import os
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence

from benchmarks.measured import Block
from benchmarks.peers.executables import Executable
from benchmarks.peers.servers import Server

PROBE_REQUESTS = 2_000
"""Requests of the first run, which says how many a block takes."""

REQUESTS_MAX = 20_000_000
"""Of one block: a bound, far above what a second holds."""

RANDOM_KEY = "key:__rand_int__"
"""A key out of `key:000000000000` and so on: the program draws the twelve digits anew for each one."""


class RedisBenchmark:
    """Runs of one command against one server. operations: how many one request counts for."""

    def __init__(
        self, executable: Executable, server: Server, command: Sequence[str], *, connections: int, keys: int, operations: int
    ) -> None:
        self._executable = executable
        self._server = server
        self._command = command
        self._connections = connections
        self._keys = keys
        self._operations = operations
        self._rate = 0.0

    async def run(self, seconds: float) -> Block:
        """Load for about so many seconds. Raises RuntimeError when the program fails."""
        if not self._rate:
            self._rate = await self._requests_per_second(PROBE_REQUESTS)
        requests = min(REQUESTS_MAX, max(PROBE_REQUESTS, int(self._rate * seconds)))
        self._rate = await self._requests_per_second(requests)
        return Block(requests * self._operations, requests / self._rate)

    async def _requests_per_second(self, requests: int) -> float:
        process = await asyncio.create_subprocess_exec(
            str(self._executable.path),
            *("-h", "127.0.0.1", "-p", str(self._server.port), "-c", str(self._connections)),
            *("-n", str(requests), "-r", str(self._keys), "--csv", *self._command),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            env={**os.environ, **self._executable.environment},
        )
        out, problems = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"redis-benchmark ended with {process.returncode}: {problems.decode(errors='replace')[-500:]}")
        return requests_per_second(out.decode())


def requests_per_second(output: str) -> float:
    """The figure in what it prints with --csv. Raises ValueError when there is none."""
    rows = list(csv.reader(output.splitlines()))
    for head, row in itertools.pairwise(rows):
        if "rps" in head:
            return float(row[head.index("rps")])
    raise ValueError(f"no figure in {output[-300:]!r}")
