"""An ordered scan as a plain iterator: the asyncio scan runs ahead on the loop, batch by batch.

A thread fetches a batch at a time, since the way to the loop costs more than a thousand items. The loop reads on while the
thread works, as far as one batch: a slow reader stops it, and through it the router. Who waits gets what there is as soon as
the loop has nothing more at hand, be it a single item.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Generic, Self

from kvshard.client.codecs import ValueCodec
from kvshard.client.results import Coverage, Item, K, ReadState, Timing, V
from kvshard.client.scan import Scan as AsyncScan
from kvshard.client.scan import ScanRange
from kvshard.client.scan_token import ScanPosition, decode_position, encode_position
from kvshard.errors import FailedPrecondition
from kvshard.sync.loop_thread import LoopThread
from kvshard.sync.source import Source

BATCH_ITEMS = 1_000
"""Items handed over at once at most: a wait for the loop costs some 50 us, 0.05 us for each of so many."""

BATCH_BYTES = 1024 * 1024
"""Bytes of keys and values from which on a batch is full: one is with the thread and one with the loop, so a scan of the
largest values holds two of them beside the chunk from the router."""


@dataclass(frozen=True, slots=True)
class Batch(Generic[K]):
    """Items in order. token: of the scan behind the last one. is_last: nothing comes after them."""

    items: list[Item[K, bytes]]
    token: bytes
    is_last: bool


class Feed(Generic[K]):
    """Reads a scan ahead and hands it out in batches. Lives on the loop: everything but the constructor is called there.

    Batches are numbered from 0, and the last one that was asked for can be asked for again: one whose taker was interrupted is
    not lost. Invariant: at most the batch handed out last and the one that is being filled are held.
    """

    def __init__(self, scan: AsyncScan[K, bytes]) -> None:
        self._scan = scan
        self._reader: asyncio.Task[None] | None = None
        self._filling: list[Item[K, bytes]] = []
        self._size = 0
        self._number = -1
        self._handed: Batch[K] | None = None
        self._waiter: asyncio.Future[Batch[K]] | None = None
        self._room = asyncio.Event()
        self._is_over = False
        self._is_due = False
        self._error: Exception | None = None

    def take(self, number: int) -> "asyncio.Future[Batch[K]]":
        """The batch with this number, which follows the one taken last, or is that one again. Raises what the scan raises."""
        loop = asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        if number == self._number and self._handed is not None:
            waiter.set_result(self._handed)
        elif self._filling or self._is_over or self._error is not None:
            self._hand_over()
        elif self._reader is None:
            self._reader = loop.create_task(self._read())
        return waiter

    async def close(self) -> None:
        """Give the scan up."""
        reader = self._reader
        if reader is not None:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        self._is_over = True
        self._filling, self._handed = [], None
        await self._scan.aclose()

    async def _read(self) -> None:
        """Fill batches until the end of the scan or an error; after an error the next taker begins it again."""
        try:
            async for item in self._scan:
                self._filling.append(item)
                self._size += len(item.key) + len(item.value)
                self._hand_over_soon()
                while len(self._filling) >= BATCH_ITEMS or self._size >= BATCH_BYTES:
                    self._room.clear()
                    await self._room.wait()
            self._is_over = True
        except asyncio.CancelledError:
            if self._waiter is not None:
                self._waiter.cancel()  # No task stands behind it that would end it.
            raise
        except Exception as error:
            self._error = error
        finally:
            self._reader = None
        self._hand_over_soon()

    def _hand_over_soon(self) -> None:
        """When this task has nothing more at hand: then the batch has what could be read without waiting."""
        if self._waiter is not None and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._is_due = False
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():  # Its taker was interrupted; the batch waits for the next one.
            return
        if not self._filling and self._error is not None:
            error, self._error = self._error, None
            waiter.set_exception(error)
            return
        self._handed = Batch(self._filling, self._scan.token, self._is_over)
        self._number += 1
        self._filling, self._size = [], 0
        self._room.set()
        waiter.set_result(self._handed)


class Scan(Iterator[Item[K, V]], Generic[K, V]):
    """The items of a scan, ascending by key. token: resumes behind the last item given. coverage: known at the end.

    A stream that breaks is opened again where it stopped: items are neither lost nor given twice. Leave an unfinished scan with
    `close()`, or use it in `with`; one that is only dropped ends then. states: of a stale scan, known at the end: what its last
    stream read of each shard. timing: with explain_timing, known at the end: where the time of its last stream went, one leg a
    shard. One thread at a time may iterate.
    """

    def __init__(
        self,
        source: Source[K],
        thread: LoopThread,
        scan: AsyncScan[K, bytes],
        wanted: ScanRange,
        values: ValueCodec[V],
        token: bytes,
    ) -> None:
        self._source = source
        self._thread = thread
        self._scan = scan
        self._feed = Feed(scan)
        self._wanted = wanted
        self._values = values
        self._batch: Batch[K] = Batch([], token, False)
        self._token_before = token
        self._number = 0
        self._at = 0
        self._given = 0
        self._has_begun = False
        self._is_over = False

    def __repr__(self) -> str:
        return f"Scan({self._wanted}, given={self._given}, at_end={self._is_over})"

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item[K, V]:
        while self._at == len(self._batch.items):
            if self._is_over or self._batch.is_last:
                self._is_over = True
                self._thread.dismiss(self._feed)
                raise StopIteration
            self._fetch()
        item = self._batch.items[self._at]
        self._at += 1
        self._given += 1
        value = self._values.nothing() if self._wanted.keys_only else self._values.decode(item.value)
        return Item(item.key, value, item.version, item.expires_at_ms)

    def take(self, count: int) -> list[Item[K, V]]:
        """The next items, `count` of them or, at the end, fewer."""
        return list(islice(self, count))

    def _fetch(self) -> None:
        number = self._number

        def take(client: object) -> "asyncio.Future[Batch[K]]":
            if not self._thread.is_current:
                raise FailedPrecondition("the scan was begun before a fork; go on with scan(resume=token)")
            return self._feed.take(number)

        if not self._has_begun:
            self._thread.adopt(self._feed)  # A fork, or the end of the process, closes what is open.
            self._has_begun = True
        batch = self._source.run(take)
        self._token_before, self._batch, self._at, self._number = self._batch.token, batch, 0, number + 1

    @property
    def token(self) -> bytes:
        """Resumes behind the last item given, in a scan of the same range. Empty before the first and after the last one."""
        if self._at == len(self._batch.items):
            return self._batch.token
        if self._at == 0:
            return self._token_before
        whole = decode_position(self._batch.token, self._wanted.identity) if self._batch.token else ScanPosition()
        position = ScanPosition(last_key=self._last_key(), is_incomplete=whole.is_incomplete or self._lacks_shards())
        return encode_position(position, self._wanted.identity)

    def _last_key(self) -> bytes:
        key = self._batch.items[self._at - 1].key
        return key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key

    def _lacks_shards(self) -> bool:
        coverage = self._scan.coverage
        return coverage is not None and not coverage.complete

    @property
    def coverage(self) -> Coverage | None:
        """How much answered; known at the end."""
        return self._scan.coverage if self._is_over else None

    @property
    def states(self) -> tuple[ReadState, ...]:
        """What a stale scan's last stream read of each shard; known at the end."""
        return self._scan.states if self._is_over else ()

    @property
    def timing(self) -> Timing | None:
        """Where the time of the last stream went, with explain_timing; known at the end."""
        return self._scan.timing if self._is_over else None

    def close(self) -> None:
        """Give the scan up; a stream under way is cancelled."""
        is_open, self._is_over = not self._is_over, True
        self._batch = Batch([], self.token, True)
        self._at = 0
        if is_open and self._has_begun and self._thread.is_alive:
            self._thread.dismiss(self._feed)
            self._source.run(lambda client: self._feed.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        feed = getattr(self, "_feed", None)
        if feed is not None and self._has_begun and not self._is_over:
            self._thread.close_soon(feed)
