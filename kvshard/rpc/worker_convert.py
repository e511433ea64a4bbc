"""The state of a router's processes: between `kvshard/workers.py` and the messages of cluster.proto."""

from kvshard.rpc.convert import tail_status_from_proto, tail_status_to_proto
from kvshard.v1 import cluster_pb2
from kvshard.workers import WorkerStatus


def worker_status_to_proto(status: WorkerStatus) -> cluster_pb2.WorkerStatus:
    """The state of a process."""
    return cluster_pb2.WorkerStatus(
        worker=status.worker,
        address=status.address,
        error=status.error,
        pid=status.pid,
        uptime_s=status.uptime_s,
        resident_bytes=status.resident_bytes,
        metrics_port=status.metrics_port,
        calls_in_flight=status.calls_in_flight,
        calls_total=status.calls_total,
        refused_total=status.refused_total,
        arrival_wait_ms=status.arrival_wait_ms,
        refused_share=status.refused_share,
        tail=None if status.tail is None else tail_status_to_proto(status.tail),
    )


def worker_status_from_proto(message: cluster_pb2.WorkerStatus) -> WorkerStatus:
    """The state of a process."""
    return WorkerStatus(
        worker=message.worker,
        address=message.address,
        error=message.error,
        pid=message.pid,
        uptime_s=message.uptime_s,
        resident_bytes=message.resident_bytes,
        metrics_port=message.metrics_port,
        calls_in_flight=message.calls_in_flight,
        calls_total=message.calls_total,
        refused_total=message.refused_total,
        arrival_wait_ms=message.arrival_wait_ms,
        refused_share=message.refused_share,
        tail=tail_status_from_proto(message.tail) if message.HasField("tail") else None,
    )
