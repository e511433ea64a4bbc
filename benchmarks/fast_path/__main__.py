"""Measure the fast path beside its peers: `python -m benchmarks.fast_path`. Exits 1 when a bound is not kept.

Two leaves with 8 shards of one replica each, beside two redis servers behind a proxy: nobody keeps a second copy. The client,
in this process, and all servers share the machine's cores.
"""

import argparse
import pathlib
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import uvloop

from benchmarks.fast_path import tasks
from benchmarks.fast_path.data import KEYS, VALUE_BYTES, Data, sample_data
from benchmarks.fast_path.echo_arms import echoes
from benchmarks.fast_path.kvshard_arms import KvShard, direct_client, processes_of
from benchmarks.fast_path.names import DIRECT, REDIS, REDIS_PROXIED, ROUTER
from benchmarks.fast_path.peer_arms import RedisArms
from benchmarks.fast_path.results import BATCH_100, BATCH_1000, CALLS, LONE, PUTS, SINGLE, figures
from benchmarks.fast_path.tasks import Bench
from benchmarks.figures import Figure, show
from benchmarks.fleet import Fleet
from benchmarks.machine import machine
from benchmarks.measured import Absent, Comparison
from benchmarks.peers import redis_client
from benchmarks.peers.servers import Peers, Proxy, Server, peers
from benchmarks.processes import echo
from benchmarks.processor_time import peak_resident_bytes
from benchmarks.report import write
from benchmarks.sequence import one_after_the_other
from benchmarks.turns import Pace
from kvshard import Client

LEAVES, SHARDS, REPLICAS = 2, 8, 1
TIMEOUT_S = 60.0
"""Of one call: far beyond any that is still worth measuring."""

TARGET = pathlib.Path("bench-results/fast-path")
PACKAGES = ("grpcio", "uvloop", "msgspec", "protobuf", "redis", "hiredis")

TASKS: dict[str, Callable[[Bench], Awaitable[Comparison]]] = {
    LONE: tasks.lone_gets,
    SINGLE: tasks.single_gets,
    BATCH_100: partial(tasks.batch_gets, size=100),
    BATCH_1000: partial(tasks.batch_gets, size=1_000),
    CALLS: tasks.unary_gets,
    PUTS: tasks.durable_puts,
}


@asynccontextmanager
async def _bench(folder: pathlib.Path, data: Data, pace: Pace) -> AsyncIterator[tuple[Bench, Peers]]:
    """Start everybody and load the data."""
    async with AsyncExitStack() as stack:
        others = stack.enter_context(peers(folder))
        fleet = await stack.enter_async_context(Fleet(folder, leaves=LEAVES, shards=SHARDS, replicas=REPLICAS))
        processes = processes_of(fleet)
        by_router = await stack.enter_async_context(Client(fleet.address, timeout=TIMEOUT_S))
        direct = await stack.enter_async_context(direct_client(fleet.address))
        bench = Bench(
            fleet=fleet,
            router=KvShard(ROUTER, by_router, processes, data),
            direct=KvShard(DIRECT, direct, processes, data),
            redis=await _redis(REDIS, others.redis, data, stack),
            proxied=await _proxied(others.twemproxies, data, stack),
            redis_benchmark=others.redis_benchmark,
            etcd=others.etcd,
            echoes=await stack.enter_async_context(echoes(stack.enter_context(echo()))),
            data=data,
            pace=pace,
            stack=stack,
        )
        await bench.router.load()
        yield bench, others


async def _redis(name: str, server: Server | Absent, data: Data, stack: AsyncExitStack) -> RedisArms | Absent:
    usable = redis_client.usable(server, name)
    if isinstance(usable, Absent):
        return usable
    arms = RedisArms(name, usable, data, stack)
    await arms.load()
    return arms


async def _proxied(proxies: Sequence[Proxy] | Absent, data: Data, stack: AsyncExitStack) -> list[RedisArms] | Absent:
    """Arms by way of each proxy. What is loaded through one of them is behind all."""
    if isinstance(proxies, Absent):
        return Absent(REDIS_PROXIED, proxies.why)
    first = await _redis(REDIS_PROXIED, proxies[0], data, stack)
    if isinstance(first, Absent):
        return first
    return [first, *(RedisArms(REDIS_PROXIED, each, data, stack) for each in proxies[1:])]


async def measure(names: list[str], data: Data, pace: Pace, target: pathlib.Path) -> list[Figure]:
    """Run these comparisons; print each, write all."""
    with tempfile.TemporaryDirectory(prefix="kvshard-bench-") as folder:
        async with _bench(pathlib.Path(folder), data, pace) as (bench, others):
            found = await one_after_the_other({name: partial(TASKS[name], bench) for name in names})
            peak = peak_resident_bytes(bench.fleet.router.pid)
            setting = {
                "kvshard": f"{LEAVES} leaves, {SHARDS} shards x {REPLICAS} replica, one router",
                "data": f"{data.keys:,} keys of {VALUE_BYTES} bytes",
                "pace": f"{pace.turns} turns of {pace.seconds:g} s",
                "peers": others.versions,
                "machine": machine(PACKAGES),
            }
    write(setting, found.comparisons, target)
    return [*figures(found.comparisons, peak), *found.failed()]


def main() -> int:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fast_path", description=__doc__)
    parser.add_argument("--turns", type=int, default=Pace().turns, help="blocks of each arm (%(default)s)")
    parser.add_argument("--seconds", type=float, default=Pace().seconds, help="of a block (%(default)s)")
    parser.add_argument("--keys", type=int, default=KEYS, help="that are stored (%(default)s)")
    parser.add_argument("--target", type=pathlib.Path, default=TARGET, help="files to write, without their suffix")
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"which of {', '.join(TASKS)}; default: all")
    options = parser.parse_args()
    if unknown := set(options.tasks) - set(TASKS):
        parser.error(f"no such task: {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    pace, data = Pace(options.turns, options.seconds), sample_data(options.keys)
    found = uvloop.run(measure(options.tasks or list(TASKS), data, pace, options.target))
    return 0 if show(found, options.target.with_name(f"{options.target.name}-figures.json")) else 1


if __name__ == "__main__":
    sys.exit(main())
