"""The tasks that are compared, each with the arms that can do it: the task itself is the same for all of them."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from benchmarks.fast_path import kvshard_arms, peer_arms
from benchmarks.fast_path.data import Data
from benchmarks.fast_path.echo_arms import Echoes
from benchmarks.fast_path.kvshard_arms import KvShard
from benchmarks.fast_path.names import ETCD, REDIS, REDIS_BENCHMARK, REDIS_PROXIED
from benchmarks.fast_path.peer_arms import RedisArms
from benchmarks.fleet import Fleet
from benchmarks.measured import Absent, Comparison
from benchmarks.peers.executables import Executable
from benchmarks.peers.servers import Server
from benchmarks.turns import Arm, Pace, best, in_turns

CALLERS = 512
"""Concurrent single operations: a web service's worth of requests under way."""

UNARY_CALLERS = 64
"""Concurrent unary calls: more do not make either server faster, and their queue only grows."""

IN_FLIGHT = 4
"""Batches of writes under way at a time, of every arm: one is encoded while others are read and written elsewhere."""

IN_FLIGHT_TRIED = (4, 16)
"""The same of reads; every arm is measured with the number that suits it best."""

PUT_BATCH = 1_000

LONE_FINER = 4
"""Blocks of lone calls are so many times shorter: nothing fills up in them, and where six blocks of a second stood beside each
other, the machine's noise moved the ratio from 1.01 to 1.41 between runs."""

Sweeps = dict[str, peer_arms.Sweep]
"""What was tried to find an arm's best setting, by arm."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Everybody who takes part, loaded with the same data."""

    fleet: Fleet
    router: KvShard
    direct: KvShard
    redis: RedisArms | Absent
    proxied: Sequence[RedisArms] | Absent
    redis_benchmark: Executable | Absent
    etcd: Server | Absent
    echoes: Echoes
    data: Data
    pace: Pace
    stack: AsyncExitStack


def _under(name: str, absent: Absent) -> Absent:
    return replace(absent, name=name)


async def single_gets(bench: Bench) -> Comparison:
    """Concurrent callers, each with one get after the other."""
    arms: list[Arm | Absent] = [bench.router.single_gets(CALLERS), bench.direct.single_gets(CALLERS)]
    sweeps: Sweeps = {}
    for name, redis in ((REDIS, bench.redis), (REDIS_PROXIED, bench.proxied)):
        if isinstance(redis, Absent):
            arms.append(_under(name, redis))
        else:
            servers = [redis] if isinstance(redis, RedisArms) else redis
            arm, sweeps[name] = await peer_arms.best_single_gets(servers, CALLERS)
            arms.append(arm)
    arms.append(await _benchmark(bench, 1, CALLERS, sweeps))
    compared = await in_turns(f"{CALLERS} concurrent single gets", "gets/s", arms, bench.pace)
    return replace(compared, sweeps=sweeps)


async def _benchmark(bench: Bench, size: int, connections: int, sweeps: Sweeps) -> Arm | Absent:
    proxied, executable = bench.proxied, bench.redis_benchmark
    if isinstance(proxied, Absent):
        return _under(REDIS_BENCHMARK, proxied)
    if isinstance(executable, Absent):
        return _under(REDIS_BENCHMARK, executable)
    arm, sweeps[REDIS_BENCHMARK] = await peer_arms.best_benchmark(proxied, executable, size, connections)
    return arm


async def batch_gets(bench: Bench, size: int) -> Comparison:
    """Batches of keys, a few under way."""
    arms: list[Arm | Absent] = []
    sweeps: Sweeps = {}

    async def add_best(candidates: Sequence[Arm]) -> None:
        arm, sweeps[candidates[0].name] = await best(candidates, peer_arms.SWEEP_S)
        arms.append(arm)

    await add_best([bench.router.batch_gets(size, count) for count in IN_FLIGHT_TRIED])
    await add_best([bench.direct.batch_gets(size, count) for count in IN_FLIGHT_TRIED])
    if isinstance(bench.proxied, Absent):
        arms.append(_under(REDIS_PROXIED, bench.proxied))
    else:
        await add_best([await each.batch_gets(size, count) for each in bench.proxied for count in IN_FLIGHT_TRIED])
    arms.append(await _benchmark(bench, size, IN_FLIGHT, sweeps))
    await add_best([bench.echoes.stream(bench.data, size, count) for count in IN_FLIGHT_TRIED])
    await add_best([bench.echoes.columns(bench.data, size, count) for count in IN_FLIGHT_TRIED])
    title = f"batches of {size:,} keys, {' or '.join(map(str, IN_FLIGHT_TRIED))} under way"
    return replace(await in_turns(title, "keys/s", arms, bench.pace), sweeps=sweeps)


async def durable_puts(bench: Bench) -> Comparison:
    """Durable writes: batches of kvshard, single puts of etcd, which knows no other that is as common."""
    arms: list[Arm | Absent] = [bench.router.batch_puts(PUT_BATCH, IN_FLIGHT), bench.direct.batch_puts(PUT_BATCH, IN_FLIGHT)]
    sweeps = {}
    if isinstance(bench.etcd, Absent):
        arms.append(_under(ETCD, bench.etcd))
    else:
        arm, sweeps[ETCD] = await peer_arms.etcd_puts(bench.etcd, bench.data, bench.stack)
        arms.append(arm)
    title = f"durable writes: batches of {PUT_BATCH:,} keys, {IN_FLIGHT} under way, by etcd's puts"
    return replace(await in_turns(title, "keys/s", arms, bench.pace), sweeps=sweeps)


async def lone_gets(bench: Bench) -> Comparison:
    """One call after the other: what a caller who is alone waits for."""
    arms: Sequence[Arm] = [bench.router.lone_get(), bench.direct.lone_get(), bench.echoes.lone()]
    return await in_turns("one call after the other", "calls/s", arms, bench.pace.finer(LONE_FINER))


async def unary_gets(bench: Bench) -> Comparison:
    """Bare unary calls at the router, and at a server that does nothing."""
    async with kvshard_arms.unary_gets(bench.fleet, bench.data, UNARY_CALLERS) as arm:
        arms: Sequence[Arm] = [arm, bench.echoes.many(UNARY_CALLERS)]
        return await in_turns(f"{UNARY_CALLERS} concurrent unary calls", "calls/s", arms, bench.pace)
