import json

from benchmarks import report
from benchmarks.measured import Absent, Block, Comparison, Measured, Usage


def compared(others=0.0):
    arm = Measured("kvshard", "8 shards", {"client": 1, "leaves": 2}, [Block(1_000, 1.0)])
    arm.usages.append(Usage(1.0, {"client": 0.5, "leaves": 1.0}, others))
    return Comparison("gets", "gets/s", {"kvshard": arm}, [Absent("redis", "no redis-server on PATH")])


def test_a_comparison_shows_rates_time_and_who_is_missing(capsys):
    report.show_comparison(compared())
    printed = capsys.readouterr().out
    for text in ("kvshard (8 shards)", "1,000", "1,500.00 = client 500.00 + leaves 1,000.00", "leaves 0.50", "missing"):
        assert text in printed
    assert "no redis-server on PATH" in printed
    assert "note:" not in printed


def test_a_machine_that_others_use_is_told(capsys):
    report.show_comparison(compared(others=0.5))
    assert "other processes kept 0.50 cores busy" in capsys.readouterr().out


def test_calls_that_were_shed_are_told(capsys):
    found = compared()
    found.arms["kvshard"].blocks.append(Block(1_000, 1.0, refused=7))
    report.show_comparison(found)
    assert "7 calls refused" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_json_is_written_even_if_nothing_can_be_drawn(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    target = tmp_path / "new" / "fast-path"
    report.write({"data": "some"}, {"gets": compared()}, target)
    record = json.loads(target.with_suffix(".json").read_text())
    assert record["setting"] == {"data": "some"}
    assert record["comparisons"]["gets"]["arms"][0]["rate"] == 1_000
    assert "matplotlib is not installed" in capsys.readouterr().out
