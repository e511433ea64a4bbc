"""Faults as the client hands them back, and the calls that the `Client` makes for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kvshard.client.connection import Connection
from kvshard.fault_model import FaultRecord
from kvshard.rpc.fault_convert import fault_from_proto, fault_to_proto
from kvshard.v1 import cluster_pb2

FaultKindName = Literal["pause", "delay", "slow", "error", "drop"]
FaultMethodName = Literal["read", "scan", "search", "write"]


@dataclass(frozen=True, slots=True)
class LeafFault:
    """A fault in force at a leaf. left_s: seconds until it ends. hits: requests or pauses that it has happened to."""

    leaf: str
    fault: FaultRecord
    left_s: float
    hits: int


@dataclass(frozen=True, slots=True)
class FaultList:
    """The faults in force, by leaf. silent: leaves that did not answer."""

    faults: tuple[LeafFault, ...]
    silent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClearedFaults:
    """cleared: faults ended, one counted at each leaf that had it.

    silent: leaves that did not answer; their faults end by themselves.
    """

    cleared: int
    silent: tuple[str, ...] = ()


async def inject(connection: Connection, fault: FaultRecord, leaves: Sequence[str], deadline: float) -> list[LeafFault]:
    """Have leaves (none named: all) misbehave."""
    response = await connection.unary(
        lambda stubs: stubs.cluster.InjectFault,
        cluster_pb2.InjectFaultRequest(leaves=leaves, fault=fault_to_proto(fault)),
        deadline=deadline,
        is_repeatable=False,  # It may have been done, and a second one beside it would double its effect.
    )
    return [_leaf_fault(each) for each in response.faults]


async def clear(connection: Connection, leaves: Sequence[str], ids: Sequence[str], deadline: float) -> ClearedFaults:
    """End faults (none named: all) at leaves (none named: all)."""
    response = await connection.unary(
        lambda stubs: stubs.cluster.ClearFaults,
        cluster_pb2.ClearFaultsRequest(leaves=leaves, ids=ids),
        deadline=deadline,
        is_repeatable=True,
    )
    return ClearedFaults(response.cleared, tuple(response.silent))


async def list_all(connection: Connection, deadline: float) -> FaultList:
    """The faults in force."""
    response = await connection.unary(
        lambda stubs: stubs.cluster.ListFaults, cluster_pb2.ListFaultsRequest(), deadline=deadline, is_repeatable=True
    )
    return FaultList(tuple(_leaf_fault(each) for each in response.faults), tuple(response.silent))


def _leaf_fault(message: cluster_pb2.LeafFault) -> LeafFault:
    return LeafFault(message.leaf, fault_from_proto(message.fault), message.left_s, message.hits)
