"""What is particular to the embedded coordinator: its file, its errors, its URL."""

import asyncio
import pathlib
import sqlite3

import pytest
from fakes.clock import ManualClock

from kvshard.clock import SystemClock
from kvshard.coordination.base import CoordinatorUnavailable, Put
from kvshard.coordination.connect import connect
from kvshard.coordination.embedded import EmbeddedCoordinator
from kvshard.errors import InvalidArgument


async def test_connect_opens_the_file_of_the_url(tmp_path: pathlib.Path) -> None:
    coordinator = connect(f"sqlite://{tmp_path}/c.db", SystemClock())
    assert not (tmp_path / "c.db").exists()
    await coordinator.txn([], [Put("a", b"1")])
    await coordinator.close()
    reopened = connect(f"sqlite://{tmp_path}/c.db", SystemClock())
    item = await reopened.get("a")
    assert item is not None
    assert item.value == b"1"
    await reopened.close()


@pytest.mark.parametrize("url", ["", "c.db", "sqlite:c.db", "sqlite://c.db", "sqlite:///", "etcd:127.0.0.1:2379", "/tmp/c.db"])
def test_other_urls_are_refused_with_what_is_supported(url: str) -> None:
    with pytest.raises(InvalidArgument, match="sqlite:///absolute/path") as caught:
        connect(url, SystemClock())
    assert caught.value.details.field == "coordinator"


async def test_the_file_is_durable_and_shared(tmp_path: pathlib.Path) -> None:
    coordinator = EmbeddedCoordinator(tmp_path / "c.db", SystemClock())
    await coordinator.get("a")
    with sqlite3.connect(tmp_path / "c.db") as look:
        assert look.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    look.close()
    connection = coordinator._store._open
    assert connection is not None
    full = await coordinator._run(lambda: connection.execute("PRAGMA synchronous").fetchone())
    assert full == (2,)
    await coordinator.close()


async def test_a_missing_folder_is_unavailable_until_it_is_there(tmp_path: pathlib.Path) -> None:
    coordinator = EmbeddedCoordinator(tmp_path / "later" / "c.db", SystemClock())
    with pytest.raises(CoordinatorUnavailable, match="unable to open"):
        await coordinator.get("a")
    (tmp_path / "later").mkdir()
    assert await coordinator.get("a") is None
    await coordinator.close()


async def test_a_file_that_is_no_database_is_unavailable(tmp_path: pathlib.Path) -> None:
    (tmp_path / "c.db").write_bytes(b"no database at all, " * 100)
    coordinator = EmbeddedCoordinator(tmp_path / "c.db", SystemClock())
    with pytest.raises(CoordinatorUnavailable, match="not a database"):
        await coordinator.txn([], [Put("a", b"")])
    await coordinator.close()


async def test_a_file_of_another_format_is_refused(tmp_path: pathlib.Path) -> None:
    look = sqlite3.connect(tmp_path / "c.db")
    look.execute("PRAGMA user_version = 99")
    look.close()
    coordinator = EmbeddedCoordinator(tmp_path / "c.db", SystemClock())
    with pytest.raises(CoordinatorUnavailable, match="format is 99"):
        await coordinator.get("a")
    await coordinator.close()


async def test_many_handles_may_create_the_file_together(tmp_path: pathlib.Path) -> None:
    handles = [EmbeddedCoordinator(tmp_path / "c.db", SystemClock()) for _ in range(8)]
    await asyncio.gather(*(handle.txn([], [Put(f"{number}", b"")]) for number, handle in enumerate(handles)))
    assert len((await handles[0].get_prefix("")).items) == 8
    for handle in handles:
        await handle.close()


async def test_the_event_loop_stays_free_while_another_process_holds_the_lock(tmp_path: pathlib.Path) -> None:
    coordinator = EmbeddedCoordinator(tmp_path / "c.db", SystemClock())
    await coordinator.get("a")
    rival = sqlite3.connect(tmp_path / "c.db", isolation_level=None)
    rival.execute("BEGIN IMMEDIATE")
    write = asyncio.create_task(coordinator.txn([], [Put("a", b"")]))
    for _ in range(1000):
        await asyncio.sleep(0)
    assert not write.done()
    rival.execute("COMMIT")
    assert (await write).has_succeeded
    rival.close()
    await coordinator.close()


async def test_an_idle_poll_reads_nothing(tmp_path: pathlib.Path) -> None:
    """The stamp of an untouched file stays the same, and changes with a commit of this or another connection."""
    coordinator = EmbeddedCoordinator(tmp_path / "c.db", SystemClock())
    other = EmbeddedCoordinator(tmp_path / "c.db", SystemClock())
    first, _, _ = await coordinator._changes("", 0, None)
    again, _, _ = await coordinator._changes("", 0, first)
    await coordinator.get_prefix("")
    assert (await coordinator._changes("", 0, first))[0] == again == first
    await other.txn([], [Put("a", b"")])
    second, revision, events = await coordinator._changes("", 0, first)
    assert second != first
    assert (revision, [event.key for event in events]) == (1, ["a"])
    await coordinator.txn([], [Put("b", b"")])
    third, _, _ = await coordinator._changes("", 1, second)
    assert third != second
    for handle in (coordinator, other):
        await handle.close()


async def test_a_file_that_cannot_be_written_to_is_read_though_a_lease_has_ended(tmp_path: pathlib.Path) -> None:
    """Leaves that cannot renew their leases must still find the map."""
    clock = ManualClock()
    coordinator = EmbeddedCoordinator(tmp_path / "c.db", clock)
    lease = await coordinator.grant_lease(5.0)
    await coordinator.txn([], [Put("alive/leaf-1", b"", lease), Put("map/meta", b"1")])
    clock.advance(6.0)
    rival = sqlite3.connect(tmp_path / "c.db", isolation_level=None)
    rival.execute("BEGIN IMMEDIATE")
    assert await coordinator.get("alive/leaf-1") is None
    assert [item.key for item in (await coordinator.get_prefix("")).items] == ["map/meta"]
    events = coordinator.watch("", 0)
    assert {event.key for event in await anext(events)} == {"alive/leaf-1", "map/meta"}
    rival.execute("ROLLBACK")
    rival.close()
    (gone,) = await anext(events)
    assert (gone.key, gone.value) == ("alive/leaf-1", None)
    await events.aclose()  # type: ignore[attr-defined]
    await coordinator.close()
