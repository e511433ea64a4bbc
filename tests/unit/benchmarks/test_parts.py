import subprocess
from importlib.util import find_spec

import pytest

from benchmarks import __main__ as parts


@pytest.mark.parametrize("name", parts.PARTS)
def test_every_part_is_a_program(name):
    module, title = parts.PARTS[name]
    assert title
    found = find_spec(module)
    assert found is not None, f"{module} is gone: take it off the list"
    if found.submodule_search_locations:
        assert find_spec(f"{module}.__main__") is not None


def test_an_unknown_part_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "nothing"])
    with pytest.raises(SystemExit) as ended:
        parts.main()
    assert ended.value.code == 2
    assert "no such part: nothing" in capsys.readouterr().err


def test_a_part_that_misses_a_bound_fails_the_run_but_not_the_others(monkeypatch):
    ran = []
    monkeypatch.setattr("sys.argv", ["benchmarks", "ycsb", "foundation"])
    monkeypatch.setattr(parts, "run_part", lambda name: ran.append(name) or name != "ycsb")
    assert parts.main() == 1
    assert ran == ["ycsb", "foundation"]


def test_a_part_runs_as_a_process_of_its_own(monkeypatch, capsys):
    monkeypatch.setitem(parts.PARTS, "sound", ("platform", "prints and exits with 0"))
    monkeypatch.setitem(parts.PARTS, "broken", ("benchmarks.there_is_no_such_module", "exits with 1"))
    assert parts.run_part("sound")
    assert not parts.run_part("broken")
    assert "broken took" in capsys.readouterr().out


def test_a_part_that_hangs_is_ended(monkeypatch, capsys):
    def run(command, *, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(parts.subprocess, "run", run)
    assert not parts.run_part("ycsb")
    assert "ycsb took longer than 600 s and was ended" in capsys.readouterr().out
