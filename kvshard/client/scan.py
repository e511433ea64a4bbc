"""An ordered scan as an asynchronous iterator that survives the loss of its stream and can be resumed by token."""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Generic, Self

import grpc

from kvshard.client.checks import invalid, key_after, range_bytes
from kvshard.client.codecs import ValueCodec
from kvshard.client.connection import Connection
from kvshard.client.options import ReadOptions
from kvshard.client.results import Coverage, Item, K, ReadState, Timing, V
from kvshard.client.scan_token import ScanPosition, decode_position, encode_position
from kvshard.client.wire import coverage_of, state_of, timing_of
from kvshard.errors import DeadlineExceeded
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

    A stream that breaks is opened again where it stopped: items are neither lost nor given twice. Leave an unfinished scan with
    `aclose()`, or use it in `async with`; one that is only dropped ends when it is collected. states: of a stale scan, known at
    the end: what its last stream read of each shard. timing: with explain_timing, known at the end: where the time of its last
    stream went, one leg a shard, without the time in which it waited to be read.
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
    ) -> None:
        self._connection = connection
        self._wanted = wanted
        self._options = options
        self._decode_key = decode_key
        self._values = values
        self._position = decode_position(resume, wanted.identity) if resume else ScanPosition(wanted.start)
        self._chunk = kv_pb2.ScanResponse()
        self._columns: tuple[list[bytes], list[bytes], list[int], list[int]] = ([], [], [], [])
        self._at = 0
        self._given = 0
        self._is_at_end = False
        self._stream: grpc.aio.UnaryStreamCall[kv_pb2.ScanRequest, kv_pb2.ScanResponse] | None = None
        self._router = 0
        self._has_progressed = False
        self._deadline: float | None = None
        self._attempts = 0
        self.coverage: Coverage | None = None
        self.states: tuple[ReadState, ...] = ()
        self.timing: Timing | None = None

    def __repr__(self) -> str:
        return f"Scan({self._wanted}, given={self._given}, at_end={self._is_at_end})"

    @property
    def token(self) -> bytes:
        """Resumes behind the last item given, in a scan of the same range. Empty before the first and after the last one."""
        if self._is_at_end or not (self._position.router_token or self._position.last_key):
            return b""
        return encode_position(self._position, self._wanted.identity)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item[K, V]:
        if self._wanted.limit and self._given == self._wanted.limit:
            await self.aclose()
            raise StopAsyncIteration
        while self._at == len(self._columns[0]):
            if not await self._next_chunk():
                raise StopAsyncIteration
        keys, values, versions, expiries = self._columns
        at = self._at
        self._at += 1
        self._given += 1
        self._pass(keys[at])
        value = self._values.nothing() if self._wanted.keys_only else self._values.decode(values[at])
        return Item(self._decode_key(keys[at]), value, versions[at], expiries[at] if expiries else 0)

    def _pass(self, key: bytes) -> None:
        """Remember that everything through this key was given."""
        lacks = self._lacks_shards()
        if self._at == len(self._columns[0]) and self._chunk.token:
            self._position = ScanPosition(self._position.start, self._chunk.token, is_incomplete=lacks)
        else:
            self._position = replace(self._position, last_key=key, is_incomplete=lacks)
            self._is_at_end = self._at == len(self._columns[0])

    async def _next_chunk(self) -> bool:
        """Have another chunk at hand; False at the end."""
        while not self._is_at_end:
            try:
                chunk = await self._read()
            except (grpc.aio.AioRpcError, asyncio.CancelledError) as raised:
                await self._recover(raised)
                continue
            if chunk is None:
                self._is_at_end = True
                break
            self._take(chunk)
            return True
        await self.aclose()
        return False

    async def _read(self) -> kv_pb2.ScanResponse | None:
        if self._stream is None and not self._open():
            return None
        assert self._stream is not None
        found = await self._stream.read()
        return found if isinstance(found, kv_pb2.ScanResponse) else None

    def _open(self) -> bool:
        """Begin a stream at the present position; False when nothing can lie behind it."""
        clock = self._connection.clock
        if self._deadline is None:
            self._deadline = clock.monotonic() + self._options.timeout
        if self._position.last_key and not self._position.router_token:
            # The stream broke off before its first token: the scan goes on as one that begins behind the last key.
            start = key_after(self._position.last_key)
            if start is None:
                return False
            self._position = ScanPosition(start, is_incomplete=self._position.is_incomplete)
        request = kv_pb2.ScanRequest(
            collection=self._wanted.collection,
            prefix=self._wanted.prefix,
            start=self._position.start,
            end=self._wanted.end,
            limit=self._wanted.limit,
            keys_only=self._wanted.keys_only,
            token=self._position.router_token,
            options=self._options.to_wire(),
        )
        self._router = self._connection.current
        self._stream = self._connection.stubs.kv.Scan(request, timeout=max(0.0, self._deadline - clock.monotonic()))
        self._has_progressed = False
        return True

    def _lacks_shards(self) -> bool:
        """Something that was given, or is at hand now, lacks a shard.

        A position inside of a chunk that lacks one has to say so: from there on every shard may answer, and what is missing
        before it is never asked for.
        """
        return self._position.is_incomplete or self._chunk.is_incomplete

    def _take(self, chunk: kv_pb2.ScanResponse) -> None:
        self._has_progressed = True
        self._attempts = 0
        self._chunk = chunk
        keys, values = list(chunk.keys), list(chunk.values)
        self._columns = keys, values, list(chunk.versions), list(chunk.expires_at_ms)
        # A chunk that was read once before the scan was resumed begins with keys that were given then.
        self._at = bisect_right(keys, self._position.last_key) if self._position.last_key else 0
        if chunk.HasField("coverage"):
            whole = coverage_of(chunk.coverage)
            self.coverage = replace(whole, complete=whole.complete and not self._lacks_shards())
            self.states = tuple(map(state_of, chunk.states))
            self.timing = timing_of(chunk)
        if self._at == len(keys) and chunk.token:
            self._position = ScanPosition(self._position.start, chunk.token, is_incomplete=self._lacks_shards())

    async def _recover(self, raised: grpc.aio.AioRpcError | asyncio.CancelledError) -> None:
        """Make ready for another stream, or raise the error."""
        self._stream = None
        error = self._connection.error_of_call(raised, is_write=False)
        if self._has_progressed:
            self._deadline = None
            if isinstance(error, DeadlineExceeded):
                # The deadline of a stream bounds the wait for progress, and there was some: a slow reader is no failure.
                return
        deadline = self._deadline
        if deadline is None:
            deadline = self._deadline = self._connection.clock.monotonic() + self._options.timeout
        self._attempts += 1
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
