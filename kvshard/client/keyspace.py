"""The keys of one collection: point operations, batches and scans, over any kind of value."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, TypeAlias, TypeVar, Unpack

from kvshard.client.batch_results import DeleteResults, GetResults, PutResults, ReadColumns
from kvshard.client.batch_retry import Written
from kvshard.client.checks import (
    batches,
    check_refresh,
    check_timeout,
    key_bytes,
    keys_bytes,
    ttl_milliseconds,
)
from kvshard.client.codecs import ValueCodec, key_decoder
from kvshard.client.connection import Connection
from kvshard.client.options import ReadOptions, ReadOverrides
from kvshard.client.results import Coverage, Item, K, ReadState, Timing, V
from kvshard.client.scan import Scan, ScanRange
from kvshard.client.single_calls import SingleCalls, condition_of
from kvshard.client.wire import add_coverage, add_timing, coverage_of, failures_of, read_rest, state_of, timing_of
from kvshard.errors import KvShardError
from kvshard.lane_messages import KeysRead, KeysReadReply, KeysWrite
from kvshard.model import Refresh
from kvshard.v1 import kv_pb2, types_pb2

OutcomeT = TypeVar("OutcomeT", int, bool)
Items: TypeAlias = Mapping[str, V] | Mapping[bytes, V] | Iterable[tuple[str | bytes, V]]
"""What put_many takes: values by key, or pairs, of which a key may occur in several."""

_NOTHING_ASKED = Coverage(True, 0, 0, 1.0, 0, 0)


class _Gathered(Generic[V]):
    """What the answers to a batch read amount to, one after the other."""

    def __init__(self) -> None:
        self.columns: ReadColumns[V] = ReadColumns([], [], [], {})
        self.coverage: Coverage | None = None
        self.timing: Timing | None = None
        self.states: dict[int, ReadState] = {}

    def note(self, rest: kv_pb2.BatchGetResponse) -> None:
        """What one of them says beside its columns."""
        added = coverage_of(rest.coverage)
        self.coverage = added if self.coverage is None else add_coverage(self.coverage, added)
        self.timing = add_timing(self.timing, timing_of(rest))
        for state in map(state_of, rest.states):
            self.states[state.shard] = self.states.get(state.shard, state).older(state)


class Keyspace(Generic[K, V]):
    """The keys of one collection. Keys may be given as str (UTF-8) or bytes; they are given back as the client was told to."""

    def __init__(
        self, connection: Connection, name: str, keys: type[K], values: ValueCodec[V], options: ReadOptions | None = None
    ) -> None:
        self._connection = connection
        self._name = name
        self._keys: type[K] = keys
        self._decode_key = key_decoder(keys)
        self._values = values
        self._now = connection.clock.monotonic
        self._options = options or ReadOptions()
        self._wire_options = self._options.to_wire()  # Of a search.
        self._defaults = _travelling(self._options)
        self._single = SingleCalls(connection, name, self._defaults, keys, values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r}, {self._connection!r})"

    def _read_options(self, overrides: ReadOverrides) -> tuple[types_pb2.ReadOptions, float]:
        """The options of one read and its deadline. Most reads override nothing and share one message."""
        if not overrides:
            return self._wire_options, self._connection.deadline(self._options.timeout)
        options = self._options.overridden(overrides)
        return options.to_wire(), self._connection.deadline(options.timeout)

    def _deadline(self, timeout: float | None) -> float:
        return self._connection.deadline(self._options.timeout if timeout is None else check_timeout(timeout))

    async def put(
        self,
        key: str | bytes,
        value: V,
        *,
        ttl: float | None = None,
        if_version: int | None = None,
        if_absent: bool = False,
        refresh: Refresh = False,
        timeout: float | None = None,
    ) -> int:
        """Write a key and return its new version; durable when it returns.

        ttl: seconds after which the key vanishes. if_version: only if the key has this version; if_absent: only if there is no
        such key; VersionConflict otherwise. refresh: return only when a search can see the write; "wait": after the next
        refresh of its index in turn, without one of its own, which is cheaper where many write so. A write that failed is
        repeated under the same id, so that it takes effect once; when the time is over before its outcome is known, the error
        says details.maybe_applied.
        """
        wire, encoded = key_bytes(key), self._values.encode(value)
        done = await self._write(wire, encoded, ttl_milliseconds(ttl), condition_of(if_version, if_absent), refresh, timeout)
        return done[0]

    async def get(self, key: str | bytes, **read: Unpack[ReadOverrides]) -> Item[K, V] | None:
        """Read a key; None when it is absent."""
        wire = key_bytes(key)
        encoded, is_gathered, timeout = self._defaults
        if read:
            options = self._options.overridden(read)
            encoded, is_gathered, timeout = _travelling(options)
        now = self._now()
        if not is_gathered:
            return self._item_of(wire, *await self._read_alone(wire, encoded, now + timeout))
        reads = self._connection.keys.reads
        future = reads.read(self._name, encoded, wire, now + timeout, now)
        try:
            found = await future
        except asyncio.CancelledError:
            reads.forget(future)
            raise
        return self._single.item(key, wire, found)

    async def explain_get(self, key: str | bytes, **read: Unpack[ReadOverrides]) -> tuple[Item[K, V] | None, Timing]:
        """Read a key and tell where the time went, also when it is absent."""
        wire = key_bytes(key)
        encoded, _, timeout = _travelling(self._options.overridden({**read, "explain_timing": True}))
        reply, rest = await self._read_alone(wire, encoded, self._connection.deadline(timeout))
        timing = timing_of(rest)
        assert timing is not None, "a timing that is asked for comes"
        return self._item_of(wire, reply, rest), timing

    async def _read_alone(self, key: bytes, options: bytes, deadline: float) -> tuple[KeysReadReply, kv_pb2.BatchGetResponse]:
        """A read that tells something of its own, its timing or its shard's state: no other may be in its frame."""
        request = KeysRead(self._name, [key], options, is_each_alone=True)
        reply = await self._connection.keys.read(request, deadline)
        return reply, read_rest(reply.rest)

    def _item_of(self, key: bytes, reply: KeysReadReply, rest: kv_pb2.BatchGetResponse) -> Item[K, V] | None:
        value = reply.values[0]
        if value is None:
            return None
        state = state_of(rest.states[0]) if rest.states else None
        expires_at_ms = reply.expires_at_ms[0] if reply.expires_at_ms else 0
        key_given, decoded = self._decode_key(key), self._values.decode(value)
        return Item(key_given, decoded, reply.versions[0], expires_at_ms, timing_of(rest), state)

    async def delete(
        self, key: str | bytes, *, if_version: int | None = None, refresh: Refresh = False, timeout: float | None = None
    ) -> bool:
        """Delete a key; True if it was there. if_version: only if it has this version, VersionConflict otherwise."""
        return (await self._write(key_bytes(key), None, 0, condition_of(if_version, False), refresh, timeout))[1]

    async def _write(
        self,
        key: bytes,
        value: bytes | None,
        ttl_ms: int,
        condition: int | None,
        refresh: Refresh,
        timeout: float | None,
    ) -> tuple[int, bool]:
        """A put, or a delete (None), beside those of other callers: its version, and whether the key was there."""
        now = self._now()
        deadline = now + (self._options.timeout if timeout is None else check_timeout(timeout))
        if refresh:
            check_refresh(refresh)
        writes = self._connection.keys.writes
        future = writes.write(
            self._name, key, value, ttl_ms=ttl_ms, condition=condition, refresh=refresh, deadline=deadline, now=now
        )
        try:
            return await future
        except asyncio.CancelledError:
            writes.forget(future)
            raise

    async def get_many(self, keys: Iterable[str | bytes], **read: Unpack[ReadOverrides]) -> GetResults[K, V]:
        """Read many keys: in their order the item, None where a key is absent, or the error that kept it from being read.

        What is too large for one answer comes in several.
        """
        wire = keys_bytes(keys)
        encoded, _, timeout = _travelling(self._options.overridden(read)) if read else self._defaults
        deadline = self._connection.deadline(timeout)
        gathered: _Gathered[V] = _Gathered()
        for piece in batches(wire):
            part = wire if len(wire) == piece.stop - piece.start else wire[piece]
            columns = await self._read_batch(part, encoded, deadline, gathered)
            left = columns.left_over()
            while left:
                more = await self._read_batch([part[index] for index in left], encoded, deadline, gathered)
                columns.fill(left, more)
                if len(more.failures) == len(left):
                    break  # Each of them alone is too large, or fails otherwise.
                left = columns.left_over()
            gathered.columns.add(columns)
        by_shard = tuple(state for _, state in sorted(gathered.states.items()))
        coverage = gathered.coverage or _NOTHING_ASKED
        return GetResults(wire, gathered.columns, self._decode_key, coverage, gathered.timing, by_shard)

    async def _read_batch(self, keys: list[bytes], options: bytes, deadline: float, gathered: "_Gathered[V]") -> ReadColumns[V]:
        reply = await self._connection.keys.read(KeysRead(self._name, keys, options), deadline)
        rest = read_rest(reply.rest)
        gathered.note(rest)
        values = self._values.decode_all(reply.values)
        return ReadColumns(values, reply.versions, reply.expires_at_ms, failures_of(rest.failures))

    async def put_many(
        self,
        items: Items[V],
        *,
        ttl: float | None = None,
        if_absent: bool = False,
        refresh: Refresh = False,
        timeout: float | None = None,
    ) -> PutResults[K]:
        """Write many keys, in order where one occurs twice. Each key has a result of its own: its new version or an error.

        What keeps within the service's limits goes as one batch, larger ones are cut. An error of the whole call is raised when
        it hits the first piece; later it stands in the place of the keys concerned, beside the results of those written before.
        """
        given, values = _columns_of(items)
        keys, encoded = keys_bytes(given), self._values.encode_all(values)
        ttl_ms, condition = ttl_milliseconds(ttl), condition_of(None, if_absent)
        is_seen, is_patient = bool(check_refresh(refresh)), refresh == "wait"
        requests = []
        for piece in batches(keys, encoded):
            count = piece.stop - piece.start
            ttls = [ttl_ms] * count if ttl_ms else []
            conditions: list[int | None] = [condition] * count if condition is not None else []
            given_values: list[bytes | None] = list(encoded[piece])
            columns = keys[piece], given_values, ttls, conditions
            requests.append(KeysWrite(self._name, *columns, is_seen, next_refresh=is_patient))
        outcomes: list[int | KvShardError] = []
        for written in await self._write_pieces(requests, self._deadline(timeout)):
            outcomes += _outcomes(written.versions, written)
        return PutResults(keys, outcomes, self._decode_key)

    async def delete_many(
        self, keys: Iterable[str | bytes], *, refresh: Refresh = False, timeout: float | None = None
    ) -> DeleteResults[K]:
        """Delete many keys. Each has a result of its own: whether it was there, or an error; see put_many."""
        wire = keys_bytes(keys)
        is_seen, is_patient = bool(check_refresh(refresh)), refresh == "wait"
        requests = []
        for piece in batches(wire):
            given = wire[piece]
            nothing: list[bytes | None] = [None] * len(given)
            requests.append(KeysWrite(self._name, given, nothing, refresh=is_seen, next_refresh=is_patient))
        outcomes: list[bool | KvShardError] = []
        for written in await self._write_pieces(requests, self._deadline(timeout)):
            outcomes += _outcomes(written.existed, written)
        return DeleteResults(wire, outcomes, self._decode_key)

    async def _write_pieces(self, requests: Sequence[KeysWrite], deadline: float) -> list[Written]:
        """The outcomes in order; after a piece that failed as a whole none is sent, and each key of the rest has an error."""
        outcomes: list[Written] = []
        failed: KvShardError | None = None
        for request in requests:
            if failed is not None:
                outcomes.append(Written.failed(failed, len(request.keys)))
                continue
            try:
                outcomes.append(await self._connection.keys.write(request, deadline))
            except KvShardError as error:
                if not outcomes:
                    raise
                outcomes.append(Written.failed(error, len(request.keys)))
                failed = type(error)(f"not sent, since an earlier part of the batch failed: {error.message}")
        return outcomes

    def scan(
        self,
        *,
        prefix: str | bytes | None = None,
        start: str | bytes | None = None,
        end: str | bytes | None = None,
        limit: int | None = None,
        keys_only: bool = False,
        resume: bytes | None = None,
        **read: Unpack[ReadOverrides],
    ) -> Scan[K, V]:
        """Iterate over keys in byte order, over all shards: `async for item in kv.scan(prefix="user:")`.

        start is included, end is not. limit: at most this many. resume: the `.token` of an earlier scan with the same range;
        it goes on behind the last key given. timeout: how long the scan may go without progress, not how long it may take.
        """
        return Scan(
            self._connection,
            ScanRange.of(self._name, prefix=prefix, start=start, end=end, limit=limit, keys_only=keys_only),
            self._options.overridden(read),
            self._decode_key,
            self._values,
            resume=resume,
            source=self._connection.scan_source,
        )


def _travelling(options: ReadOptions) -> tuple[bytes, bool, float]:
    """Options as they travel, whether a single read with them may share a frame with others, and the timeout."""
    is_gathered = not options.explain_timing and options.consistency == "strong"
    return options.to_wire().SerializeToString(), is_gathered, options.timeout


def _columns_of(items: Items[V]) -> tuple[list[str | bytes], list[V]]:
    if isinstance(items, Mapping):
        return list(items.keys()), list(items.values())
    keys: list[str | bytes] = []
    values: list[V] = []
    for key, value in items:
        keys.append(key)
        values.append(value)
    return keys, values


def _outcomes(column: list[OutcomeT], written: Written) -> list[OutcomeT | KvShardError]:
    outcomes: list[OutcomeT | KvShardError] = list(column)
    for index, error in written.failures.items():
        outcomes[index] = error
    return outcomes
