"""How hedging and reads are set on the command line, and what `status` shows of the tail: in process, against a fake router."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from fakes.router_service import FakeRouter

from kvshard.cli import main
from kvshard.clustermap import Hedging
from kvshard.tail.status import LeafHealthStatus, LegKindStatus, TailStatus
from kvshard.v1 import types_pb2
from kvshard.workers import WorkerStatus

Cli = Callable[..., int]

TAIL = TailStatus(
    policy="auto",
    budget_max=0.1,
    budget=0.05,
    max_attempts=3,
    first_attempts=12_000,
    hedges=120,
    hedges_total=4_000,
    hedges_won_total=1_000,
    refused_total={"storm": 2, "budget": 1_500, "queue": 0},
    kinds=(LegKindStatus("Search/page", 9_000, 2.5, 9.75, 7.5),),
    leaves=(LeafHealthStatus("leaf-1", "ok", 1, 3, 1.0, 6_000), LeafHealthStatus("leaf-2", "probation", 0, 9, 3.2, 40)),
)


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    with FakeRouter() as fake:
        yield fake


@pytest.fixture
def cli(router: FakeRouter) -> Cli:
    def call(*argv: str) -> int:
        return main([*argv, "--router", router.address])

    return call


def test_a_collection_is_made_with_hedging_settings(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--hedge", " Max(p95, 10ms) ", "--hedge-budget", "2.5%", "--hedge-attempts", "2")
    assert cli("collection", "create", "docs", "--schema", "title=text", *given) == 0
    shown = "max(p95,10ms), budget 2.5%, at most 2 attempts"
    assert capsys.readouterr().out == f"collection docs: title=text; hedging: {shown}\n"
    assert router.collections["docs"].hedging == Hedging("max(p95,10ms)", 0.025, 2)
    assert cli("collection", "list") == 0
    assert shown in capsys.readouterr().out
    assert cli("collection", "list", "--json") == 0
    rows = {row["name"]: row["hedging"] for row in json.loads(capsys.readouterr().out)}
    assert rows == {
        "default": {"policy": None, "budget": None, "max_attempts": None},
        "docs": {"policy": "max(p95,10ms)", "budget": 0.025, "max_attempts": 2},
    }


def test_settings_are_changed_one_by_one_and_taken_back(cli: Cli, router: FakeRouter) -> None:
    assert cli("collection", "set", "default", "--hedge", "off") == 0
    assert cli("collection", "set", "default", "--hedge-budget", "0", "--hedge-attempts", "3") == 0
    assert router.collections["default"].hedging == Hedging("off", 0.0, 3)
    assert cli("collection", "set", "default", "--hedge-budget", "default", "--hedge-attempts", "0", "--json") == 0
    assert router.collections["default"].hedging == Hedging("off")
    assert cli("collection", "set", "default", "--hedge", "default") == 0
    assert router.collections["default"].hedging == Hedging()
    assert cli("collection", "set", "nothing", "--hedge", "off") == 1


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (("collection", "set", "docs"), "say what to change"),
        (("collection", "set", "docs", "--hedge", "soon"), "not a hedging policy"),
        (("collection", "set", "docs", "--hedge-budget", "60%"), "0 to 0.5"),
        (("collection", "set", "docs", "--hedge-budget", "auto"), "cannot tune its own budget"),
        (("collection", "create", "docs", "--hedge-attempts", "4"), "1 to 3 attempts"),
        (("get", "k", "--stale", "--consistency", "strong"), "exclude each other"),
        (("get", "k", "--consistency", "eventual"), "consistency"),
        (("scan", "--partial", "--on-shortfall", "fail"), "exclude each other"),
        (("scan", "--min-coverage", "1.5"), "min_coverage"),
        (("search", "docs", "--replica-choice", "nearest"), "replica-choice"),
    ],
)
def test_wrong_settings_are_refused_here(
    cli: Cli, router: FakeRouter, argv: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*argv) == 2
    assert why in capsys.readouterr().err
    assert not router.requests


def test_every_read_takes_the_flags_of_reads(cli: Cli, router: FakeRouter) -> None:
    router.put(b"k", b"v")
    assert cli("collection", "create", "docs", "--schema", "title=text") == 0
    how = ("--hedge", "p99", "--replica-choice", "random", "--consistency", "stale")
    gathered = ("--min-coverage", "0.5", "--on-shortfall", "partial")
    assert cli("get", "k", *how) == 0
    assert cli("scan", *how, *gathered) == 0
    assert cli("search", "docs", *how, *gathered) == 0
    for method in ("Get", "Scan", "Search"):
        options = router.requests[method][-1].options
        assert (options.hedge, options.replica_choice) == ("p99", "random")
        assert options.consistency == types_pb2.CONSISTENCY_STALE
    for method in ("Scan", "Search"):
        options = router.requests[method][-1].options
        assert (options.min_coverage, options.on_shortfall) == (0.5, types_pb2.SHORTFALL_POLICY_PARTIAL)


def test_what_is_not_said_is_left_to_the_collection(cli: Cli, router: FakeRouter) -> None:
    router.put(b"k", b"v")
    assert cli("get", "k") == 0
    assert cli("get", "k", "--hedge", "auto") == 0
    assert [request.options.hedge for request in router.requests["Get"]] == ["", "auto"]


def test_an_incomplete_scan_names_what_is_missing(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    router.put(b"k", b"v")
    router.coverage = types_pb2.Coverage(documents_considered=3, documents_total=4, fraction=0.75, legs=2, legs_ok=1)
    failure = router.coverage.failed.add(shard=1, replicas_tried=["leaf-2", "leaf-3"]).failure
    failure.reason, failure.message = "UNAVAILABLE", "leaf-2 cannot be reached"
    assert cli("scan", "--partial") == 0
    shown = capsys.readouterr().err
    assert "INCOMPLETE: 1 of 2 shards answered, 3 of 4 documents considered" in shown
    assert "shard 1 is missing: leaf-2 cannot be reached (asked: leaf-2, leaf-3)" in shown


def test_status_shows_the_tail(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    router.tail = TAIL
    assert cli("status") == 0
    shown = capsys.readouterr().out
    assert "hedging: auto, budget 5 % of the requests now, 10 % at most, at most 3 attempts a leg" in shown
    assert "last 10 s: 120 hedges, 1 % of 12,000 first attempts" in shown
    assert "since the start: 4,000 hedges, 25 % of them won; refused: budget 1,500, storm 2" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["Search/page", "9,000", "2.50", "9.75", "7.50"] in rows
    assert ["leaf-2", "probation", "40", "0", "9", "3.20"] in rows
    assert cli("status", "--json") == 0
    tail = json.loads(capsys.readouterr().out)["tail"]
    assert (tail["extra"], tail["won"], tail["refused_total"]["budget"]) == (0.01, 0.25, 1_500)
    assert tail["kinds"][0]["delay_ms"] == 7.5


def test_a_router_that_says_nothing_of_the_tail(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("status") == 0
    assert "hedging:" not in capsys.readouterr().out
    assert cli("status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["tail"] is None


def test_status_adds_up_what_several_workers_do_and_names_whose_the_rest_is(
    cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    other = replace(TAIL, first_attempts=4_000, hedges=0, refused_total={"budget": 500}, leaves=TAIL.leaves[:1])
    router.tail = TAIL
    router.workers = [
        WorkerStatus("router-1", "127.0.0.1:4001", "", 17, 90.0, 81_000_000, 9100, 3, 12_345, 7, 1.5, 0.0, TAIL),
        WorkerStatus("router-2", "127.0.0.1:4002", "", 18, 5.0, 80_000_000, 9101, 0, 99, 0, 200.0, 0.25, other),
        WorkerStatus("router-3", "127.0.0.1:4003", "it did not answer in time"),
    ]
    assert cli("status") == 0
    shown = capsys.readouterr().out
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    assert "router-1 127.0.0.1:4001 up 3 12,345 7 1.5 ms 81.0 MB 90 s 17 9100" in rows
    assert "router-2 127.0.0.1:4002 refuses 25% of the calls 0 99 0 200.0 ms 80.0 MB 5 s 18 9101" in rows
    assert "router-3 127.0.0.1:4003 down: it did not answer in time - - - - - - - -" in rows
    assert "last 10 s: 120 hedges, 0.75 % of 16,000 first attempts" in shown
    assert "refused: budget 2,000, storm 2" in shown
    assert "Search/page router-2 9,000 2.50 9.75 7.50" in rows
    assert "leaf-2 router-1 probation 40 0 9 3.20" in rows
    assert cli("status", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["tail"]["first_attempts"], told["tail"]["hedges"]) == (16_000, 120)
    assert [(each["worker"], each["is_up"], each["pid"]) for each in told["workers"]] == [
        ("router-1", True, 17),
        ("router-2", True, 18),
        ("router-3", False, 0),
    ]
    assert [each["tail"] and each["tail"]["first_attempts"] for each in told["workers"]] == [12_000, 4_000, None]


def test_the_slow_log_names_the_worker_and_says_who_is_missing(
    cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    router.workers = [WorkerStatus("router-1")]
    assert cli("slowlog") == 0
    head, row, _ = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["ended", "worker", "method"]
    assert row.split()[1:3] == ["router-1", "Search"]
    router.silent_workers = ["router-2"]
    assert cli("slowlog", "--explain") == 3
    captured = capsys.readouterr()
    assert "Search in docs at router-1, DEADLINE_EXCEEDED" in captured.out
    assert captured.err == "kvshard: no answer from router-2; what they have is missing here\n"
    assert cli("slowlog", "--json") == 3
    assert [json.loads(line)["worker"] for line in capsys.readouterr().out.splitlines()] == ["router-1"] * 2
