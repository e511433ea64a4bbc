"""What the router makes of its command line."""

import pytest

from kvshard.errors import InvalidArgument
from kvshard.rpc.lane_port import NO_PORT
from router.__main__ import _group_of, parse

PLACE = ("--coordinator", "sqlite:///c.db", "--listen", "127.0.0.1:7700")


def test_where_lanes_are_taken() -> None:
    assert (parse(PLACE).lane_port, parse(PLACE).advertise_lane_port) == (0, 0)
    assert parse([*PLACE, "--lane-port", "off"]).lane_port == NO_PORT


@pytest.mark.parametrize("port", ["off", "0", "7800"])
def test_workers_are_told(port: str) -> None:
    group = _group_of(parse([*PLACE, "--workers", "3", "--lane-port", port]))
    told = parse([*group.flags, "--listen", "127.0.0.1:7700"])
    assert told.lane_port == parse([*PLACE, "--lane-port", port]).lane_port


def test_workers_are_not_started_on_a_port_that_is_none() -> None:
    with pytest.raises(InvalidArgument, match="--lane-port"):
        _group_of(parse([*PLACE, "--workers", "3", "--lane-port", "70000"]))
