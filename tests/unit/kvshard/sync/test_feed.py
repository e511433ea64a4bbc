"""What the loop does for a scan that a thread reads: how far it reads ahead, what it hands over, and what is never lost."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from kvshard.client.results import Item
from kvshard.errors import Unavailable
from kvshard.sync import scan as scan_module
from kvshard.sync.scan import Feed


class ScriptedScan:
    """Gives what stands in its script: an item's size, an error, or an event to wait for. token: how many it has given."""

    def __init__(self, *script: int | Exception | asyncio.Event) -> None:
        self.script = list(script)
        self.given = 0
        self.is_over = False
        self.is_closed = False
        self.coverage = None

    @property
    def token(self) -> bytes:
        return b"" if self.is_over else b"%d" % self.given

    def __aiter__(self) -> AsyncIterator[Item[bytes, bytes]]:
        return self

    async def __anext__(self) -> Item[bytes, bytes]:
        while self.script:
            step = self.script.pop(0)
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, Exception):
                raise step
            else:
                self.given += 1
                return Item(b"%03d" % self.given, b"x" * step, self.given)
        self.is_over = True
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.is_closed = True


def feed_of(scan: ScriptedScan) -> Feed[bytes]:
    return Feed(scan)  # type: ignore[arg-type]


async def taken(feed: Feed[bytes], number: int) -> tuple[list[int], bytes, bool]:
    batch = await asyncio.wait_for(feed.take(number), 5)
    return [int(item.key) for item in batch.items], batch.token, batch.is_last


async def settled() -> None:
    """Let the reader go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_who_waits_gets_all_that_is_at_hand_and_no_more_is_waited_for():
    more = asyncio.Event()
    feed = feed_of(ScriptedScan(1, 1, 1, more, 1, 1))
    assert await taken(feed, 0) == ([1, 2, 3], b"3", False)
    waiting = asyncio.ensure_future(taken(feed, 1))
    await settled()
    assert not waiting.done()
    more.set()
    assert await waiting == ([4, 5], b"", True)


async def test_a_scan_without_items():
    assert await taken(feed_of(ScriptedScan()), 0) == ([], b"", True)


async def test_the_end_that_comes_late_is_told_by_an_empty_batch():
    end = asyncio.Event()
    feed = feed_of(ScriptedScan(1, end))
    assert await taken(feed, 0) == ([1], b"1", False)
    end.set()
    assert await taken(feed, 1) == ([], b"", True)
    assert await taken(feed, 2) == ([], b"", True), "and stays told"


@pytest.mark.parametrize(("items", "size", "read"), [(3, 1_000, 3), (1_000, 12, 3), (1_000, 13, 4)])
async def test_it_reads_ahead_by_one_batch_and_not_further(monkeypatch, items, size, read):
    """Each item has 3 bytes of key and 1 of value."""
    monkeypatch.setattr(scan_module, "BATCH_ITEMS", items)
    monkeypatch.setattr(scan_module, "BATCH_BYTES", size)
    scan = ScriptedScan(*[1] * 20)
    feed, given = feed_of(scan), []
    for number in range(3):
        given += (await taken(feed, number))[0]
        await settled()
        assert scan.given == (number + 2) * read, "one batch is out, one is ready"
    assert given == list(range(1, 3 * read + 1))


async def test_a_batch_whose_taker_was_interrupted_is_given_again():
    feed = feed_of(ScriptedScan(1, 1))
    first = await taken(feed, 0)
    assert await taken(feed, 0) == first
    assert await taken(feed, 1) == ([], b"", True)


async def test_a_taker_that_gives_up_while_it_waits_loses_nothing():
    more = asyncio.Event()
    feed = feed_of(ScriptedScan(more, 1, 1))
    given_up = feed.take(0)
    await settled()
    given_up.cancel()
    more.set()
    await settled()
    assert await taken(feed, 0) == ([1, 2], b"", True)


async def test_a_taker_that_gives_up_when_its_batch_is_due_loses_nothing():
    feed = feed_of(ScriptedScan(1, asyncio.Event()))
    given_up = feed.take(0)
    while not feed._is_due:
        await asyncio.sleep(0)
    given_up.cancel()
    await settled()
    assert await taken(feed, 0) == ([1], b"1", False)


async def test_an_error_comes_after_what_was_read_before_it_and_the_scan_can_go_on():
    feed = feed_of(ScriptedScan(1, 1, Unavailable("the router is gone"), 1))
    assert await taken(feed, 0) == ([1, 2], b"2", False)
    with pytest.raises(Unavailable, match="the router is gone"):
        await taken(feed, 1)
    assert await taken(feed, 1) == ([3], b"", True)


async def test_a_close_ends_the_reader_and_the_scan():
    scan = ScriptedScan(1, asyncio.Event())
    feed = feed_of(scan)
    await taken(feed, 0)
    assert feed._reader is not None
    await feed.close()
    assert scan.is_closed
    assert feed._reader is None
    assert await taken(feed, 1) == ([], b"1", True)


async def test_the_end_of_the_loop_ends_the_wait():
    feed = feed_of(ScriptedScan(asyncio.Event()))
    waiting = feed.take(0)
    await settled()
    assert feed._reader is not None
    feed._reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
