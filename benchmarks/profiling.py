"""Where the time goes: flame graphs of client, router and a leaf under load. `python -m benchmarks.profiling`, `make profile`.

py-spy looks at each process from outside, some hundred times a second, while it serves: once for the picture, once more for the
list of the functions that the time is spent in. Looking at a process that is not its child takes root, or
kernel.yama.ptrace_scope=0.
"""

import argparse
import asyncio
import itertools
import os
import pathlib
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.fast_path.data import Data, sample_data
from benchmarks.fast_path.kvshard_arms import KvShard, direct_client, processes_of, unary_gets
from benchmarks.fast_path.names import DIRECT, ROUTER
from benchmarks.fast_path.tasks import CALLERS, IN_FLIGHT, PUT_BATCH, UNARY_CALLERS
from benchmarks.fleet import Fleet
from benchmarks.measured import CLIENT
from benchmarks.samples import Part, busiest_functions, layers
from benchmarks.turns import Arm
from kvshard import Client

SAMPLES_PER_S = 250
"""Enough for a percent within seconds; each look stops the process for about a tenth of a millisecond."""

SECONDS = 6.0
SPARE_S = 2.0
"""Of load before py-spy begins and after it should have ended: it takes a while to find its way in a process."""

KEYS = 20_000
FUNCTIONS_SHOWN = 15
TIMEOUT_S = 60.0
TARGET = pathlib.Path("bench-results")

LOADS: Mapping[str, Callable[[KvShard], Arm]] = {
    "gets": lambda client: client.single_gets(CALLERS),
    "lone": lambda client: client.lone_get(),
    "batches": lambda client: client.batch_gets(1_000, IN_FLIGHT),
    "puts": lambda client: client.batch_puts(PUT_BATCH, IN_FLIGHT),
}
UNARY = "unary"
"""A further load: bare unary calls at the router."""


class CannotProfile(Exception):
    """py-spy is not there, or may not look at the processes."""


def _py_spy() -> str:
    """Its executable. Raises CannotProfile when there is none."""
    beside = pathlib.Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if not found:
        raise CannotProfile("py-spy is not installed: the bench extra has it")
    return found


async def _record(pid: int, form: str, seconds: float, target: pathlib.Path, *, is_native: bool) -> None:
    """Look at a process for so many seconds. Raises CannotProfile when py-spy cannot."""
    options = ["--format", form, "--rate", str(SAMPLES_PER_S), "--duration", str(max(1, round(seconds))), "--nonblocking"]
    if is_native:  # C frames can only be read while the process stands still.
        options[-1] = "--native"
    process = await asyncio.create_subprocess_exec(
        _py_spy(), "record", *options, "--pid", str(pid), "--output", str(target), stdout=PIPE, stderr=PIPE
    )
    out, problems = await process.communicate()
    if process.returncode:
        raise CannotProfile(f"py-spy: {(problems or out).decode(errors='replace').strip()[-500:]}")


async def _look(pids: Mapping[str, int], seconds: float, folder: pathlib.Path, load: str, *, is_native: bool) -> dict[str, str]:
    """Pictures into the folder; returns the samples of each role as text."""
    raw = {role: folder / f"profile-{load}-{role}.txt" for role in pids}
    for form, suffix in (("flamegraph", ".svg"), ("raw", ".txt")):
        async with asyncio.TaskGroup() as group:
            for role, pid in pids.items():
                target = folder / f"profile-{load}-{role}{suffix}"
                group.create_task(_record(pid, form, seconds, target, is_native=is_native))
    texts = {}
    for role, path in raw.items():
        texts[role] = await asyncio.to_thread(path.read_text)
        await asyncio.to_thread(path.unlink)
    return texts


async def _arm(load: str, fleet: Fleet, client: KvShard, data: Data, stack: AsyncExitStack) -> Arm:
    if load == UNARY:
        return await stack.enter_async_context(unary_gets(fleet, data, UNARY_CALLERS))
    return LOADS[load](client)


def _connected(address: str, *, is_direct: bool) -> AbstractAsyncContextManager["Client[str]"]:
    return direct_client(address) if is_direct else Client(address, timeout=TIMEOUT_S)


async def profile(load: str, seconds: float, target: pathlib.Path, *, is_direct: bool, is_native: bool) -> dict[str, str]:
    """The samples by role of a cluster of its own under this load, as folded stacks; the pictures go into the target folder."""
    data, title = sample_data(KEYS), f"direct-{load}" if is_direct else load
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kvshard-profile-"))
        fleet = await stack.enter_async_context(Fleet(pathlib.Path(folder), leaves=2, replicas=1))
        connection = await stack.enter_async_context(_connected(fleet.address, is_direct=is_direct))
        client = KvShard(DIRECT if is_direct else ROUTER, connection, processes_of(fleet), data)
        await client.load()
        arm = await _arm(load, fleet, client, data, stack)
        pids = {CLIENT: os.getpid(), "router": fleet.router.pid, "leaf": fleet.leaves["leaf-1"].pid}
        async with asyncio.TaskGroup() as group:
            running = group.create_task(arm.run(2 * seconds + 3 * SPARE_S))
            await asyncio.sleep(SPARE_S)
            samples = await _look(pids, seconds, target, title, is_native=is_native)
    print(f"{title}: {running.result().rate:,.0f} operations/s while py-spy looked on")
    return samples


def show(samples: Mapping[str, str]) -> None:
    """Print where each process spent its time."""
    for role, folded in samples.items():
        table = Table("part", "share", "function", "share", title=f"{role}: where it was running, {SAMPLES_PER_S}/s samples")
        functions = busiest_functions(folded)[:FUNCTIONS_SHOWN]
        for part, function in itertools.zip_longest(layers(folded)[:FUNCTIONS_SHOWN], functions):
            table.add_row(*_cells(part), *_cells(function))
        Console(width=max(130, Console().width)).print(table)


def _cells(part: Part | None) -> tuple[str, str]:
    return ("", "") if part is None else (part.name, f"{100 * part.share:.1f} %")


def _reasons(problems: "BaseExceptionGroup[CannotProfile]") -> list[str]:
    """Each of them once, however deep the groups of tasks lie."""
    found: list[str] = []
    for each in problems.exceptions:
        found += _reasons(each) if isinstance(each, BaseExceptionGroup) else [str(each)]
    return list(dict.fromkeys(found))


def main() -> int:
    """Profile what the command line names. Exits 2 when py-spy cannot."""
    loads = (*LOADS, UNARY)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiling", description=__doc__)
    parser.add_argument("load", nargs="?", default="gets", choices=loads, help="what the client does (%(default)s)")
    parser.add_argument("--direct", action="store_true", help="the client asks the leaves itself")
    parser.add_argument("--native", action="store_true", help="C frames too; each look then stops the process")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of looking, twice (%(default)s)")
    parser.add_argument("--target", type=pathlib.Path, default=TARGET, help="folder for the pictures (%(default)s)")
    options = parser.parse_args()
    options.target.mkdir(parents=True, exist_ok=True)
    arguments = {"is_direct": options.direct, "is_native": options.native}
    samples: dict[str, str] = {}
    try:
        samples = uvloop.run(profile(options.load, options.seconds, options.target, **arguments))
    except* CannotProfile as problems:
        print(*_reasons(problems), sep="\n", file=sys.stderr)
    if not samples:
        return 2
    show(samples)
    title = f"direct-{options.load}" if options.direct else options.load
    print(f"flame graphs: {', '.join(str(options.target / f'profile-{title}-{role}.svg') for role in samples)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
