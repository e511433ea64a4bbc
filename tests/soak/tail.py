"""Hedging for a long time while every leaf is slow and callers go: `make soak-tail MINUTES=10`.

Exits 1 when a window of ten seconds held more hedges than the budget allows, when the memory of a process grew, or when work is
left once the load has ended.
"""

import argparse
import asyncio
import pathlib
import random
import sys
import tempfile
import time
from collections import Counter, deque

from benchmarks.fleet import Fleet
from kvshard import Client
from kvshard.errors import KvShardError
from kvshard.tail.budget import RESERVE_PER_S, WINDOW_S
from kvshard.tail.hedging import BUDGET_MOST
from kvshard.tail.status import TailStatus

KEYS = [f"soak:{number}" for number in range(256)]
CALLERS = 6
SAMPLE_S = 0.5
"""Between two looks at the router."""

WARM_SHARE = 0.25
"""Of the time: memory counts from then on, since pools, caches and heaps fill at first."""

GROWTH_MAX = 0.15
GROWTH_MIN_MB = 12.0
"""A process may grow by so much from then on: more is no heap that settles."""

QUIET_S = 3.0
"""After the load: a ping, a refresh and a lane's housekeeping end within it."""


def resident_mb(pid: int) -> float:
    """Memory of a process."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no memory of {pid}")


async def call_until(client: Client, seed: int, until: float, counts: Counter[str]) -> None:
    """One caller: reads of one key and of many, scans; one in five is given up in the middle."""
    rng = random.Random(seed)
    while time.monotonic() < until:
        kind = rng.choice(["get", "get", "batch", "batch", "scan"])
        call = asyncio.create_task(_call(client, kind, rng))
        if rng.random() < 0.2:
            await asyncio.sleep(rng.random() * 0.05)
            call.cancel()
        (outcome,) = await asyncio.gather(call, return_exceptions=True)
        if isinstance(outcome, asyncio.CancelledError):
            counts["given up"] += 1
        elif isinstance(outcome, KvShardError):
            counts[f"failed: {outcome.reason}"] += 1
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            counts[kind] += 1


async def _call(client: Client, kind: str, rng: random.Random) -> None:
    if kind == "get":
        await client.get(rng.choice(KEYS))
    elif kind == "batch":
        (await client.get_many(rng.sample(KEYS, 64))).raise_for_failures()
    else:
        async for _ in client.scan(prefix="soak:", limit=100):
            pass


class Watch:
    """Looks at the router and its processes, and keeps what speaks against them."""

    def __init__(self, fleet: Fleet, client: Client) -> None:
        self.problems: list[str] = []
        self.memory: dict[str, list[float]] = {name: [] for name in fleet.processes}
        self.worst = 0.0
        self.last = TailStatus()
        self._fleet = fleet
        self._client = client
        self._seen: deque[tuple[float, int]] = deque()

    async def run(self, until: float) -> None:
        """Until then."""
        while time.monotonic() < until:
            await self.look()
            await asyncio.sleep(SAMPLE_S)

    async def look(self) -> None:
        """One look: hedges of the window by the router's own counts, and by the difference of its totals."""
        now = time.monotonic()
        try:
            tail = (await self._client.status()).tail
        except KvShardError as error:
            self.problems.append(f"no status: {error!r}")
            return
        assert tail is not None
        self.last = tail
        self._seen.append((now, tail.hedges_total))
        while self._seen[0][0] < now - WINDOW_S:
            self._seen.popleft()
        # The first attempts are those of the router's window of about the same time; both may be off by a look.
        allowed = BUDGET_MOST * tail.first_attempts * 1.1 + RESERVE_PER_S * (WINDOW_S + 1)
        extra = max(tail.hedges, tail.hedges_total - self._seen[0][1])
        self.worst = max(self.worst, extra / max(1, tail.first_attempts))
        if extra > allowed:
            self.problems.append(f"{extra} hedges in 10 s beside {tail.first_attempts} first attempts")
        for name, process in self._fleet.processes.items():
            self.memory[name].append(resident_mb(process.pid))

    def judge_memory(self) -> None:
        """Whether a process grew from the end of the warm-up on; medians, since a heap breathes."""
        for name, seen in self.memory.items():
            warm = seen[int(WARM_SHARE * len(seen)) :]
            part = max(1, len(warm) // 5)
            before, after = (sorted(each)[len(each) // 2] for each in (warm[:part], warm[-part:]))
            print(f"{name}: {before:.1f} MB, in the end {after:.1f} MB")
            if after > before * (1 + GROWTH_MAX) and after > before + GROWTH_MIN_MB:
                self.problems.append(f"{name} grew from {before:.1f} to {after:.1f} MB")

    async def judge_rest(self) -> None:
        """Whether anything is still under way when nobody asks for anything."""
        await asyncio.sleep(QUIET_S)
        await self.look()
        left = {each.leaf: each.outstanding for each in self.last.leaves if each.outstanding}
        if left:
            self.problems.append(f"attempts without an answer after the end: {left}")


async def soak(seed: int, minutes: float, folder: pathlib.Path) -> int:
    """Run it; 1 when something speaks against the service."""
    rng, counts = random.Random(seed), Counter[str]()
    async with (
        Fleet(folder, leaves=4, shards=8, replicas=3, leaf_arguments=("--allow-faults",)) as fleet,
        Client(fleet.address, timeout=1.0) as client,
        Client(fleet.address, timeout=10.0) as calm,
    ):
        await calm.put_many(dict.fromkeys(KEYS, b"x" * 200))
        watch = Watch(fleet, calm)
        until = time.monotonic() + 60 * minutes
        watching = asyncio.create_task(watch.run(until))
        callers = [asyncio.create_task(call_until(client, seed * 100 + n, until, counts)) for n in range(CALLERS)]
        while time.monotonic() < until:
            await _next_fault(calm, rng, min(12.0, until - time.monotonic()))
        await asyncio.gather(watching, *callers)
        await calm.clear_faults()
        watch.judge_memory()
        await watch.judge_rest()
    print(
        f"{dict(counts)}; {watch.last.hedges_total:,} hedges, {watch.last.hedges_won_total:,} won, "
        f"at most {watch.worst:.1%} extra"
    )
    print(f"refused: {dict(watch.last.refused_total)}")
    for problem in watch.problems[:20]:
        print(f"PROBLEM {problem}")
    print(f"{len(watch.problems)} problems; seed {seed}")
    return 1 if watch.problems or not counts["get"] else 0


async def _next_fault(client: Client, rng: random.Random, seconds: float) -> None:
    """All leaves, or one, misbehave for a while; then nothing does."""
    kind = rng.choice(["all slow", "all delayed", "pauses", "one slow", "drops", "nothing"])
    lasting = max(1.0, seconds * rng.uniform(0.3, 0.9))
    one = [f"leaf-{rng.randrange(1, 5)}"]
    print(f"  {kind} for {lasting:.1f} s", flush=True)
    match kind:
        case "all slow":
            await client.inject_fault("slow", factor=rng.choice([5.0, 20.0]), duration=lasting)
        case "all delayed":
            await client.inject_fault("delay", delay=rng.choice([0.02, 0.2]), duration=lasting, methods=["read", "scan"])
        case "pauses":
            await client.inject_fault("pause", probability=0.02, delay=0.05, duration=lasting)
        case "one slow":
            await client.inject_fault("slow", leaves=one, factor=10.0, duration=lasting)
        case "drops":
            await client.inject_fault("drop", leaves=one, probability=0.2, duration=lasting, methods=["read", "scan"])
    await asyncio.sleep(seconds)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m soak.tail", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long")
    parser.add_argument("--seed", type=int, default=1, help="of the schedule of faults")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvshard-soak-") as folder:
        return asyncio.run(soak(given.seed, given.minutes, pathlib.Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
