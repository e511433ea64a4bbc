import json

import pytest

from benchmarks.measured import Absent, Block, Comparison, Measured, Usage, ratio


def arm(name, rates, seconds=1.0, used=None, processes=None):
    made = Measured(name, processes=processes or {"client": 1})
    for rate in rates:
        made.blocks.append(Block(int(rate * seconds), seconds, {"read": [0.001, 0.003]}))
        made.usages.append(Usage(seconds, used or {"client": 0.5}, others=0.1))
    return made


def test_the_rate_is_the_median_blocks():
    assert arm("one", [100, 900, 120]).rate == 120


def test_an_arm_without_blocks_has_no_rate():
    with pytest.raises(ValueError, match="one was not measured"):
        _ = arm("one", []).rate


def test_processor_time_is_that_of_all_operations_together():
    made = arm("one", [1_000, 3_000], used={"client": 0.5, "leaves": 1.5}, processes={"client": 1, "leaves": 2})
    assert made.processor_us() == pytest.approx({"client": 250.0, "leaves": 750.0})
    # Two leaves, each busy for three quarters of a core.
    assert made.cores() == pytest.approx({"client": 0.5, "leaves": 0.75})
    assert made.busiest == "leaves 0.75 cores"
    assert made.others == pytest.approx(0.1)


def test_a_ratio_compares_the_blocks_of_one_turn():
    # The machine was half as fast in the last turn: of the medians alone the ratio would be 3.
    found = ratio(arm("one", [200, 300, 100]), arm("other", [100, 100, 50]))
    assert found.value == 2.0
    assert (found.low, found.high) == (2.0, 3.0)
    assert str(found) == "turns 2 to 3"


def test_arms_without_turns_have_no_ratio():
    with pytest.raises(ValueError, match="were not measured"):
        ratio(arm("one", []), arm("other", []))


def test_latencies_of_all_blocks_count():
    made = arm("one", [10, 10])
    assert made.kinds == ["read"]
    assert made.latencies("read") == [0.001, 0.003, 0.001, 0.003]
    assert made.latencies("write") == []


def test_a_comparison_says_why_an_arm_is_missing():
    compared = Comparison("gets", "gets/s", {"one": arm("one", [1])}, [Absent("redis", "not there")])
    assert compared.why_absent("one") == ""
    assert compared.why_absent("one", "redis") == "redis: not there"
    with pytest.raises(KeyError):
        compared.why_absent("nobody")


def test_a_comparison_as_a_record_is_plain_data():
    compared = Comparison("gets", "gets/s", {"one": arm("one", [10, 20])}, [Absent("redis", "gone")], {"redis": {"4": 1.0}})
    record = json.loads(json.dumps(compared.as_record()))
    assert record["arms"][0]["rates"] == [10.0, 20.0]
    assert record["arms"][0]["latency_ms"]["read"] == {"p50": 3.0, "p99": 3.0, "n": 4}
    assert record["absent"] == {"redis": "gone"}
    assert record["sweeps"] == {"redis": {"4": 1.0}}
