"""Frames of keys: a read or a write in columns, as a lane carries it, done over the shards.

A frame is the batch of one caller, or (is_each_alone) single operations of many callers that a batcher has put together. Of
those each fails for itself: one that the checks refuse leaves the others as they are, and so does one whose shard is silent.
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from kvshard.clock import Clock
from kvshard.errors import ErrorRecord, InvalidArgument, record_of
from kvshard.lane_messages import KeysRead, KeysReadReply, KeysWrite, KeysWriteReply
from kvshard.model import Refresh
from kvshard.rpc.key_convert import identity_of_encoded, policy_of_encoded, rest_of_read, rest_of_write
from kvshard.scatter.kv import BatchRead, BatchWritten, KeyValueOperations
from kvshard.scatter.ledger import ReadTimes, Timing
from kvshard.scatter.requests import (
    ReadPolicy,
    RequestIdentity,
    WriteColumns,
    check_columns,
    check_condition,
    check_key,
    check_keys,
    check_ttl,
    check_value,
    each_alone,
)

FRAME_ANSWER_BYTES = 16 * 1024 * 1024
"""Values of the answer to one frame: two of the largest. Whoever sends frames asks again for what is left out, so that the
router need not hold the whole of a large answer, several times over, as it does for the unary methods."""

EntryT = TypeVar("EntryT")


@dataclass(slots=True)
class FrameAccount:
    """What becomes known of a frame while it is done. times: the account of a read. failures: of single keys, by index."""

    times: ReadTimes | None = None
    failures: Sequence[tuple[int, ErrorRecord]] = field(default_factory=list)


class KeyFrames:
    """Does frames. Deadlines are those of the legs: who still has to answer somebody keeps a part of the time for that."""

    def __init__(self, operations: KeyValueOperations, clock: Clock) -> None:
        self._operations = operations
        self._clock = clock

    def __repr__(self) -> str:
        return f"KeyFrames({self._operations!r})"

    async def read(self, request: KeysRead, deadline: float, account: FrameAccount | None = None) -> KeysReadReply:
        """Read the keys of a frame. Raises a KvShardError that hits all of it, or the only key where that is alone."""
        account = account or FrameAccount()
        policy = policy_of_encoded(request.options)
        if policy.is_timing_wanted and account.times is None:
            account.times = ReadTimes(self._clock.monotonic())
        if request.is_each_alone and len(request.keys) == 1:
            (key,) = request.keys
            check_key(key)
            one = await self._operations.get(request.collection, key, policy, deadline, account.times)
            rest = b""
            if policy.is_stale or policy.is_timing_wanted:
                rest = rest_of_read((), None, self._timing(policy, account), (one.state,) if policy.is_stale else ())
            return KeysReadReply([one.value], [one.version], [one.expires_at_ms] if one.expires_at_ms else [], rest)
        if request.is_each_alone:
            read = await self._read_alone(request, policy, deadline, account)
        else:
            check_keys(request.keys)
            read = await self._batch_get(request, request.keys, policy, deadline, account)
        account.failures = read.failures
        coverage = None if request.is_each_alone else read.coverage
        states = read.states if policy.is_stale else ()
        rest = rest_of_read(read.failures, coverage, self._timing(policy, account), states)
        return KeysReadReply(read.values, read.versions, read.expires_at_ms, rest)

    def _batch_get(
        self, request: KeysRead, keys: list[bytes], policy: ReadPolicy, deadline: float, account: FrameAccount
    ) -> Coroutine[Any, Any, BatchRead]:
        return self._operations.batch_get(
            request.collection, keys, policy, deadline, account.times, max_bytes=FRAME_ANSWER_BYTES
        )

    async def _read_alone(self, request: KeysRead, policy: ReadPolicy, deadline: float, account: FrameAccount) -> BatchRead:
        keys, policy = request.keys, each_alone(policy)
        faults = _faults_of_keys(keys)
        if not faults:
            return await self._batch_get(request, keys, policy, deadline, account)
        kept = _others(keys, faults)
        sound = [keys[index] for index in kept]
        check_keys(sound)
        read = await self._batch_get(request, sound, policy, deadline, account)
        return replace(
            read,
            values=_placed(read.values, kept, len(keys), None),
            versions=_placed(read.versions, kept, len(keys), 0),
            expires_at_ms=_placed(read.expires_at_ms, kept, len(keys), 0) if read.expires_at_ms else [],
            failures=_all_failures(read.failures, kept, faults),
        )

    async def write(self, request: KeysWrite, deadline: float, account: FrameAccount | None = None) -> KeysWriteReply:
        """Write the keys of a frame; the same errors as from `read`."""
        account = account or FrameAccount()
        columns = WriteColumns(request.keys, request.values, request.ttl_ms, request.conditions)
        identity, wants_watermarks = identity_of_encoded(request.request_id, len(request.keys))
        if request.is_each_alone:
            written = await self._write_alone(request, columns, identity, deadline)
        else:
            check_columns(columns)
            written = await self._operations.batch_write(request.collection, columns, _refresh_of(request), deadline, identity)
        account.failures = written.failures
        watermarks = self._operations.watermarks() if wants_watermarks else b""
        return KeysWriteReply(written.versions, written.existed, rest_of_write(written.failures, watermarks, written.token))

    async def _write_alone(
        self, request: KeysWrite, columns: WriteColumns, identity: RequestIdentity | None, deadline: float
    ) -> BatchWritten:
        collection, refresh, count = request.collection, _refresh_of(request), len(request.keys)
        faults = _faults_of_columns(columns)
        if count == 1:
            if faults:
                raise faults[0]
            method = "Delete" if columns.values[0] is None else "Put"
            return await self._operations.write(method, collection, columns, refresh, deadline, identity)
        if not faults:
            return await self._operations.batch_write(collection, columns, refresh, deadline, identity)
        kept = _others(request.keys, faults)
        sound = _picked(columns, kept)
        check_columns(sound)
        part = _identity_of_part(identity, kept, count)
        written = await self._operations.batch_write(collection, sound, refresh, deadline, part)
        return BatchWritten(
            _placed(written.versions, kept, count, 0),
            _placed(written.existed, kept, count, False),
            _all_failures(written.failures, kept, faults),
            written.seen_from,
        )

    def _timing(self, policy: ReadPolicy, account: FrameAccount) -> Timing | None:
        if not policy.is_timing_wanted or account.times is None:
            return None
        return account.times.timing(self._clock.monotonic())


def _refresh_of(request: KeysWrite) -> Refresh:
    return "wait" if request.refresh and request.next_refresh else request.refresh


def _faults_of_keys(keys: Sequence[bytes]) -> dict[int, InvalidArgument]:
    """What is wrong with single keys. Raises what is wrong with all of them together."""
    try:
        check_keys(keys)
    except InvalidArgument:
        faults = _faults(len(keys), lambda index: check_key(keys[index]))
        if not faults:
            raise
        return faults
    return {}


def _faults_of_columns(columns: WriteColumns) -> dict[int, InvalidArgument]:
    """What is wrong with single operations. Raises what is wrong with all of them together."""
    try:
        check_columns(columns)
    except InvalidArgument as error:
        count = len(columns.keys)
        if len(columns.values) != count or any(
            len(column) not in (0, count) for column in (columns.ttl_ms, columns.conditions)
        ):
            raise
        faults = _faults(count, lambda index: _check_operation(columns, index))
        if not faults:
            raise error from None
        return faults
    return {}


def _check_operation(columns: WriteColumns, index: int) -> None:
    check_key(columns.keys[index])
    check_value(columns.values[index] or b"")
    if columns.ttl_ms:
        check_ttl(columns.ttl_ms[index])
    if columns.conditions:
        check_condition(columns.conditions[index])


def _faults(count: int, check: Callable[[int], None]) -> dict[int, InvalidArgument]:
    faults: dict[int, InvalidArgument] = {}
    for index in range(count):
        try:
            check(index)
        except InvalidArgument as error:
            faults[index] = error
    return faults


def _others(keys: Sequence[bytes], faults: dict[int, InvalidArgument]) -> list[int]:
    return [index for index in range(len(keys)) if index not in faults]


def _placed(column: Sequence[EntryT], indices: Sequence[int], count: int, empty: EntryT) -> list[EntryT]:
    """The column of the whole frame, from that of the operations at these indices."""
    placed = [empty] * count
    for index, entry in zip(indices, column, strict=True):
        placed[index] = entry
    return placed


def _all_failures(
    failures: Sequence[tuple[int, ErrorRecord]], indices: Sequence[int], faults: dict[int, InvalidArgument]
) -> list[tuple[int, ErrorRecord]]:
    """By index: failures of the operations at these indices, and the faults of the others."""
    found = [(indices[place], record) for place, record in failures]
    return sorted([*found, *((index, record_of(fault)) for index, fault in faults.items())], key=lambda each: each[0])


def _picked(columns: WriteColumns, indices: Sequence[int]) -> WriteColumns:
    return WriteColumns(
        keys=[columns.keys[index] for index in indices],
        values=[columns.values[index] for index in indices],
        ttl_ms=[columns.ttl_ms[index] for index in indices] if columns.ttl_ms else [],
        conditions=[columns.conditions[index] for index in indices] if columns.conditions else [],
    )


def _identity_of_part(identity: RequestIdentity | None, indices: Sequence[int], count: int) -> RequestIdentity | None:
    """The id of these operations of a frame, which has so many."""
    if identity is None:
        return None
    if identity.positions:
        return replace(identity, positions=tuple(identity.positions[index] for index in indices))
    return replace(identity, positions=tuple(indices), total=count)
