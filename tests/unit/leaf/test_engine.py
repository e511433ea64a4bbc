"""One suite for both engines: what the leaf relies on."""

import pathlib
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from leaf.engine import SCAN_MAX_BYTES, Engine, StorageError
from leaf.memory_engine import MemoryEngine
from leaf.rocks_engine import SKIP_MAX, RocksEngine


@pytest.fixture(params=["memory", "rocks", "rocks-unsynced"])
def engine(request: pytest.FixtureRequest, tmp_path: pathlib.Path):
    if request.param == "memory":
        made: Engine = MemoryEngine()
    else:
        made = RocksEngine(tmp_path / "db", is_synced=request.param == "rocks")
    yield made
    made.close()


def put(engine: Engine, rows: dict[bytes, bytes]) -> None:
    batch = engine.new_batch()
    for key, value in rows.items():
        batch.put(key, value)
    engine.write(batch)


def test_rows_are_read_back_and_an_empty_value_is_not_a_missing_one(engine: Engine) -> None:
    put(engine, {b"a": b"1", b"b": b"", bytes(range(256)): b"\0\xff"})
    assert engine.get(b"a") == b"1"
    assert engine.get(b"b") == b""
    assert engine.get(b"c") is None
    assert engine.get_many([b"c", b"a", bytes(range(256)), b"a"]) == [None, b"1", b"\0\xff", b"1"]
    assert engine.get_many([]) == []
    assert engine.get_many([b"a"]) == [b"1"]


def test_a_batch_takes_effect_in_order(engine: Engine) -> None:
    put(engine, {b"k%d" % n: b"old" for n in range(6)})
    batch = engine.new_batch()
    batch.put(b"k1", b"new")
    batch.delete(b"k1")
    batch.delete_range(b"k2", b"k4")
    batch.put(b"k3", b"after")
    batch.delete(b"absent")
    assert engine.get(b"k1") == b"old"
    engine.write(batch)
    assert engine.get_many([b"k%d" % n for n in range(6)]) == [b"old", None, None, b"after", b"old", b"old"]


def test_a_compaction_changes_no_row(engine: Engine) -> None:
    put(engine, {b"k%03d" % n: bytes(1_000) for n in range(200)})
    batch = engine.new_batch()
    batch.delete_range(b"k050", b"k150")
    batch.delete(b"k000")
    engine.write(batch)
    before = engine.scan(b"k", b"l", 1_000)
    engine.compact()
    assert engine.scan(b"k", b"l", 1_000) == before
    assert len(before.rows) == 99
    engine.close()
    with pytest.raises(StorageError):
        engine.compact()


def test_a_compaction_takes_out_of_the_files_what_was_removed(tmp_path: pathlib.Path) -> None:
    engine = RocksEngine(tmp_path, is_synced=False)
    rng = random.Random(1)
    put(engine, {b"k%03d" % n: rng.randbytes(10_000) for n in range(300)})
    engine.compact()
    full = engine.size_bytes()
    batch = engine.new_batch()
    batch.delete_range(b"k000", b"k290")
    engine.write(batch)
    engine.compact()
    # What is no longer wanted of the files goes a moment later, on a thread of the engine's.
    engine.close()
    engine = RocksEngine(tmp_path, is_synced=False)
    assert engine.size_bytes() < full / 4
    engine.close()


def test_scans_are_ordered_and_bounded_by_rows_and_bytes(engine: Engine) -> None:
    put(engine, {b"%02d" % n: b"x" * 100 for n in range(50)} | {b"zz": b"outside"})
    everything = engine.scan(b"00", b"99", 1000)
    assert [key for key, _ in everything.rows] == [b"%02d" % n for n in range(50)]
    assert not everything.has_more
    some = engine.scan(b"10", b"99", 3)
    assert [key for key, _ in some.rows] == [b"10", b"11", b"12"]
    assert some.has_more
    exact = engine.scan(b"47", b"99", 3)
    assert (len(exact.rows), exact.has_more) == (3, False)
    assert len(engine.scan(b"00", b"99", 1000, max_bytes=300).rows) == 3
    assert len(engine.scan(b"00", b"99", 1000, max_bytes=1).rows) == 1
    assert engine.scan(b"5", b"5", 10) == ([], False)
    assert engine.scan(b"9", b"5", 10) == ([], False)


def test_a_view_shows_what_there_was_whatever_is_written_since(engine: Engine) -> None:
    put(engine, {b"k%d" % n: b"old" for n in range(6)})
    view = engine.snapshot()
    batch = engine.new_batch()
    batch.put(b"k0", b"new")
    batch.delete(b"k1")
    batch.delete_range(b"k3", b"k5")
    batch.put(b"k9", b"new")
    engine.write(batch)
    engine.flush_wal()
    newer = engine.snapshot()
    put(engine, {b"k2": b"newest"})
    assert view.scan(b"k", b"l", 100) == ([(b"k%d" % n, b"old") for n in range(6)], False)
    assert newer.scan(b"k", b"l", 100).rows == [(b"k0", b"new"), (b"k2", b"old"), (b"k5", b"old"), (b"k9", b"new")]
    assert [view.get(key) for key in (b"k9", b"k1", b"k", b"k4")] == [None, b"old", None, b"old"]
    assert newer.get(b"k0") == b"new"
    view.close()
    view.close()
    for call in (lambda: view.get(b"k0"), lambda: view.scan(b"a", b"b", 1)):
        with pytest.raises(StorageError):
            call()
    assert newer.get(b"k2") == b"old"
    newer.close()


def test_scans_of_a_view_are_bounded_as_those_of_the_engine(engine: Engine) -> None:
    put(engine, {b"%02d" % n: b"x" * 100 for n in range(50)} | {b"zz": b"outside"})
    view = engine.snapshot()
    for start, end, limit, max_bytes in (
        (b"00", b"99", 1000, 10**6),
        (b"10", b"99", 3, 10**6),
        (b"47", b"99", 3, 10**6),
        (b"00", b"99", 1000, 300),
        (b"00", b"99", 1000, 1),
        (b"5", b"5", 10, 10),
        (b"9", b"5", 10, 10),
        (b"zz", b"zzz", 10, 10**6),
    ):
        assert view.scan(start, end, limit, max_bytes) == engine.scan(start, end, limit, max_bytes)
    view.close()


def test_a_view_is_read_on_another_thread_while_rows_are_written(tmp_path: pathlib.Path) -> None:
    engine = RocksEngine(tmp_path, is_synced=False)
    count = 20_000
    put(engine, {b"k%05d" % n: b"0" * 100 for n in range(count)})
    view = engine.snapshot()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(view.scan, b"k", b"l", count + 1, 10**9)
        for round_ in range(5):
            put(engine, {b"k%05d" % n: b"%d" % round_ * 100 for n in range(0, count, 2)})
            engine._db.flush()
        rows = reading.result(30).rows
    assert len(rows) == count
    assert {value for _, value in rows} == {b"0" * 100}
    view.close()
    engine.close()
    RocksEngine(tmp_path).close()


def test_closing_twice_is_fine_and_later_calls_are_errors(engine: Engine) -> None:
    engine.flush_wal()
    assert engine.size_bytes() >= 0
    engine.close()
    engine.close()
    for call in (
        lambda: engine.get(b"a"),
        lambda: engine.get_many([b"a", b"b"]),
        lambda: engine.scan(b"a", b"b", 1),
        lambda: engine.write(engine.new_batch()),
        engine.flush_wal,
        engine.snapshot,
    ):
        with pytest.raises(StorageError):
            call()


def test_rocks_keeps_what_was_written(tmp_path: pathlib.Path) -> None:
    first = RocksEngine(tmp_path / "db")
    put(first, {b"a": b"1"})
    with pytest.raises(StorageError, match="lock"):
        RocksEngine(tmp_path / "db")
    first.close()
    second = RocksEngine(tmp_path / "db")
    assert second.get(b"a") == b"1"
    assert second.size_bytes() > 0
    second.close()


def test_rocks_in_a_place_it_cannot_have(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError):
        RocksEngine(tmp_path / "file")


def test_a_crash_of_the_memory_engine_keeps_any_prefix_of_unsynced_batches() -> None:
    engine = MemoryEngine()
    put(engine, {b"a": b"1"})
    engine.flush_wal()
    put(engine, {b"a": b"2", b"b": b"2"})
    put(engine, {b"a": b"3"})
    assert [engine.crash(kept).rows() for kept in range(3)] == [
        {b"a": b"1"},
        {b"a": b"2", b"b": b"2"},
        {b"a": b"3", b"b": b"2"},
    ]
    engine.flush_wal()
    assert engine.crash().rows() == {b"a": b"3", b"b": b"2"}


def test_a_scan_that_meets_damage_raises_and_does_not_end_early(tmp_path: pathlib.Path) -> None:
    """RocksDB's iterators just become invalid there; taken as the end of the range it would lose all keys behind."""
    count = 20_000
    engine = RocksEngine(tmp_path)
    rng = random.Random(1)
    put(engine, {b"k%05d" % n: rng.randbytes(100) for n in range(count)})
    engine._db.flush()
    engine.close()
    (table,) = tmp_path.glob("*.sst")
    data = bytearray(table.read_bytes())
    for at in range(len(data) // 2, len(data) // 2 + 64):
        data[at] ^= 0xFF
    table.write_bytes(data)
    damaged = RocksEngine(tmp_path)
    try:
        with pytest.raises(StorageError, match="checksum"):
            damaged.scan(b"k", b"l", 10 * count, 10**9)
        assert len(damaged.scan(b"k15000", b"l", 10 * count, 10**9).rows) == 5_000
        assert len(damaged.scan(b"k", b"l", 100, 10**9).rows) == 100
        view = damaged.snapshot()
        with pytest.raises(StorageError, match="checksum"):
            view.scan(b"k", b"l", 10 * count, 10**9)
        view.close()
    finally:
        damaged.close()


def test_removed_rows_are_tidied_up_by_the_first_scan_that_meets_many(tmp_path: pathlib.Path) -> None:
    """Each scan would pass over all of them, 50 to 100 ms for 200,000, with Python's lock held."""
    engine = RocksEngine(tmp_path / "db", is_synced=False)
    keys = [b"k%06d" % n for n in range(2 * SKIP_MAX)]
    put(engine, dict.fromkeys([b"a", *keys, b"z"], b"v"))
    batch = engine.new_batch()
    for key in keys:
        batch.delete(key)
    engine.write(batch)
    assert engine.scan(b"a", b"b", 10) == ([(b"a", b"v")], False)
    assert engine._tidying is None
    assert engine.scan(b"a", b"zz", 10) == ([(b"a", b"v"), (b"z", b"v")], False)
    assert engine._tidying is not None
    engine._tidying.result(10.0)
    assert engine._scan(b"a", b"zz", 10, SCAN_MAX_BYTES, SKIP_MAX)[1] is False, "nothing lies in the way any more"
    assert engine.scan(b"a", b"zz", 10) == ([(b"a", b"v"), (b"z", b"v")], False)
    engine.close()


def test_an_engine_is_closed_while_it_tidies_up(tmp_path: pathlib.Path) -> None:
    engine = RocksEngine(tmp_path / "db", is_synced=False)
    for first in range(0, 100_000, 10_000):
        put(engine, {b"k%06d" % n: bytes(100) for n in range(first, first + 10_000)})
        batch = engine.new_batch()
        for n in range(first, first + 10_000):
            batch.delete(b"k%06d" % n)
        engine.write(batch)
    put(engine, {b"z": b"v"})
    assert engine.scan(b"a", b"zz", 10) == ([(b"z", b"v")], False)
    engine.close()
    again = RocksEngine(tmp_path / "db")
    assert again.get(b"z") == b"v"
    again.close()
