"""`kvshard whatif` as a user types it."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from kvshard.cli.app import run
from kvshard.cli.whatif import parse_share, read_latency
from kvshard.errors import InvalidArgument
from kvshard.tail.histogram import LogHistogram

QUICK = ["--requests", "150", "--fan-out", "1", "8"]


def test_the_table_has_two_rows_a_fan_out_and_bars_for_the_last(capsys):
    assert run(["whatif", *QUICK, "--pauses", "2%", "--replicas", "2"]) == 0
    shown = capsys.readouterr().out
    assert "2% pauses of 50ms; 2 replicas" in shown
    assert shown.count("none") == 2 + 3
    assert "fan-out 8, logarithmic scale" in shown
    assert "1% at fan-out 1, 8% at fan-out 8" in shown
    assert "█" in shown


def test_json_holds_every_run_and_the_picture_is_a_document(capsys, tmp_path):
    picture = tmp_path / "tail.svg"
    arguments = ["--slow", "5%", "--hedge", "10ms", "--budget", "3%", "--json", "--svg-file", str(picture)]
    assert run(["whatif", *QUICK, *arguments]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [(each["fan_out"], each["arm"]) for each in runs] == [
        (1, "none"),
        (1, "hedge 10ms, adaptive"),
        (8, "none"),
        (8, "hedge 10ms, adaptive"),
    ]
    assert all(0 < each["p50_s"] <= each["p99_s"] for each in runs)
    assert runs[2]["p99_s"] > runs[0]["p99_s"]
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


def test_the_same_seed_prints_the_same(capsys):
    printed = []
    for _ in range(2):
        assert run(["whatif", *QUICK, "--seed", "7", "--json"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_a_measured_histogram_is_read(capsys, tmp_path):
    measured = LogHistogram()
    measured.record(0.002, 99)
    measured.record(0.0625)
    file = tmp_path / "leaf.json"
    file.write_text(json.dumps(measured.as_record()))
    assert run(["whatif", *QUICK, "--from", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "100 measured legs" in shown
    assert "~62.5" in shown


def test_measured_requests_are_read(tmp_path):
    file = tmp_path / "legs.json"
    file.write_text("[[0.001, 0.002], [0.003]]")
    assert read_latency(file).samples == 3


@pytest.mark.parametrize("content", ["", "{}", "[]", "[1]", '{"buckets": 3}', '["x"]', '[["x"]]', "\x00", "[[-1.0]]", "null"])
def test_files_that_hold_no_distribution_are_refused(tmp_path, content):
    file = tmp_path / "leaf.json"
    file.write_text(content)
    with pytest.raises(InvalidArgument) as refused:
        read_latency(file)
    assert refused.value.details.field in ("from", "distribution")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--pauses", "200%"], "200%"),
        (["--pauses", "1%", "--pause-length", "50"], "length of time"),
        (["--distribution", "p50"], "quantile"),
        (["--distribution", "p50=1ms", "--from", "x.json"], "--distribution or --from"),
        (["--from", "nowhere.json"], "nowhere.json"),
        (["--fan-out", "5000"], "fan_out"),
        (["--fan-out", "0"], "fan_out"),
        (["--replicas", "3", "--leaves", "2"], "replicas"),
        (["--hedge", "soon"], "hedging policy"),
        (["--replica-choice", "nearest"], "replica choice"),
        (["--budget", "lots"], "lots"),
        (["--slow", "5%", "--slow-factor", "0.5"], "factor"),
        (["--requests", "0"], "requests"),
        (["--rate", "0"], "rate"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_usage(capsys, arguments, word):
    assert run(["whatif", *arguments]) == 2
    said = capsys.readouterr()
    assert word in said.err
    assert said.out == ""
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), (" 0.5 % ", 0.005), ("100%", 1.0), ("0", 0.0)])
def test_shares(text, share):
    assert parse_share(text, "any") == pytest.approx(share)
