"""What may happen to a cluster during a soak: the menu, and the schedule that a seed makes of it.

The schedule is drawn from the seed alone, never from what the cluster does, so that a seed repeats it.
"""

import asyncio
import contextlib
import random
import signal
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from harness.fault_proxy import Direction, Fault, Mode
from harness.faulty_cluster import FAILURE_TIMEOUT_S, FaultyCluster

T = FAILURE_TIMEOUT_S
SMALL_DISK_MB = 160
TWO_AT_ONCE = 0.3
"""Part of the rounds with two faults at the same time."""

NEIGHBOUR_DELAY_S = 0.05


@dataclass(frozen=True)
class Step:
    """One fault of the schedule. leaf: the one it hits. seconds: for how long, if it lasts. choice: of what is left open."""

    kind: str
    leaf: str
    seconds: float
    choice: int


@dataclass(frozen=True)
class Kind:
    """A kind of fault. weight: how often it is drawn. is_masked: callers notice nothing but time, if nothing else is wrong."""

    run: Callable[[FaultyCluster, Step], Awaitable[None]]
    weight: int
    seconds: tuple[float, float]
    is_masked: bool = True


async def _kill(cluster: FaultyCluster, step: Step) -> None:
    cluster.leaves[step.leaf].kill()
    await asyncio.sleep(step.seconds)


async def _kill_all(cluster: FaultyCluster, step: Step) -> None:
    for leaf in cluster.leaves.values():
        leaf.kill()
    await asyncio.sleep(step.seconds)


async def _stop(cluster: FaultyCluster, step: Step) -> None:
    await asyncio.to_thread(cluster.leaves[step.leaf].stop)
    await asyncio.sleep(step.seconds)


async def _restart_at_once(cluster: FaultyCluster, step: Step) -> None:
    cluster.leaves[step.leaf].kill()
    cluster.leaves[step.leaf].start()
    await asyncio.sleep(step.seconds)


async def _pause(cluster: FaultyCluster, step: Step) -> None:
    async with cluster.paused(step.leaf):
        await asyncio.sleep(step.seconds)


async def _flap(cluster: FaultyCluster, step: Step) -> None:
    """Pauses about as long as the leases."""
    for _ in range(4):
        async with cluster.paused(step.leaf):
            await asyncio.sleep(step.seconds / 8)
        await asyncio.sleep(step.seconds / 8)


async def _wipe(cluster: FaultyCluster, step: Step) -> None:
    cluster.leaves[step.leaf].kill()
    cluster.wipe(step.leaf)
    if step.choice % 2:
        await asyncio.sleep(step.seconds)
    cluster.leaves[step.leaf].start()


async def _cut_off(cluster: FaultyCluster, step: Step) -> None:
    """From the other leaves: both ways, deaf, or mute; held up or lost."""
    mode = (Mode.STALL, Mode.DROP)[step.choice % 2]
    for other in cluster.others(step.leaf):
        if step.choice % 3 != 1:
            cluster.cut(step.leaf, other, mode)
        if step.choice % 3 != 2:
            cluster.cut(other, step.leaf, mode)
    await asyncio.sleep(step.seconds)


async def _cut_pair(cluster: FaultyCluster, step: Step) -> None:
    other = cluster.others(step.leaf)[step.choice % 2]
    cluster.part(step.leaf, [other], (Mode.STALL, Mode.DROP)[step.choice // 2 % 2])
    await asyncio.sleep(step.seconds)


async def _isolate(cluster: FaultyCluster, step: Step) -> None:
    """From the other leaves and the router."""
    cluster.part(step.leaf, cluster.others(step.leaf))
    cluster.isolate_from_router(step.leaf)
    await asyncio.sleep(step.seconds)


async def _cut_router(cluster: FaultyCluster, step: Step) -> None:
    """The router loses a leaf that the others hear well: nobody replaces a primary that is only out of the router's reach."""
    cluster.isolate_from_router(step.leaf, (Mode.STALL, Mode.DROP)[step.choice % 2])
    await asyncio.sleep(step.seconds)


async def _delay(cluster: FaultyCluster, step: Step) -> None:
    for direction in Direction:
        cluster.proxies[step.leaf].set(Fault(delay_s=NEIGHBOUR_DELAY_S), directions=[direction])
    await asyncio.sleep(step.seconds)


async def _reset(cluster: FaultyCluster, step: Step) -> None:
    for _ in range(5):
        for proxy in cluster.proxies.values():
            proxy.reset()
            proxy.heal()
        await asyncio.sleep(step.seconds / 5)


async def _half_open(cluster: FaultyCluster, step: Step) -> None:
    cluster.proxies[step.leaf].half_open()
    await asyncio.sleep(step.seconds)


async def _kill_router(cluster: FaultyCluster, step: Step) -> None:
    cluster.router.kill()
    await cluster.restart("router")


async def _lock_coordinator(cluster: FaultyCluster, step: Step) -> None:
    with cluster.locked_coordinator():
        if step.choice % 2:
            cluster.leaves[step.leaf].kill()
        await asyncio.sleep(step.seconds)


async def _fill_disk(cluster: FaultyCluster, step: Step) -> None:
    """The leaf begins anew on a small disk, which somebody else then fills."""
    cluster.leaves[step.leaf].kill()
    cluster.wipe(step.leaf)
    data = cluster.data_dir(step.leaf)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_MB}m", "tmpfs", str(data)]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    try:
        await cluster.restart(step.leaf)
        with (data / "ballast").open("wb") as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(1 << 20))
                ballast.flush()
        await asyncio.sleep(step.seconds)
    finally:
        cluster.leaves[step.leaf].kill()
        await asyncio.to_thread(subprocess.run, ["umount", "--lazy", str(data)], check=True)


MENU: dict[str, Kind] = {
    "kill -9": Kind(_kill, 6, (1.5 * T, 4 * T)),
    "kill -9, restarted at once": Kind(_restart_at_once, 3, (0.5 * T, 2 * T)),
    "kill -9 of all": Kind(_kill_all, 2, (0.1, 1 * T)),
    "stop": Kind(_stop, 2, (0.1, 3 * T)),
    "pause": Kind(_pause, 5, (0.3 * T, 4 * T)),
    "pauses, repeated": Kind(_flap, 2, (4 * T, 8 * T)),
    "wiped": Kind(_wipe, 3, (1 * T, 3 * T)),
    "cut from the leaves": Kind(_cut_off, 6, (1 * T, 5 * T)),
    "two leaves cut": Kind(_cut_pair, 4, (1 * T, 5 * T)),
    "isolated": Kind(_isolate, 4, (1 * T, 5 * T)),
    "cut from the router": Kind(_cut_router, 2, (1 * T, 4 * T), is_masked=False),
    "delayed": Kind(_delay, 2, (2 * T, 4 * T)),
    "reset": Kind(_reset, 2, (0.5 * T, 2 * T)),
    "half-open": Kind(_half_open, 2, (2 * T, 5 * T)),
    "kill -9 of the router": Kind(_kill_router, 2, (0.0, 0.0)),
    "coordinator locked": Kind(_lock_coordinator, 3, (1 * T, 3 * T)),
    "full disk": Kind(_fill_disk, 2, (3 * T, 4 * T), is_masked=False),
}

LOSES_DATA = {"wiped", "full disk"}
OF_ALL = {"kill -9 of all", "kill -9 of the router", "reset", "coordinator locked"}
"""These go with nothing else: they touch what a second one might."""


def draw(rng: random.Random, leaves: list[str], *, may_mount: bool) -> tuple[Step, ...]:
    """The next round: a fault, or two of different leaves. Never two that lose data: that may rightly lose writes."""
    kinds = [name for name in MENU if may_mount or name != "full disk"]
    first = _step(rng, kinds, leaves)
    is_double = rng.random() < TWO_AT_ONCE
    fit = [name for name in kinds if name not in OF_ALL and not (name in LOSES_DATA and first.kind in LOSES_DATA)]
    second = _step(rng, fit, [leaf for leaf in leaves if leaf != first.leaf])
    return (first, second) if is_double and first.kind not in OF_ALL else (first,)


def _step(rng: random.Random, kinds: list[str], leaves: list[str]) -> Step:
    (name,) = rng.choices(kinds, [MENU[kind].weight for kind in kinds])
    return Step(name, rng.choice(leaves), rng.uniform(*MENU[name].seconds), rng.randrange(60))


def may_mount() -> bool:
    """Whether a small disk can be made here."""
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    return False


async def run(cluster: FaultyCluster, steps: tuple[Step, ...]) -> None:
    """Let them happen, and last; what they leave broken, `FaultyCluster.mend` mends."""
    try:
        await asyncio.gather(*(MENU[step.kind].run(cluster, step) for step in steps))
    finally:
        for leaf in cluster.leaves.values():
            if leaf.is_running:
                leaf.send(signal.SIGCONT)
