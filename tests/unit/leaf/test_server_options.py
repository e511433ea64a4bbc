"""What a leaf refuses to start with."""

import pathlib
from dataclasses import replace

import pytest

from kvshard.errors import InvalidArgument
from kvshard.limits import CACHE_MAX_MB
from kvshard.rpc.lane_port import NO_PORT, LanePort
from leaf.__main__ import parse
from leaf.server import MIB, LeafOptions

PLACE = ["--id", "leaf-1", "--data-dir", "d", "--coordinator", "sqlite:///c.db"]


def options(advertise: str = "", failure_timeout_s: float = 1.5) -> LeafOptions:
    return LeafOptions("leaf-1", pathlib.Path("d"), "", "127.0.0.1:0", advertise=advertise, failure_timeout_s=failure_timeout_s)


@pytest.mark.parametrize("advertise", ["", "127.0.0.1:7000", "host.example:1", "[::1]:65535"])
def test_addresses_that_others_can_use(advertise: str) -> None:
    options(advertise).check()


@pytest.mark.parametrize("advertise", ["host", ":7000", "host:", "host:0", "host:65536", "host:http"])
def test_addresses_that_nobody_can_use(advertise: str) -> None:
    with pytest.raises(InvalidArgument, match="--advertise") as caught:
        options(advertise).check()
    assert caught.value.details.field == "advertise"


@pytest.mark.parametrize("seconds", [0.0, 0.05, -1.0, 61.0, float("inf"), float("nan")])
def test_failure_timeouts_that_make_no_sense(seconds: float) -> None:
    with pytest.raises(InvalidArgument, match="--failure-timeout"):
        options(failure_timeout_s=seconds).check()


@pytest.mark.parametrize("cache_bytes", [-1, CACHE_MAX_MB * MIB + 1])
def test_caches_that_make_no_sense(cache_bytes: int) -> None:
    with pytest.raises(InvalidArgument, match="--cache-mb must be 0 to 65536") as caught:
        replace(options(), cache_bytes=cache_bytes).check()
    assert (caught.value.details.field, caught.value.details.limit) == ("cache-mb", 65_536)


@pytest.mark.parametrize("cache_bytes", [0, 1, CACHE_MAX_MB * MIB])
def test_caches_that_may_be_had(cache_bytes: int) -> None:
    replace(options(), cache_bytes=cache_bytes).check()


def test_the_command_line() -> None:
    parsed = parse([*PLACE, "--advertise", "h:1", "--failure-timeout", "0.5", "--allow-faults", "--cache-mb", "0"])
    assert (parsed.advertise, parsed.failure_timeout, parsed.allow_faults, parsed.cache_mb) == ("h:1", 0.5, True, 0)
    parsed = parse(PLACE)
    assert (parsed.advertise, parsed.failure_timeout, parsed.allow_faults, parsed.cache_mb) == ("", 1.5, False, 64)


def test_where_lanes_are_taken() -> None:
    parsed = parse([*PLACE, "--lane-port", "7800", "--advertise-lane-port", "9800"])
    assert (parsed.lane_port, parsed.advertise_lane_port) == (7800, 9800)
    assert parse([*PLACE, "--lane-port", "off"]).lane_port == NO_PORT
    assert (parse(PLACE).lane_port, parse(PLACE).advertise_lane_port) == (0, 0)
    with pytest.raises(InvalidArgument, match="--lane-port"):
        replace(options(), lane_port=LanePort(65_536)).check()
    with pytest.raises(SystemExit, match="2"):
        parse([*PLACE, "--lane-port", "on"])


@pytest.mark.parametrize("seconds", [0.0, 0.04, 601.0, float("inf"), float("nan")])
def test_refresh_intervals_that_make_no_sense(seconds: float) -> None:
    with pytest.raises(InvalidArgument, match=r"--refresh-interval must be 0.05 to 600 seconds"):
        replace(options(), refresh_interval_s=seconds).check()


def test_the_refresh_interval_of_the_command_line() -> None:
    assert parse(PLACE).refresh_interval == 0.5
    assert parse([*PLACE, "--refresh-interval", "0.2"]).refresh_interval == 0.2
