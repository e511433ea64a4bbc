import pathlib

from leaf.disk_guard import RESERVE_BYTES, ROOMY_FACTOR, DiskGuard, free_bytes_of

MB = 1024 * 1024


class Disk:
    def __init__(self, free: int) -> None:
        self.free = free
        self.is_broken = False
        self.looks = 0

    def __call__(self) -> int:
        self.looks += 1
        if self.is_broken:
            raise OSError("no such device")
        return self.free


def test_an_almost_full_disk_refuses_until_there_is_room_again() -> None:
    disk = Disk(RESERVE_BYTES)
    guard = DiskGuard(disk)
    assert guard.refusal(1000, 0) is None
    disk.free = RESERVE_BYTES - 1
    guard.probe()
    refusal = guard.refusal(0, 0)
    assert refusal is not None
    assert refusal.message.startswith("disk almost full")
    assert refusal.details.retry_after_ms
    disk.free = RESERVE_BYTES
    guard.probe()
    assert guard.refusal(0, 0) is None


def test_a_disk_that_was_low_is_so_until_there_is_much_room() -> None:
    disk = Disk(RESERVE_BYTES)
    guard = DiskGuard(disk)
    found = []
    for free in (
        RESERVE_BYTES,
        RESERVE_BYTES - 1,
        RESERVE_BYTES,
        ROOMY_FACTOR * RESERVE_BYTES - 1,
        ROOMY_FACTOR * RESERVE_BYTES,
    ):
        disk.free = free
        guard.probe()
        found.append(guard.is_low)
    assert found == [False, True, True, True, False]


def test_what_is_written_counts_until_the_next_look() -> None:
    disk = Disk(RESERVE_BYTES + 10 * MB)
    guard = DiskGuard(disk)
    guard.note_written(6 * MB)
    assert guard.refusal(0, 0) is not None
    guard.probe()
    assert guard.refusal(0, 0) is None
    assert disk.looks == 2


def test_large_writes_need_twice_their_size() -> None:
    guard = DiskGuard(Disk(RESERVE_BYTES + 10 * MB))
    assert guard.refusal(30 * MB, 0) is None
    assert guard.refusal(30 * MB, 20 * MB) is not None


def test_a_look_that_fails_changes_nothing() -> None:
    disk = Disk(RESERVE_BYTES)
    guard = DiskGuard(disk)
    disk.is_broken = True
    guard.probe()
    assert repr(guard) == f"DiskGuard(free={RESERVE_BYTES}, reserve={RESERVE_BYTES})"


def test_free_bytes_of_a_real_folder(tmp_path: pathlib.Path) -> None:
    assert free_bytes_of(tmp_path)() > 0
