import asyncio

import pytest
from fakes.clock import ManualClock
from fakes.engines import FaultyEngine

from leaf.committer import BATCH_MAX_BYTES, BATCH_MAX_ROWS, GROUP_MAX_BYTES, Committer
from leaf.engine import StorageError
from leaf.layout import Changes


def row(key: bytes, value: bytes = b"") -> Changes:
    changes = Changes()
    changes.put(key, value)
    return changes


class Shell:
    """A committer over a faulty engine, with what it reported."""

    def __init__(self) -> None:
        self.engine = FaultyEngine()
        self.durable: list[dict[int, int]] = []
        self.failures: list[str] = []
        self.groups: list[int] = []
        self.committer = Committer(
            self.engine,
            ManualClock(),
            self.durable.append,
            self.failures.append,
            lambda entries, _: self.groups.append(entries),
        )
        self.committer.start()

    async def settle(self) -> None:
        """Let the committer come to rest: it waits for rows, or for a flush that is held."""
        await self.committer.persist(b"settle", b"")

    async def until_written(self, writes: int) -> None:
        while self.engine.writes < writes:
            await asyncio.sleep(0)


@pytest.fixture
async def shell():
    made = Shell()
    yield made
    made.engine.release()
    await made.committer.close()


async def test_what_all_shards_append_in_one_pass_shares_one_flush(shell: Shell) -> None:
    for shard in range(8):
        for seqno in (1, 2, 3):
            shell.committer.append(shard, seqno, row(b"l%d-%d" % (shard, seqno)), 1)
    await shell.settle()
    assert (shell.engine.writes, shell.engine.flushes) == (1, 1)
    assert shell.durable == [dict.fromkeys(range(8), 3)]
    assert shell.groups == [24]
    assert shell.committer.queued_bytes == 0


async def test_the_next_group_gathers_while_one_is_flushed(shell: Shell) -> None:
    shell.engine.hold()
    shell.committer.append(0, 1, row(b"a"))
    await shell.until_written(1)
    for seqno in range(2, 50):
        shell.committer.append(0, seqno, row(b"a%d" % seqno))
        await asyncio.sleep(0)
    assert shell.durable == []
    assert shell.engine.writes == 1
    shell.engine.release()
    await shell.settle()
    assert shell.durable == [{0: 1}, {0: 49}]
    assert shell.engine.flushes == 2


async def test_groups_are_bounded_by_bytes_and_keep_their_order(shell: Shell) -> None:
    big = bytes(GROUP_MAX_BYTES // 2)
    for seqno in range(1, 5):
        shell.committer.append(0, seqno, row(b"k", big))
    shell.committer.append(0, 5, row(b"k", bytes(GROUP_MAX_BYTES * 2)))
    await shell.settle()
    assert [report[0] for report in shell.durable] == [1, 2, 3, 4, 5]


async def test_a_group_is_written_in_batches_that_leave_the_loop_its_turns_and_share_a_flush(shell: Shell) -> None:
    for seqno in range(1, 3 * BATCH_MAX_ROWS + 1):
        shell.committer.append(0, seqno, row(b"k%d" % seqno))
    before, turns = shell.engine.writes, 0
    while shell.engine.writes < before + 3:
        assert shell.engine.writes <= before + turns
        await asyncio.sleep(0)
        turns += 1
    assert shell.durable == []
    await shell.settle()
    assert (shell.engine.writes, shell.engine.flushes) == (4, 2)
    assert shell.durable == [{0: 3 * BATCH_MAX_ROWS}]
    big = bytes(BATCH_MAX_BYTES // 2 + 1)
    for seqno in (1, 2):
        shell.committer.append(1, seqno, row(b"k", big))
    await shell.settle()
    assert (shell.engine.writes, shell.engine.flushes) == (6, 3)


async def test_a_failed_write_fails_what_waits_and_all_that_follows(shell: Shell) -> None:
    shell.engine.fail_writes = "No space left on device"
    shell.committer.append(0, 1, row(b"a"))
    with pytest.raises(StorageError, match="No space"):
        await shell.committer.persist(b"b", b"")
    assert shell.failures == ["No space left on device"]
    assert shell.durable == []
    shell.engine.fail_writes = ""
    shell.committer.append(0, 2, row(b"a"))
    with pytest.raises(StorageError):
        await shell.committer.persist(b"b", b"")
    assert shell.engine.writes == 0


async def test_a_failed_flush_is_never_tried_again(shell: Shell) -> None:
    shell.engine.fail_flushes = "Input/output error"
    shell.engine.hold()
    first = asyncio.ensure_future(shell.committer.persist(b"a", b""))
    await shell.until_written(1)
    second = asyncio.ensure_future(shell.committer.persist(b"b", b""))
    await asyncio.sleep(0)
    shell.engine.release()
    for waiting in (first, second):
        with pytest.raises(StorageError, match="Input/output"):
            await waiting
    shell.engine.fail_flushes = ""
    assert (shell.engine.writes, shell.engine.flushes) == (1, 0)
    assert shell.failures == ["Input/output error"]


async def test_a_defect_while_applying_stops_the_commits(shell: Shell) -> None:
    def defect(_: dict[int, int]) -> None:
        raise ValueError("no")

    shell.committer._on_durable = defect
    shell.committer.append(0, 1, row(b"a"))
    with pytest.raises(StorageError):
        await shell.settle()
        await shell.settle()
    assert shell.failures == ["ValueError: no"]


async def test_changes_given_together_are_one_batch_and_all_changes_keep_their_order(shell: Shell) -> None:
    first = row(b"a", b"1")
    first.put(b"b", bytes(GROUP_MAX_BYTES))
    first.put(b"c", b"1")
    shell.committer.append(0, 1, first, 2)
    taken_back = Changes()
    taken_back.delete_range(b"b", b"d")
    taken_back.delete(b"a")
    shell.committer.append(0, 2, taken_back)
    shell.committer.append(0, 3, Changes())
    shell.committer.append(0, 4, row(b"b", b"again"), 1)
    await shell.committer.make_durable(row(b"z"))
    assert shell.engine.crash().rows() == {b"b": b"again", b"z": b""}
    assert shell.durable == [{0: 1}, {0: 4}]
    assert shell.groups == [2, 1]
    assert shell.committer.queued_bytes == 0


async def test_closing_commits_what_waits(shell: Shell) -> None:
    shell.committer.append(0, 1, row(b"a"))
    await shell.committer.close()
    assert shell.durable == [{0: 1}]
    assert shell.engine.crash().rows() == {b"a": b""}


async def test_a_caller_that_gives_up_disturbs_nobody(shell: Shell) -> None:
    shell.engine.hold()
    given_up = asyncio.ensure_future(shell.committer.persist(b"a", b""))
    await shell.until_written(1)
    given_up.cancel()
    shell.committer.append(0, 1, row(b"b"))
    shell.engine.release()
    await shell.settle()
    assert shell.durable == [{0: 1}]


async def test_what_others_wrote_is_synced_when_it_is_asked_for(shell: Shell) -> None:
    shell.committer.sync_soon()
    await shell.settle()
    assert shell.engine.flushes == 1
    assert shell.durable == []
    assert shell.committer.queued_bytes == 0
    shell.committer.fail("broken")
    shell.committer.sync_soon()
    await asyncio.sleep(0)
    assert shell.engine.flushes == 1
