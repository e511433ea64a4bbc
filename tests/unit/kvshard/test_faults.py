"""What is a fault, and what is refused with which field."""

from dataclasses import replace

import pytest

from kvshard.errors import InvalidArgument
from kvshard.fault_model import FaultRecord
from kvshard.faults import check_fault
from kvshard.rpc.fault_convert import fault_from_proto, fault_to_proto

GOOD = [
    FaultRecord("", "pause", 0.005, delay_s=0.05),
    FaultRecord("", "pause", 1.0),
    FaultRecord("", "delay", 1.0, delay_s=60.0, duration_s=3600.0, methods=["read", "write"]),
    FaultRecord("", "slow", 0.05, factor=10.0, seed=2**64 - 1),
    FaultRecord("", "error", 0.5),
    FaultRecord("", "drop", 1e-6),
]
PAUSE, _, DELAY, SLOW, ERROR, _ = GOOD


@pytest.mark.parametrize("fault", GOOD)
def test_good_ones_pass_and_survive_the_wire(fault: FaultRecord) -> None:
    check_fault(fault)
    assert fault_from_proto(fault_to_proto(fault)) == fault


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        (replace(ERROR, kind=""), "kind"),
        (replace(ERROR, kind="burn"), "kind"),
        (replace(ERROR, probability=0.0), "probability"),
        (replace(ERROR, probability=1.5), "probability"),
        (replace(ERROR, probability=float("nan")), "probability"),
        (replace(ERROR, duration_s=0.0), "duration_s"),
        (replace(ERROR, duration_s=3601.0), "duration_s"),
        (replace(ERROR, duration_s=float("inf")), "duration_s"),
        (replace(ERROR, seed=-1), "seed"),
        (replace(ERROR, delay_s=0.1), "delay_ms"),
        (replace(ERROR, factor=2.0), "factor"),
        (replace(ERROR, methods=["ping"]), "methods"),
        (replace(PAUSE, delay_s=0.0), "delay_ms"),
        (replace(PAUSE, methods=["read"]), "methods"),
        (replace(DELAY, delay_s=0.0), "delay_ms"),
        (replace(DELAY, delay_s=61.0), "delay_ms"),
        (replace(SLOW, factor=1.0), "factor"),
        (replace(SLOW, factor=1e4), "factor"),
    ],
)
def test_wrong_ones_are_refused_by_field(fault: FaultRecord, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_fault(fault)
    assert caught.value.details.field == f"fault.{field}"


def test_an_unknown_kind_has_no_message() -> None:
    with pytest.raises(InvalidArgument, match="burn"):
        fault_to_proto(replace(ERROR, kind="burn"))
