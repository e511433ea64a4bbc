"""`kvshard fault ...`, in process against a fake router."""

import json
from collections.abc import Callable, Iterator

import pytest
from fakes.router_service import FakeRouter

from kvshard.cli import main
from kvshard.errors import FailedPrecondition, LeafNotFound

Cli = Callable[..., int]


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    with FakeRouter() as fake:
        yield fake


@pytest.fixture
def cli(router: FakeRouter) -> Cli:
    return lambda *argv: main([*argv, "--router", router.address])


@pytest.mark.parametrize(
    ("argv", "kind", "fields"),
    [
        (["slow"], "slow", {"factor": 10.0, "probability": 1.0}),
        (["slow", "20", "--probability", "5%"], "slow", {"factor": 20.0, "probability": 0.05}),
        (["slow", "--factor", "3", "--method", "search", "--method", "read"], "slow", {"methods": ["search", "read"]}),
        (["pause", "--share", "0.5%", "--length", "50ms"], "pause", {"probability": 0.005, "delay_s": 0.05}),
        (["pause", "--probability", "1"], "pause", {"probability": 1.0, "delay_s": 0.05}),
        (["delay", "20ms", "--for", "5m"], "delay", {"delay_s": 0.02, "duration_s": 300.0}),
        (["delay", "--delay", "0.5", "--share", "1%"], "delay", {"delay_s": 0.5, "probability": 0.01}),
        (["error", "--seed", "42"], "error", {"seed": 42, "duration_s": 60.0}),
        (["drop", "--for", "2", "--method", "write"], "drop", {"duration_s": 2.0, "methods": ["write"]}),
    ],
)
def test_each_kind_arrives(cli: Cli, router: FakeRouter, argv: list[str], kind: str, fields: dict[str, object]) -> None:
    assert cli("fault", *argv) == 0
    assert [leaf for leaf, _ in router.faults] == ["leaf-1", "leaf-2"]
    fault = router.faults[0][1].fault
    assert fault.kind == kind
    assert {name: getattr(fault, name) for name in fields} == fields


def test_what_is_shown(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("fault", "list") == 0
    assert capsys.readouterr().out == "no fault is in force\n"
    assert cli("fault", "pause", "--leaf", "leaf-2", "--share", "2%") == 0
    cli("fault", "pause", "--leaf", "leaf-1")
    cli("fault", "slow", "--leaf", "leaf-1", "--share", "5%", "--method", "read", "--for", "90")
    capsys.readouterr()
    assert cli("fault", "list") == 0
    rows = [" ".join(row.split()) for row in capsys.readouterr().out.splitlines()]
    assert rows == [
        "leaf fault what happens to ends in hits seed",
        "leaf-2 pause-0 pauses of 50 ms 2 % of the time 60.0 s 0 4711",
        "leaf-1 pause-1 stopped everything 60.0 s 0 4711",
        "leaf-1 slow-2 10 times as long 5 % of read 90.0 s 0 4711",
    ]
    assert cli("fault", "list", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["silent"] == []
    assert shown["faults"][0] == {
        "leaf": "leaf-2",
        "id": "pause-0",
        "kind": "pause",
        "probability": 0.02,
        "delay_s": 0.05,
        "factor": 0.0,
        "duration_s": 60.0,
        "seed": 4711,
        "methods": [],
        "left_s": 60.0,
        "hits": 0,
    }


def test_clear(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("error", "drop"):
        assert cli("fault", kind) == 0
    capsys.readouterr()
    assert cli("fault", "clear", "error-0", "--leaf", "leaf-1") == 0
    assert capsys.readouterr().out == "1 fault ended\n"
    assert cli("fault", "clear", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"cleared": 3, "silent": []}
    assert cli("fault", "clear") == 0
    assert capsys.readouterr().out == "no fault was in force\n"
    router.down_leaves = {"leaf-2"}
    assert cli("fault", "clear") == 3
    assert "leaf-2" in capsys.readouterr().err
    assert cli("fault", "list") == 3


@pytest.mark.parametrize(
    "argv",
    [
        ["slow", "1"],
        ["slow", "--share", "lots"],
        ["slow", "--share", "150%"],
        ["delay"],
        ["delay", "soon"],
        ["error", "--for", "2h"],
        ["error", "--method", "ping"],
        ["burn"],
    ],
)
def test_wrong_ones_are_usage_errors(cli: Cli, router: FakeRouter, argv: list[str]) -> None:
    assert cli("fault", *argv) == 2
    assert not router.faults


def test_refusals_have_their_exit_codes(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    router.fail("InjectFault", FailedPrecondition("leaf leaf-1 takes no faults; start it with --allow-faults"))
    assert cli("fault", "drop") == 3
    assert "--allow-faults" in capsys.readouterr().err
    router.fail("InjectFault", LeafNotFound("there is no leaf 'x'"))
    assert cli("fault", "drop", "--leaf", "x") == 1
