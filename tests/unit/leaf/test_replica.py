import pytest

from kvshard.errors import KvShardError, NotReady, ResourceExhausted, StaleEpoch, StorageFailed
from kvshard.model import ABSENT, NEVER
from leaf.operations import Barrier, DropCollection, Entry, WriteOperation
from leaf.replica import (
    IN_FLIGHT_MAX_BYTES,
    IN_FLIGHT_MAX_ENTRIES,
    Abandon,
    Acknowledge,
    Append,
    Applied,
    Apply,
    Event,
    Fail,
    Latest,
    Persisted,
    Propose,
    Replica,
    Role,
    TakeEpoch,
    storage_failed,
)


def put(*keys: bytes, collection_id: int = 1) -> WriteOperation:
    return WriteOperation(collection_id, list(keys), [b"v"] * len(keys))


def step(replica: Replica, event: Event) -> list[object]:
    actions = replica.step(event, now=0.0)
    replica.check_invariants()
    return list(actions)


def primary(applied: int = 0, epoch: int = 1) -> Replica:
    replica = Replica(0, applied)
    step(replica, TakeEpoch(epoch))
    step(replica, Persisted(applied + 1))
    step(replica, Applied(applied + 1))
    assert replica.role is Role.PRIMARY
    return replica


def test_it_serves_only_once_its_epochs_barrier_is_applied() -> None:
    replica = Replica(4, 10)
    with pytest.raises(NotReady):
        replica.check_epoch(0)
    assert step(replica, TakeEpoch(3)) == [Append(Entry(3, 11, Barrier()))]
    with pytest.raises(NotReady):
        replica.check_epoch(3)
    assert isinstance(replica.refusal(0), NotReady)
    assert step(replica, Persisted(11)) == [Apply((Entry(3, 11, Barrier()),))]
    assert step(replica, Applied(11)) == [Acknowledge(11)]
    replica.check_epoch(3)
    assert replica.refusal(0) is None
    assert repr(replica) == "Replica(shard=4, primary, epoch=3, last=11, committed=11, applied=11)"


@pytest.mark.parametrize("epoch", [2, 4])
def test_requests_of_another_epoch_are_stale(epoch: int) -> None:
    with pytest.raises(StaleEpoch):
        primary(epoch=3).check_epoch(epoch)


def test_writes_go_through_append_apply_acknowledge() -> None:
    replica = primary()
    first, second = put(b"a"), put(b"b")
    assert step(replica, Propose(first, 2)) == [Append(Entry(1, 2, first))]
    assert step(replica, Propose(second, 2)) == [Append(Entry(1, 3, second))]
    assert (replica.last, replica.committed, replica.applied) == (3, 1, 1)
    assert step(replica, Persisted(3)) == [Apply((Entry(1, 2, first), Entry(1, 3, second)))]
    assert (replica.last, replica.committed, replica.applied) == (3, 3, 1)
    assert step(replica, Applied(3)) == [Acknowledge(3)]
    assert replica.in_flight_bytes == 0


def test_pending_keys_show_the_newest_entry_in_flight() -> None:
    replica = primary()
    step(replica, Propose(WriteOperation(1, [b"a", b"b"], [b"1", b"1"], [0, 99]), 4))
    step(replica, Propose(WriteOperation(1, [b"a"], [None]), 1))
    step(replica, Propose(put(b"a", collection_id=2), 2))
    assert replica.pending(1) == {b"a": Latest(3, ABSENT, NEVER), b"b": Latest(2, 2, 99)}
    assert replica.pending(2) == {b"a": Latest(4, 4, NEVER)}
    step(replica, Persisted(2))
    step(replica, Applied(2))
    assert replica.pending(1) == {b"a": Latest(3, ABSENT, NEVER)}
    step(replica, Persisted(4))
    step(replica, Applied(4))
    assert replica.pending(1) == replica.pending(2) == {}


def test_in_flight_bytes_and_entries_are_bounded() -> None:
    replica = primary()
    assert replica.refusal(IN_FLIGHT_MAX_BYTES * 2) is None
    step(replica, Propose(put(b"a"), IN_FLIGHT_MAX_BYTES))
    assert isinstance(replica.refusal(1), ResourceExhausted)
    many = primary()
    for _ in range(IN_FLIGHT_MAX_ENTRIES):
        many.step(Propose(DropCollection(9), 0), 0.0)
    assert isinstance(many.refusal(0), ResourceExhausted)


def test_a_newer_epoch_while_serving_needs_a_new_barrier() -> None:
    replica = primary()
    step(replica, Propose(put(b"a"), 2))
    assert step(replica, TakeEpoch(5)) == [Append(Entry(5, 3, Barrier()))]
    step(replica, Persisted(2))
    step(replica, Applied(2))
    with pytest.raises(NotReady):
        replica.check_epoch(5)
    step(replica, Persisted(3))
    step(replica, Applied(3))
    replica.check_epoch(5)
    assert step(replica, TakeEpoch(5)) == []
    assert step(replica, TakeEpoch(4)) == []


def test_a_failed_storage_stops_writes_and_not_reads() -> None:
    replica = primary()
    step(replica, Propose(put(b"a"), 2))
    error = storage_failed(0, "No space left on device")
    assert step(replica, Fail(error)) == [Abandon(error)]
    assert step(replica, Fail(error)) == []
    assert replica.refusal(0) is error
    replica.check_epoch(1)
    with pytest.raises(StaleEpoch):
        replica.check_epoch(2)
    assert step(replica, Persisted(2)) == []
    assert step(replica, TakeEpoch(9)) == []


def test_a_replica_that_never_opened_answers_with_the_reason() -> None:
    replica = Replica(0, 0)
    error: KvShardError = StorageFailed("gone")
    step(replica, Fail(error))
    with pytest.raises(StorageFailed):
        replica.check_epoch(0)


def test_a_replica_that_fails_before_its_barrier_is_committed_serves_no_reads() -> None:
    replica = primary(epoch=1)
    step(replica, TakeEpoch(2))
    step(replica, Fail(storage_failed(0, "Input/output error")))
    with pytest.raises(StorageFailed):
        replica.check_epoch(2)
    served = primary(epoch=1)
    step(served, Fail(storage_failed(0, "Input/output error")))
    served.check_epoch(1)
