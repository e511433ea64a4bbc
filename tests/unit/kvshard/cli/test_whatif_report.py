"""Tables, bars and curves of the what-if model."""

import xml.etree.ElementTree as ElementTree

import pytest

from kvshard.cli.whatif_report import (
    Pair,
    comparison_rows,
    contradiction_text,
    notes,
    percentile_text,
    picture,
    svg,
    table_rows,
    theory_text,
    time_text,
)
from kvshard.tail.histogram import LogHistogram
from kvshard.tail.whatif.prediction import Prediction
from kvshard.tail.whatif.scenario import Setting
from kvshard.tail.whatif.tail_at_scale import Comparison


def prediction(arm, seconds, fan_out=8, samples=None, refused=None):
    gathered = LogHistogram()
    for each in seconds:
        gathered.record(each)
    count = len(seconds)
    return Prediction(
        scenario="any",
        arm=arm,
        setting=Setting(shards=fan_out, fan_out=fan_out),
        gathered=gathered,
        legs=gathered,
        first_attempts=gathered,
        requests=count,
        failures=0,
        firsts=count * fan_out,
        hedges=count * fan_out // 50,
        wasted=0,
        refused=refused or {},
        samples=samples,
    )


def pair(fan_out=8, count=1_000):
    slow = [0.010 + index / count for index in range(count)]
    fast = [0.010 + index / count / 10 for index in range(count)]
    return Pair(prediction("none", slow, fan_out), prediction("all", fast, fan_out, refused={"budget": 3, "storm": 1_200}))


@pytest.mark.parametrize(("seconds", "text"), [(0.00123, "1.23"), (0.0456, "45.6"), (0.1234, "123"), (2.0, "2000")])
def test_times_have_three_digits(seconds, text):
    assert time_text(seconds) == text


def test_a_percentile_says_on_how_little_it_stands():
    many, few = prediction("none", [2**-7] * 10_000), prediction("none", [2**-7] * 500)
    assert percentile_text(many, 0.999) == "7.81"
    assert percentile_text(few, 0.99) == "~7.81"
    assert percentile_text(few, 0.999) == "-"
    assert percentile_text(prediction("none", [2**-7] * 10_000, samples=100), 0.99) == "~7.81"


def test_rows():
    first, second = table_rows([pair()])
    assert first[:2] == ("8", "none")
    assert second[:2] == ("", "all")
    assert first[-3:] == ("2.00%", "0", "1,000")
    assert len(first) == len(second) == 10


def test_notes_name_refusals_most_frequent_first_and_explain_the_mark():
    lines = notes([pair(count=100)])
    assert lines[0].startswith("~ fewer than 10 requests")
    assert lines[1] == "Hedges refused at fan-out 8: storm 1,200, budget 3."
    assert "63% at fan-out 100" in theory_text([pair(100)])


def test_bars_are_longer_where_the_latency_is():
    lines = picture(pair())
    widths = [line.count("█") for line in lines[1:]]
    assert len(lines) == 1 + 2 * 4
    assert widths[0] > widths[1]
    assert widths[-2] == max(widths)


def test_the_svg_is_well_formed_and_has_a_curve_for_each_run():
    document = svg([pair(8), pair(100)], "leaf <1 ms & more")
    root = ElementTree.fromstring(document)
    curves = [each for each in root.iter() if each.tag.endswith("polyline")]
    assert len(curves) == 4
    assert [bool(each.get("stroke-dasharray")) for each in curves] == [True, False, True, False]
    assert "leaf <1 ms & more" in "".join(root.itertext())
    height = float(root.get("height", "0"))
    assert all(
        0 <= float(y) <= height for each in curves for x, y in (point.split(",") for point in each.get("points").split())
    )


def test_comparisons():
    rows = comparison_rows([Comparison("p99", 0.1, 0.2, "s", "how"), Comparison("share", 0.5, 0.5, "")])
    assert rows == [("p99", "100 ms", "200 ms", "+100 %", "how"), ("share", "50.0%", "50.0%", "0 %", "")]
    assert "20%" in contradiction_text()
