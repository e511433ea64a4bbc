import xml.etree.ElementTree as ElementTree

import pytest

pytest.importorskip("matplotlib", reason="drawn with the bench extra: make bench installs it")

from benchmarks import drawing, report
from benchmarks.measured import Absent, Block, Comparison, Measured, Usage
from benchmarks.picture import comparisons


def compared(title, rates):
    arms = {}
    for name, rate in rates.items():
        arms[name] = Measured(name, processes={"client": 1, "router": 1})
        arms[name].blocks += [Block(rate, 1.0), Block(2 * rate, 1.0)]
        arms[name].usages += [Usage(1.0, {"client": 0.5, "router": 0.4})] * 2
    return Comparison(title, "keys/s", arms, [Absent("redis", "not there")])


def test_the_picture_names_every_arm_and_its_rate():
    svg = drawing.standalone(
        comparisons([compared("gets", {"kvshard": 1000, "echo": 3000}), compared("puts", {"kvshard": 10})])
    )
    ElementTree.fromstring(svg)
    for text in ("kvshard", "echo", "1,500", "4,500", "keys/s: median of 2 blocks", "client", "router"):
        assert text in svg


def test_the_picture_is_written_beside_the_json(tmp_path, capsys):
    report.write({"data": "some"}, {"gets": compared("gets", {"kvshard": 10})}, tmp_path / "fast-path")
    assert {path.name for path in tmp_path.iterdir()} == {"fast-path.json", "fast-path.svg"}
    assert "fast-path.svg" in capsys.readouterr().out
