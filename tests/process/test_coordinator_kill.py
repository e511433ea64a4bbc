"""kill -9 in the middle of the embedded coordinator's transactions: all or nothing, and whatever was reported is there."""

import asyncio
import pathlib
import random
import signal
import subprocess
import sys
import time

from kvshard.clock import SystemClock
from kvshard.coordination.base import Event, Put
from kvshard.coordination.embedded import EmbeddedCoordinator

ROUNDS = 10

WRITER = """
import asyncio, pathlib, sys
from kvshard.clock import SystemClock
from kvshard.coordination.base import ABSENT, Compare, Delete, Put
from kvshard.coordination.embedded import EmbeddedCoordinator

async def main(path, name):
    coordinator = EmbeddedCoordinator(pathlib.Path(path), SystemClock())
    item = await coordinator.get(f"{name}/a")
    number = int(item.value) if item else 0
    while True:
        value = b"%d" % (number + 1)
        compare = Compare(f"{name}/a", item.revision if item else ABSENT)
        # Big enough to span several pages of the log, so that a torn write would show.
        writes = [Put(f"{name}/a", value), Put(f"{name}/pad", value * 3000), Put(f"{name}/b", value)]
        writes += [Put(f"{name}/odd", b"")] if number % 2 == 0 else [Delete(f"{name}/odd")]
        result = await coordinator.txn([compare], writes)
        assert result.has_succeeded
        number += 1
        print(number, result.revision, flush=True)
        item = await coordinator.get(f"{name}/a")
        assert item.revision == result.revision

asyncio.run(main(*sys.argv[1:]))
"""


def start_writer(path: pathlib.Path, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], stdout=subprocess.PIPE, text=True)


def last_report(writer: subprocess.Popen[str]) -> tuple[int, int]:
    """Number and revision of the last transaction that the writer saw succeed; a line cut short by the kill was not said."""
    assert writer.stdout is not None
    lines = writer.stdout.read().splitlines(keepends=True)
    writer.stdout.close()
    whole = [line.split() for line in lines if line.endswith("\n")]
    return (int(whole[-1][0]), int(whole[-1][1])) if whole else (0, 0)


def kill_after(writers: list[subprocess.Popen[str]], delay_s: float) -> None:
    """Wait until all of them write, let them go on for a moment, kill them."""
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline().endswith("\n")
    time.sleep(delay_s)
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.wait()


async def state(coordinator: EmbeddedCoordinator, name: str) -> int:
    """The number of transactions that took effect; fails if one did so in part."""
    items = {item.key.removeprefix(f"{name}/"): item for item in (await coordinator.get_prefix(f"{name}/")).items}
    number = int(items["a"].value)
    assert items["b"].value == items["a"].value
    assert items["pad"].value == items["a"].value * 3000
    assert items["a"].revision == items["b"].revision == items["pad"].revision
    assert ("odd" in items) == (number % 2 == 1)
    return number


async def test_killed_writers_leave_whole_transactions(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "coordinator.db"
    rng = random.Random(7)
    numbers = {"one": 0, "two": 0}
    for _ in range(ROUNDS):
        writers = {name: start_writer(path, name) for name in numbers}
        await asyncio.to_thread(kill_after, list(writers.values()), rng.uniform(0, 0.03))
        coordinator = EmbeddedCoordinator(path, SystemClock())
        for name, writer in writers.items():
            reported, revision = last_report(writer)
            number = await state(coordinator, name)
            assert number >= max(reported, numbers[name] + 1), "a transaction that was reported is gone"
            assert number <= max(reported, numbers[name] + 1) + 1, "more than the one under way took effect"
            assert (await coordinator.get_prefix("")).revision >= revision
            numbers[name] = number
        await coordinator.close()
    assert min(numbers.values()) > ROUNDS


async def test_a_watch_sees_another_process_whole_through_its_death(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "coordinator.db"
    coordinator = EmbeddedCoordinator(path, SystemClock())
    seen: list[list[Event]] = []

    async def follow() -> None:
        async for events in coordinator.watch("w/", 0):
            seen.append(events)
            if events[-1].key == "w/end":
                return

    following = asyncio.create_task(follow())
    writer = start_writer(path, "w")
    await asyncio.to_thread(kill_after, [writer], 0.2)
    reported, _ = last_report(writer)
    await coordinator.txn([], [Put("w/end", b"")])
    await asyncio.wait_for(following, 10)
    events = [event for batch in seen for event in batch][:-1]
    numbers = [int(event.value or b"") for event in events if event.key == "w/a"]
    assert numbers == list(range(1, len(numbers) + 1)), "a change was lost, repeated or out of order"
    assert len(numbers) >= reported
    assert len(events) == 4 * len(numbers)
    assert await state_without_end(coordinator) == numbers[-1]
    await coordinator.close()


async def state_without_end(coordinator: EmbeddedCoordinator) -> int:
    item = await coordinator.get("w/a")
    assert item is not None
    return int(item.value)
