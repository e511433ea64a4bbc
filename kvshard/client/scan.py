"""An ordered scan as an asynchronous iterator that survives the loss of its stream and can be resumed by token."""

from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Generic, Self

from kvshard.client.checks import invalid, key_after, range_bytes
from kvshard.client.codecs import ValueCodec
from kvshard.client.connection import Connection
from kvshard.client.options import ReadOptions
from kvshard.client.results import Coverage, Item, K, ReadState, Timing, V
from kvshard.client.retries import told
from kvshard.client.scan_source import RouterScans, ScanChunk, ScanSource, ScanStream
from kvshard.client.scan_token import ScanPosition, decode_position, encode_position
from kvshard.errors import DeadlineExceeded, KvShardError
from kvshard.v1 import kv_pb2


@dataclass(frozen=True, slots=True)
class ScanRange:
    """What is scanned. limit 0: all."""

    collection: str
    prefix: bytes = b""
    start: bytes = b""
    end: bytes = b""
    limit: int = 0
    keys_only: bool = False

    @classmethod
    def of(
        cls,
        collection: str,
        *,
        prefix: str | bytes | None,
        start: str | bytes | None,
        end: str | bytes | None,
        limit: int | None,
        keys_only: bool,
    ) -> Self:
        """The range that a program asks for, checked."""
        if limit is not None and limit < 1:
            raise invalid(f"limit must be at least 1, not {limit}; leave it out for all keys", "limit")
        return cls(
            collection,
            range_bytes(prefix, "prefix"),
            range_bytes(start, "start"),
            range_bytes(end, "end"),
            limit or 0,
            keys_only,
        )

    @property
    def identity(self) -> tuple[bytes, ...]:
        """What a token is bound to: the keys in their order, not how many of them or with what."""
        return self.collection.encode(), self.prefix, self.start, self.end


class Scan(AsyncIterator[Item[K, V]], Generic[K, V]):
    """The items of a scan, ascending by key. token: resumes behind the last item given. coverage: known at the end.

    A stream that breaks is opened again where it stopped: items are neither lost nor given twice. What is not taken is not
    fetched, beyond a bounded part. Leave an unfinished scan with `aclose()`, or use it in `async with`; one that is only
    dropped ends when it is collected. states: of a stale scan, known at the end: what its last stream read of each shard.
    timing: with explain_timing, known at the end: where the time of its last stream went, one leg a shard, without the time in
    which it waited to be read.
    """

    def __init__(
        self,
        connection: Connection,
        wanted: ScanRange,
        options: ReadOptions,
        decode_key: Callable[[bytes], K],
        values: ValueCodec[V],
        *,
        resume: bytes | None = None,
        source: ScanSource | None = None,
    ) -> None:
        """source: where the chunks come from; None: the routers of the connection."""
        self._connection = connection
        self._source = source or RouterScans(connection)
        self._wanted = wanted
        self._options = options
        self._decode_key = decode_key
        self._decode_value = values.decode
        self._nothing = values.nothing
        self._before = decode_position(resume, wanted.identity) if resume else ScanPosition(wanted.start)
        self._last_key = self._before.last_key
        self._is_incomplete = self._before.is_incomplete
        self._chunk = ScanChunk((), (), (), (), is_end=False)
        # Of the chunk, the items in [at, end) are still to be given; left: how many after them.
        self._at = self._end = 0
        self._left = wanted.limit or None
        self._stream: ScanStream | None = None
        self._router: int | None = None
        self._has_progressed = False
        self._deadline: float | None = None
        self._attempts = 0
        self._cause: KvShardError | None = None
        self.coverage: Coverage | None = None
        self.states: tuple[ReadState, ...] = ()
        self.timing: Timing | None = None

    def __repr__(self) -> str:
        return f"Scan({self._wanted}, last_key={self._reached!r}, at_end={self._is_at_end})"

    @property
    def token(self) -> bytes:
        """Resumes behind the last item given, in a scan of the same range. Empty before the first and after the last one."""
        before, reached = self._before, self._reached
        if self._is_at_end or not (before.router_token or reached):
            return b""
        return encode_position(replace(before, last_key=reached, is_incomplete=self._is_incomplete), self._wanted.identity)

    @property
    def _reached(self) -> bytes:
        """The last key given; empty before the first."""
        return self._chunk.keys[self._at - 1] if self._at else self._last_key

    @property
    def _is_at_end(self) -> bool:
        return self._chunk.is_end and self._at == len(self._chunk.keys)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item[K, V]:
        at = self._at
        if at == self._end:
            if not await self._next_chunk():
                raise StopAsyncIteration
            at = self._at
        self._at = at + 1
        chunk = self._chunk
        value = self._decode_value(chunk.values[at]) if chunk.values else self._nothing()
        expires_at_ms = chunk.expires_at_ms[at] if chunk.expires_at_ms else 0
        return Item(self._decode_key(chunk.keys[at]), value, chunk.versions[at], expires_at_ms)

    async def take(self, count: int) -> list[Item[K, V]]:
        """The next items, `count` of them or, at the end, fewer: a page at a time, at less cost than one by one."""
        items: list[Item[K, V]] = []
        while len(items) < count and (self._at < self._end or await self._next_chunk()):
            piece = slice(self._at, min(self._end, self._at + count - len(items)))
            items += self._items(piece)
            self._at = piece.stop
        return items

    def _items(self, piece: slice) -> list[Item[K, V]]:
        chunk = self._chunk
        keys = [self._decode_key(key) for key in chunk.keys[piece]]
        count = len(keys)
        values = [self._decode_value(value) for value in chunk.values[piece]] or [self._nothing() for _ in range(count)]
        expiries: Sequence[int] = chunk.expires_at_ms[piece] or (0,) * count
        return list(map(Item, keys, values, chunk.versions[piece], expiries))

    async def _next_chunk(self) -> bool:
        """Have another chunk with items at hand; False at the end, or at the limit."""
        while not self._is_at_end and self._left != 0:
            try:
                chunk = await self._read()
            except KvShardError as error:
                await self._recover(error)
                continue
            if chunk is None:
                self._chunk = ScanChunk((), (), (), (), is_end=True)
                self._at = self._end = 0
                break
            self._take_in(chunk)
            if self._at < self._end:
                return True
        await self.aclose()
        return False

    async def _read(self) -> ScanChunk | None:
        if self._stream is None:
            self._router = None
            self._stream = self._open()
        if self._stream is None:
            return None
        self._router = self._stream.router
        try:
            return await self._stream.read()
        except BaseException:
            # It broke, or its reader gave up waiting: whoever reads on gets another one.
            await self.aclose()
            raise

    def _open(self) -> ScanStream | None:
        """Begin a stream behind what was given; None when nothing can lie there."""
        clock = self._connection.clock
        if self._deadline is None:
            self._deadline = clock.monotonic() + self._options.timeout
        before, start = self._before, self._wanted.start
        if before.router_token:
            start = before.start
        elif last_key := self._reached:
            after = key_after(last_key)
            if after is None:
                return None
            start = after
        request = kv_pb2.ScanRequest(
            collection=self._wanted.collection,
            prefix=self._wanted.prefix,
            start=start,
            end=self._wanted.end,
            limit=self._left or 0,
            keys_only=self._wanted.keys_only,
            token=before.router_token,
            options=self._options.to_wire(),
        )
        self._has_progressed = False
        return self._source.open(request, max(0.0, self._deadline - clock.monotonic()))

    def _take_in(self, chunk: ScanChunk) -> None:
        self._has_progressed = True
        self._attempts = 0
        self._cause = None
        last_key, keys = self._reached, chunk.keys
        # A chunk that a token of an earlier version leads to may begin with keys that were given then.
        at = bisect_right(keys, last_key) if keys and keys[0] <= last_key else 0
        self._last_key = last_key
        self._chunk = chunk
        # From here on every shard may answer, and what is missing before is never asked for: it stays incomplete.
        self._is_incomplete = self._is_incomplete or chunk.is_incomplete
        self._at = at
        self._end = len(keys) if self._left is None else min(len(keys), at + self._left)
        if self._left is not None:
            self._left -= self._end - at
        if self._before.router_token and keys:
            self._before = ScanPosition()
        if chunk.coverage is not None:
            self.coverage = replace(chunk.coverage, complete=chunk.coverage.complete and not self._is_incomplete)
            self.states = chunk.states
            self.timing = chunk.timing

    async def _recover(self, error: KvShardError) -> None:
        """Make ready for another stream, or raise the error."""
        if self._has_progressed:
            self._deadline = None
            if isinstance(error, DeadlineExceeded):
                # The deadline of a stream bounds the wait for progress, and there was some: a slow reader is no failure.
                return
        deadline = self._deadline
        if deadline is None:
            deadline = self._deadline = self._connection.clock.monotonic() + self._options.timeout
        self._attempts += 1
        self._cause = error = told(error, self._cause)
        await self._connection.pause_or_raise(
            error, self._router, is_repeatable=True, attempts=self._attempts, deadline=deadline
        )

    async def aclose(self) -> None:
        """Give the scan up; a stream under way is cancelled."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
