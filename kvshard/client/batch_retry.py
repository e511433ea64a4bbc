"""What of a batch is sent again: the keys that failed for a while, under the id of the batch.

A shard answers for all its keys of a batch or for none, so what failed for a while are all keys of some shards. Sent again
under the same id, with their places in the batch, they are to these shards the same write: one that was done after all gives
its first result, also when a split has cut its shard meanwhile. The shards that answered are not asked again: there a condition
that failed would be looked at anew.
"""

from collections.abc import Sequence

from kvshard.client.retries import may_retry
from kvshard.client.wire import error_of_failure
from kvshard.errors import KvShardError, in_doubt, record_of
from kvshard.rpc.status import failure_of
from kvshard.v1 import kv_pb2, types_pb2


def passing_failures(answer: kv_pb2.BatchWriteResponse) -> dict[int, KvShardError]:
    """The keys, by index, that may be sent again, with the reason why they failed."""
    failures = ((failure.index, error_of_failure(failure.failure)) for failure in answer.failures)
    return {index: error for index, error in failures if may_retry(error, is_repeatable=True)}


def why_to_pause(failures: Sequence[KvShardError]) -> KvShardError:
    """The one of these errors that decides on the pause: the longest asked for. It is in doubt if one of them is."""
    longest = max(failures, key=lambda error: error.details.retry_after_ms or 0)
    return in_doubt(longest) if any(error.details.maybe_applied for error in failures) else longest


def part_of(request: kv_pb2.BatchWriteRequest, indices: Sequence[int]) -> kv_pb2.BatchWriteRequest:
    """The batch of only these keys; a column that is not used stays so."""
    part = kv_pb2.BatchWriteRequest(collection=request.collection, refresh=request.refresh)
    part.keys.extend(request.keys[index] for index in indices)
    if request.values:
        part.values.extend(request.values[index] for index in indices)
    if request.deletes:
        part.deletes.extend(request.deletes[index] for index in indices)
    if request.ttl_ms:
        part.ttl_ms.extend(request.ttl_ms[index] for index in indices)
    if request.conditions:
        part.conditions.extend(request.conditions[index] for index in indices)
    return part


def nothing_but(error: KvShardError, count: int) -> kv_pb2.BatchWriteResponse:
    """The answer to a batch of that many keys of which all failed alike."""
    failure = failure_of(record_of(error))
    failures = [types_pb2.KeyFailure(index=index, failure=failure) for index in range(count)]
    return kv_pb2.BatchWriteResponse(versions=[0] * count, existed=[False] * count, failures=failures)


def put_in(answer: kv_pb2.BatchWriteResponse, before: dict[int, KvShardError], again: kv_pb2.BatchWriteResponse) -> None:
    """Put the outcome of the keys that were sent again, which failed before, into the answer to the whole batch.

    A key of which an earlier sending may have taken effect stays in doubt, unless its shard has evaluated it.
    """
    indices = list(before)
    for place, index in enumerate(indices):
        answer.versions[index] = again.versions[place]
        answer.existed[index] = again.existed[place]
    failures = {failure.index: failure.failure for failure in answer.failures if failure.index not in before}
    for failure in again.failures:
        index = indices[failure.index]
        error = error_of_failure(failure.failure)
        doubtful = in_doubt(error) if before[index].details.maybe_applied else error
        failures[index] = failure.failure if doubtful is error else failure_of(record_of(doubtful))
    del answer.failures[:]
    answer.failures.extend(types_pb2.KeyFailure(index=index, failure=failure) for index, failure in sorted(failures.items()))
