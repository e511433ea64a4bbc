"""Faults as protobuf messages, and back. Only translation lives here, for the router's service and the clients."""

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.fault_model import ActiveFaultRecord, FaultRecord
from kvshard.faults import DELAY, DROP, ERROR, KINDS, PAUSE, SLOW
from kvshard.v1 import cluster_pb2

_KIND_NUMBERS = {
    PAUSE: cluster_pb2.FAULT_KIND_PAUSE,
    DELAY: cluster_pb2.FAULT_KIND_DELAY,
    SLOW: cluster_pb2.FAULT_KIND_SLOW,
    ERROR: cluster_pb2.FAULT_KIND_ERROR,
    DROP: cluster_pb2.FAULT_KIND_DROP,
}
_KIND_NAMES: dict[int, str] = {int(number): name for name, number in _KIND_NUMBERS.items()}


def fault_to_proto(fault: FaultRecord) -> cluster_pb2.Fault:
    """A fault as a message. Raises InvalidArgument for a kind that does not exist."""
    number = _KIND_NUMBERS.get(fault.kind)
    if number is None:
        text = f"{fault.kind!r} is no kind of fault; there are {', '.join(KINDS)}"
        raise InvalidArgument(text, ErrorDetails(field="fault.kind"))
    return cluster_pb2.Fault(
        id=fault.id,
        kind=number,
        probability=fault.probability,
        delay_ms=fault.delay_s * 1000,
        factor=fault.factor,
        duration_s=fault.duration_s,
        seed=fault.seed,
        methods=fault.methods,
    )


def fault_from_proto(message: cluster_pb2.Fault) -> FaultRecord:
    """The fault in a message; kind is empty when the message names none that is known."""
    return FaultRecord(
        id=message.id,
        kind=_KIND_NAMES.get(message.kind, ""),
        probability=message.probability,
        delay_s=message.delay_ms / 1000,
        factor=message.factor,
        duration_s=message.duration_s,
        seed=message.seed,
        methods=list(message.methods),
    )


def leaf_fault_to_proto(leaf: str, active: ActiveFaultRecord) -> cluster_pb2.LeafFault:
    """A fault in force at a leaf as a message."""
    return cluster_pb2.LeafFault(leaf=leaf, fault=fault_to_proto(active.fault), left_s=active.left_s, hits=active.hits)
