"""What the legs of a batch answered, put together in the order of the request; and what has to be asked for again.

Nearly every batch is answered whole by its first legs: then its columns are joined as they came (`whole_read`,
`whole_written`). Where a leg or a key failed, or a split has moved some keys, the legs are taken in key by key.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat

from kvshard.errors import ErrorDetails, ErrorRecord, Internal, ResourceExhausted, ShardMoved, record_of
from kvshard.model import ShardReadReply, ShardWriteReply
from kvshard.scatter.columns import Division
from kvshard.scatter.leg_result import LegResult
from kvshard.scatter.min_versions import MinVersions
from kvshard.scatter.moved import is_moved


@dataclass(slots=True)
class BatchWritten:
    """Columns parallel to the keys written. failures: (index, error), by index; the others are durable.

    seen_from: the states that hold what was written, of a collection that can be searched.
    """

    versions: list[int]
    existed: list[bool]
    failures: list[tuple[int, ErrorRecord]]
    seen_from: MinVersions | None = None

    @property
    def token(self) -> bytes:
        """What a search must be given to see what was written; empty when there is nothing to see."""
        return b"" if self.seen_from is None else self.seen_from.encode()


@dataclass(slots=True)
class ReadColumns:
    """The answer of a batch read. values: None where the key is absent or failed, versions: 0 likewise.

    expires_at_ms is empty when no key expires. failures: (index, error). size: bytes of the values. left_out: indices of the
    keys for which there was no room, at their leaf or here.
    """

    values: list[bytes | None]
    versions: list[int]
    expires_at_ms: list[int]
    failures: list[tuple[int, ErrorRecord]] = field(default_factory=list)
    size: int = 0
    left_out: list[int] = field(default_factory=list)

    @classmethod
    def empty(cls, count: int) -> "ReadColumns":
        """For so many keys, none of which is known yet."""
        return cls([None] * count, [0] * count, [0] * count)

    def take(self, indices: Sequence[int], leg: LegResult[ShardReadReply], max_bytes: int) -> list[int]:
        """Put a leg's keys at their places; all of them fail when the leg did. Values beyond max_bytes are left out, also of a
        leaf that brings more than it was asked for.

        Returns the indices of the keys that a split has moved.
        """
        failure = _leg_failure(leg, len(indices))
        if failure is not None:
            self.failures.extend((index, failure) for index in indices)
            return []
        reply = leg.reply
        expiries = reply.expires_at_ms or repeat(0, len(indices))
        for index, value, version, expires_at_ms in zip(indices, reply.values, reply.versions, expiries, strict=True):
            if value is None:
                continue
            if self.size + len(value) > max_bytes:
                self.left_out.append(index)
                continue
            self.size += len(value)
            self.values[index], self.versions[index], self.expires_at_ms[index] = value, version, expires_at_ms
        too_large = ResourceExhausted.reason
        self.left_out.extend(indices[place] for place, record in reply.errors.items() if record.reason == too_large)
        others = {place: record for place, record in reply.errors.items() if record.reason != too_large}
        return _note_failures(self.failures, indices, others)

    def fail_left_out(self, max_bytes: int) -> None:
        """There is no room for these keys."""
        text = f"the answer would exceed {max_bytes} bytes; ask for fewer keys at once"
        record = record_of(ResourceExhausted(text, ErrorDetails(field="keys", limit=max_bytes)))
        self.failures.extend((index, record) for index in self.left_out)
        self.left_out.clear()

    def give_up(self, leg: LegResult[ShardReadReply], indices: Sequence[int]) -> LegResult[ShardReadReply]:
        """Keys of a leg could not be found until the deadline: they fail, and so does the leg in their place."""
        error = gone(len(self.values), indices)
        record = record_of(error)
        self.failures.extend((index, record) for index in indices)
        return leg._replace(answer=None, error=error)


def whole_read(
    division: Division,
    parts: Mapping[int, Sequence[bytes]],
    legs: Sequence[LegResult[ShardReadReply]],
    max_bytes: int,
) -> ReadColumns | None:
    """The answer to keys of which every one was read; parts: those of each shard. None when that is not so."""
    values: dict[int, Sequence[bytes | None]] = {}
    versions: dict[int, Sequence[int]] = {}
    expiries: dict[int, Sequence[int]] = {}
    for leg in legs:
        if leg.answer is None:
            return None
        shard, reply = leg.shard, leg.answer.reply
        if reply.errors or not _is_parallel(reply, len(parts[shard])):
            return None
        values[shard], versions[shard] = reply.values, reply.versions
        if reply.expires_at_ms:
            expiries[shard] = reply.expires_at_ms
    joined = division.join(values)
    size = sum(map(len, filter(None, joined)))
    if size > max_bytes:
        return None
    expires_at_ms: list[int] = []
    if expiries:
        expires_at_ms = division.join({shard: expiries.get(shard) or [0] * len(parts[shard]) for shard in values})
    return ReadColumns(joined, division.join(versions), expires_at_ms, size=size)


def whole_written(
    division: Division, parts: Mapping[int, Sequence[int]], legs: Sequence[LegResult[ShardWriteReply]]
) -> BatchWritten | None:
    """What became of keys of which every one was written; parts: the places of each shard's. None when that is not so."""
    replies: dict[int, ShardWriteReply] = {}
    for leg in legs:
        if leg.answer is None:
            return None
        reply = replies[leg.shard] = leg.answer.reply
        if reply.errors or not _is_parallel(reply, len(parts[leg.shard])):
            return None
    return BatchWritten(
        division.join({shard: reply.versions for shard, reply in replies.items()}),
        division.join({shard: reply.existed for shard, reply in replies.items()}),
        [],
    )


def take_written(written: BatchWritten, indices: Sequence[int], leg: LegResult[ShardWriteReply]) -> list[int]:
    """Put what became of a leg's keys at their places. Returns the indices of those that a split has moved."""
    failure = _leg_failure(leg, len(indices))
    if failure is not None:
        written.failures.extend((index, failure) for index in indices)
        return []
    reply = leg.reply
    for index, version, existed in zip(indices, reply.versions, reply.existed, strict=True):
        written.versions[index] = version
        written.existed[index] = existed
    return _note_failures(written.failures, indices, reply.errors)


def gone(count: int, moved: Sequence[int]) -> ShardMoved:
    """The error of keys for which no shard was found until the deadline. count: of the whole batch."""
    return ShardMoved(f"{len(moved)} of {count} keys belong to a shard that a split is just making", ErrorDetails())


def _is_parallel(reply: ShardReadReply | ShardWriteReply, count: int) -> bool:
    """Whether the columns of a reply have as many entries as keys were asked for."""
    if isinstance(reply, ShardWriteReply):
        return len(reply.versions) == len(reply.existed) == count
    return len(reply.versions) == len(reply.values) == count and (not reply.expires_at_ms or len(reply.expires_at_ms) == count)


def _note_failures(
    failures: list[tuple[int, ErrorRecord]], indices: Sequence[int], errors: Mapping[int, ErrorRecord]
) -> list[int]:
    """Note the failures of a leg's keys, but those that a split has moved: their indices are returned."""
    failures.extend((indices[place], record) for place, record in errors.items() if not is_moved(record))
    return [indices[place] for place, record in errors.items() if is_moved(record)]


def _leg_failure(leg: LegResult[ShardReadReply] | LegResult[ShardWriteReply], count: int) -> ErrorRecord | None:
    """Why all keys of a leg failed; None when the leg answered. Columns of a wrong length are a failure."""
    error = leg.error
    if error is None and not _is_parallel(leg.reply, count):
        error = Internal(
            f"shard {leg.shard} answered {len(leg.reply.versions)} keys instead of {count}", ErrorDetails(shards=(leg.shard,))
        )
    return None if error is None else record_of(error)
