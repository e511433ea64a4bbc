"""A read's account in words and as a table."""

import io

import pytest
from rich.console import Console

from kvshard.cli.timings import LEGS_SHOWN_MAX, attempts_text, blame_text, show_timing, straggler_text, timing_json
from kvshard.client.results import AttemptTiming, LegTiming, Timing

FIRST = AttemptTiming("leaf-1", "first", 0, 5000, "cancelled")
HEDGE = AttemptTiming("leaf-2", "hedge", 3000, 5000, "won")
HEDGED = LegTiming(2, "leaf-2", 2, 5000, 100, 1500, 400, (FIRST, HEDGE))


def leg(shard: int, total_us: int = 1000) -> LegTiming:
    return LegTiming(shard, "leaf-1", 1, total_us, 0, total_us, 0)


def shown(timing: Timing) -> list[str]:
    stream = io.StringIO()
    show_timing(Console(file=stream, width=120), timing)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("straggler", "text"),
    [
        (HEDGED, "shard 2 at leaf-2: other attempts 3.00 ms"),
        (LegTiming(2, "leaf-2", 1, 5000, 3000, 1500, 400), "shard 2 at leaf-2: queue 3.00 ms"),
        (LegTiming(2, "leaf-2", 1, 5000, 100, 1500, 3400), "shard 2 at leaf-2: network 3.40 ms"),
        (LegTiming(2, "leaf-2", 1, 5000, 100, 4500, 400), "shard 2 at leaf-2: work 4.50 ms"),
        (LegTiming(2, "", 3, 90_000, 0, 0), "shard 2: no answer, 90.00 ms"),
    ],
)
def test_what_was_waited_for(straggler: LegTiming, text: str) -> None:
    assert blame_text(Timing((leg(0), straggler), 6000, 10, 2)) == text


def test_nobody_was_asked() -> None:
    timing = Timing((), 60_000, 0, 0)
    assert blame_text(timing) == "-"
    assert shown(timing) == ["60.00 ms in the router, 0.00 ms of it merging; no leaf was asked"]


def test_what_was_waited_for_before_anybody_was_asked() -> None:
    timing = Timing((leg(0), HEDGED), 90_000, 10, 2, before_us=84_000)
    assert blame_text(timing) == "before its legs 84.00 ms"
    first = "90.00 ms in the router, 84.00 ms before its legs, 0.01 ms of it merging; "
    last = "shard 2 at leaf-2: other attempts 3.00 ms"
    assert shown(timing)[0] == f"{first}2 legs, waited for last: {last} of 5.00 ms"
    assert straggler_text(timing) == last
    assert blame_text(Timing((leg(0), HEDGED), 9_000, 10, 2, before_us=4_000)) == "shard 2 at leaf-2: other attempts 3.00 ms"


def test_hedges_are_counted() -> None:
    assert attempts_text(Timing((leg(0), leg(1)), 1, 1, 1)) == "2"
    assert attempts_text(Timing((leg(0), HEDGED), 1, 1, 1)) == "3 (1 hedge)"
    assert attempts_text(Timing((HEDGED, HEDGED), 1, 1, 1)) == "4 (2 hedges)"


def test_of_many_legs_the_slowest_are_shown_in_order() -> None:
    legs = tuple(leg(shard, 1000 + shard) for shard in range(LEGS_SHOWN_MAX + 5))
    lines = shown(Timing(legs, 2000, 10, 44, legs_omitted=7))
    assert [int(line.split()[0]) for line in lines[2:-1]] == list(range(5, LEGS_SHOWN_MAX + 5))
    assert lines[-2].endswith("<- last")
    assert lines[-1] == "12 faster legs are not shown"
    assert lines[0].endswith(f"{LEGS_SHOWN_MAX + 12} legs, waited for last: shard 44 at leaf-1: work 1.04 ms of 1.04 ms")


def test_json_names_everything() -> None:
    row = timing_json(Timing((HEDGED,), 6000, 10, 2))["legs"][0]
    assert (row["network_us"], row["tries"][1]["outcome"]) == (400, "won")
