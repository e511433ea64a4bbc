"""What of a batch is sent again: the keys that failed for a while, under the id of the batch.

A shard answers for all its keys of a batch or for none, so what failed for a while are all keys of some shards. Sent again
under the same id, with their places in the batch, they are to these shards the same write: one that was done after all gives
its first result, also when a split has cut its shard meanwhile. The shards that answered are not asked again: there a condition
that failed would be looked at anew.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from kvshard.client.retries import may_retry
from kvshard.errors import KvShardError, in_doubt
from kvshard.lane_messages import KeysWrite


@dataclass(slots=True)
class Written:
    """What became of a batch of writes, in columns parallel to its keys. failures: of keys that failed, by index, ascending."""

    versions: list[int]
    existed: list[bool]
    failures: dict[int, KvShardError]

    @classmethod
    def failed(cls, error: KvShardError, count: int) -> Self:
        """Of so many keys that all failed alike."""
        return cls([0] * count, [False] * count, dict.fromkeys(range(count), error))


def passing_failures(written: Written) -> dict[int, KvShardError]:
    """The keys, by index, that may be sent again, with the reason why they failed."""
    return {index: error for index, error in written.failures.items() if may_retry(error, is_repeatable=True)}


def why_to_pause(failures: Sequence[KvShardError]) -> KvShardError:
    """The one of these errors that decides on the pause: the longest asked for. It is in doubt if one of them is."""
    longest = max(failures, key=lambda error: error.details.retry_after_ms or 0)
    return in_doubt(longest) if any(error.details.maybe_applied for error in failures) else longest


def part_of(request: KeysWrite, indices: Sequence[int]) -> KeysWrite:
    """The batch of only these keys; a column that is not used stays so."""
    return replace(
        request,
        keys=[request.keys[index] for index in indices],
        values=[request.values[index] for index in indices],
        ttl_ms=[request.ttl_ms[index] for index in indices] if request.ttl_ms else [],
        conditions=[request.conditions[index] for index in indices] if request.conditions else [],
    )


def put_in(written: Written, before: dict[int, KvShardError], again: Written) -> None:
    """Put the outcome of the keys that were sent again, which failed before, into that of the whole batch.

    A key of which an earlier sending may have taken effect stays in doubt, unless its shard has evaluated it.
    """
    indices = list(before)
    for place, index in enumerate(indices):
        written.versions[index] = again.versions[place]
        written.existed[index] = again.existed[place]
    failures = {index: error for index, error in written.failures.items() if index not in before}
    for place, error in again.failures.items():
        index = indices[place]
        failures[index] = in_doubt(error) if before[index].details.maybe_applied else error
    written.failures = dict(sorted(failures.items()))
