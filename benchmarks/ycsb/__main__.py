"""Run the YCSB core workloads: `python -m benchmarks.ycsb`, or some of them: `python -m benchmarks.ycsb B C`.

Exits 1 when a bound is not kept. Two leaves with 8 shards of one replica; kvshard and etcd have every write on disk before they
answer, redis has none.
"""

import argparse
import pathlib
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import uvloop

from benchmarks.fast_path.kvshard_arms import direct_client, processes_of
from benchmarks.figures import Figure, show
from benchmarks.fleet import Fleet
from benchmarks.machine import machine
from benchmarks.measured import Absent, Comparison
from benchmarks.peers import etcd_client, redis_client
from benchmarks.peers.servers import Peers, peers
from benchmarks.processor_time import peak_resident_bytes
from benchmarks.report import write
from benchmarks.sequence import one_after_the_other
from benchmarks.turns import Arm, Pace, in_turns
from benchmarks.ycsb.results import DIRECT, ETCD, KVSHARD, REDIS, figures
from benchmarks.ycsb.run import CALLERS, StoreUnderLoad
from benchmarks.ycsb.stores import EtcdStore, KvShardStore, RedisStore, Store
from benchmarks.ycsb.workloads import RECORD_BYTES, WORKLOADS, Inserted, RecordKeys, Workload
from kvshard import Client

LEAVES, SHARDS, REPLICAS = 2, 8, 1
RECORDS = 20_000
"""20 MB: twenty times YCSB's default, and loaded in seconds by the slowest of them."""

EXPECTED_RATE = 20_000
"""Operations a second that the key space leaves room for; where there are more, an inserted record is just not drawn."""

REDIS_CONNECTIONS = 64
"""The best pool for this many callers; `benchmarks.fast_path` tries others."""

TIMEOUT_S = 60.0
TARGET = pathlib.Path("bench-results/ycsb")
PACE = Pace(turns=4, seconds=1.2)
PACKAGES = ("grpcio", "uvloop", "msgspec", "protobuf", "redis", "hiredis")
ORDER = ("A", "B", "C", "F", "D", "E")
"""As YCSB recommends: those that insert come last."""


@dataclass(frozen=True, slots=True)
class Runner:
    """A store that takes part, and its processes by role."""

    load: StoreUnderLoad
    processes: dict[str, Sequence[int]]

    def arm(self, workload: Workload, pace: Pace) -> Arm:
        """This store under this workload."""
        expected = int(EXPECTED_RATE * pace.seconds * (pace.turns + 1))
        source = self.load.operations(workload, expected)
        return Arm(self.load.name, lambda seconds: self.load.run(source, seconds), self.processes)


class Field:
    """Everybody who takes part."""

    def __init__(self, fleet: Fleet, others: Peers, records: int) -> None:
        self.fleet = fleet
        self.others = others
        self.runners: list[Runner | Absent] = []
        self._records = records
        self._keys = RecordKeys(records)

    def add(self, name: str, store: Store, processes: dict[str, Sequence[int]]) -> StoreUnderLoad:
        """A store with records of its own, which are not loaded yet."""
        return self._add(name, store, processes, Inserted(self._records))

    def add_client(self, name: str, store: Store, of: StoreUnderLoad) -> None:
        """Another client of a store that takes part."""
        runner = next(each for each in self.runners if isinstance(each, Runner) and each.load is of)
        self._add(name, store, runner.processes, of.inserted)

    async def compare(self, workload: Workload, pace: Pace) -> Comparison:
        """All of them under one workload, in turns."""
        arms = [each if isinstance(each, Absent) else each.arm(workload, pace) for each in self.runners]
        title = f"YCSB {workload.name}, {workload.title}, {CALLERS} callers"
        return await in_turns(title, "operations/s", arms, pace)

    def _add(self, name: str, store: Store, processes: dict[str, Sequence[int]], inserted: Inserted) -> StoreUnderLoad:
        load = StoreUnderLoad(name, store, inserted, self._keys)
        self.runners.append(Runner(load, processes))
        return load


@asynccontextmanager
async def _field(folder: pathlib.Path, records: int) -> AsyncIterator[Field]:
    """Start everybody and load the records."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        others = stack.enter_context(peers(folder))
        fleet = await enter(Fleet(folder, leaves=LEAVES, shards=SHARDS, replicas=REPLICAS))
        field = Field(fleet, others, records)
        by_router = KvShardStore(await enter(Client(fleet.address, timeout=TIMEOUT_S)))
        loads = [field.add(KVSHARD, by_router, {**processes_of(fleet)})]
        direct = KvShardStore(await enter(direct_client(fleet.address)))
        field.add_client(DIRECT, direct, loads[0])
        redis = redis_client.usable(others.redis, REDIS)
        if isinstance(redis, Absent):
            field.runners.append(redis)
        else:
            store = RedisStore(await enter(redis_client.connected(redis, REDIS_CONNECTIONS)))
            loads.append(field.add(REDIS, store, {"redis": redis.pids}))
        if isinstance(others.etcd, Absent):
            field.runners.append(Absent(ETCD, others.etcd.why))
        else:
            etcd = EtcdStore(await enter(etcd_client.connected(others.etcd)))
            loads.append(field.add(ETCD, etcd, {"etcd": others.etcd.pids}))
        for load in loads:
            await load.load()
        yield field


async def measure(names: Sequence[str], records: int, pace: Pace, target: pathlib.Path) -> list[Figure]:
    """Run these workloads; print each, write all."""
    with tempfile.TemporaryDirectory(prefix="kvshard-bench-") as folder:
        async with _field(pathlib.Path(folder), records) as field:
            found = await one_after_the_other({name: partial(field.compare, WORKLOADS[name], pace) for name in names})
            peak = peak_resident_bytes(field.fleet.router.pid)
            setting = {
                "kvshard": f"{LEAVES} leaves, {SHARDS} shards x {REPLICAS} replica, one router; synced writes",
                "redis": f"one server, nothing on disk, {REDIS_CONNECTIONS} connections",
                "etcd": "one member; synced writes",
                "data": f"{records:,} records of {RECORD_BYTES:,} bytes at first",
                "pace": f"{pace.turns} turns of {pace.seconds:g} s",
                "peers": field.others.versions,
                "machine": machine(PACKAGES),
            }
    write(setting, found.comparisons, target)
    return [*figures(found.comparisons, peak), *found.failed()]


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ycsb", description=__doc__)
    parser.add_argument("--turns", type=int, default=PACE.turns, help="blocks of each store (%(default)s)")
    parser.add_argument("--seconds", type=float, default=PACE.seconds, help="of a block (%(default)s)")
    parser.add_argument("--records", type=int, default=RECORDS, help="that are loaded (%(default)s)")
    parser.add_argument("--target", type=pathlib.Path, default=TARGET, help="files to write, without their suffix")
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"which of {', '.join(ORDER)}; default: all")
    options = parser.parse_args()
    if unknown := set(options.workloads) - set(ORDER):
        parser.error(f"no such workload: {', '.join(sorted(unknown))}; there are {', '.join(ORDER)}")
    names = [name for name in ORDER if name in options.workloads] or list(ORDER)
    found = uvloop.run(measure(names, options.records, Pace(options.turns, options.seconds), options.target))
    return 0 if show(found, options.target.with_name(f"{options.target.name}-figures.json")) else 1


if __name__ == "__main__":
    sys.exit(main())
