"""A worker's state on the wire and back."""

from kvshard.rpc.worker_convert import worker_status_from_proto, worker_status_to_proto
from kvshard.tail.status import LeafHealthStatus, LegKindStatus, TailStatus
from kvshard.workers import WorkerStatus

TAIL = TailStatus(
    "auto", 0.1, 0.05, 3, 100, 2, 20, 5, {"storm": 1}, (LegKindStatus("Get/point", 1, 2.0, 3.0, 4.0),), (LeafHealthStatus("l"),)
)


def test_every_field_travels():
    status = WorkerStatus("router-2", "127.0.0.1:4002", "", 17, 3.5, 80_000_000, 9101, 4, 1_000, 3, 0.25, 0.5, TAIL)
    assert len({getattr(status, name) for name in status.__slots__ if name != "tail"}) == 12, "else a mix-up would not show"
    assert worker_status_from_proto(worker_status_to_proto(status)) == status


def test_one_that_does_not_answer():
    status = WorkerStatus("router-1", "127.0.0.1:4001", "it did not answer in time")
    assert worker_status_from_proto(worker_status_to_proto(status)) == status
