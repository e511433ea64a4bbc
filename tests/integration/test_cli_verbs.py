"""Every data verb of the command line in process, against a fake router: output, exit codes, errors."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from fakes.router_service import FakeRouter

from kvshard.cli import main
from kvshard.errors import ErrorDetails, Expired, FailedPrecondition, Internal, ResourceExhausted, Unavailable
from kvshard.v1 import types_pb2

Cli = Callable[..., int]


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    with FakeRouter() as fake:
        yield fake


@pytest.fixture
def cli(router: FakeRouter) -> Cli:
    def call(*argv: str) -> int:
        return main([*argv, "--router", router.address])

    return call


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_put_get_delete(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("put", "greeting", "hello") == 0
    assert lines(capsys) == ["version 1"]
    assert cli("get", "greeting") == 0
    assert capsys.readouterr().out == "hello"
    assert cli("get", "greeting", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"key": "greeting", "value": "hello", "version": 1}
    assert cli("delete", "greeting") == 0
    assert cli("get", "greeting") == 1
    assert "not found: greeting" in capsys.readouterr().err
    assert cli("delete", "greeting") == 1
    assert cli("delete", "greeting", "--json") == 1


def test_values_are_bytes_from_a_file_from_stdin_and_to_stdout(
    cli: Cli, tmp_path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    raw = bytes(range(256))
    (tmp_path / "value").write_bytes(raw)
    assert cli("put", "a", "--file", str(tmp_path / "value")) == 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw[::-1])))
    assert cli("put", "b", "-") == 0
    capsysbinary.readouterr()
    assert cli("get", "a") == 0
    assert capsysbinary.readouterr().out == raw
    assert cli("get", "b") == 0
    assert capsysbinary.readouterr().out == raw[::-1]
    assert cli("get", "a", "--json") == 0
    assert "value_base64" in json.loads(capsysbinary.readouterr().out)


def test_conditions_conflict_with_exit_code_1(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("put", "k", "1", "--if-absent", "--ttl", "60") == 0
    assert cli("put", "k", "2", "--if-absent") == 1
    assert cli("put", "k", "2", "--if-version", "7") == 1
    assert "the key has version 1" in capsys.readouterr().err
    assert cli("delete", "k", "--if-version", "7") == 1
    assert cli("put", "k", "2", "--if-version", "1", "--json") == 0
    assert json.loads(lines(capsys)[-1]) == {"key": "k", "version": 2}


def test_keys_and_values_may_begin_with_a_hyphen(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("put", "-k", "-v") == 0
    assert cli("get", "-k") == 0
    assert capsys.readouterr().out.endswith("-v")


@pytest.mark.parametrize(
    "argv",
    [
        ("put", "k"),
        ("put", "", "v"),
        ("put", "k" * 1025, "v"),
        ("put", "k", "v", "--ttl", "-1"),
        ("put", "k", "v", "--ttl", "soon"),
        ("put", "k", "--file", "/does/not/exist"),
        ("put", "k", "v", "--if-version", "1", "--if-absent"),
        ("get",),
        ("get", "k", "--timeout", "0"),
        ("scan", "--limit", "0"),
        ("scan", "--resume", "tampered"),
        ("search", "docs", "x", "--limit", "1001"),
        ("collection", "create", "c", "--schema", "title"),
        ("collection", "create", "c", "--schema", "title=string"),
        ("collection", "drop", "c"),
        ("collection", "burn", "c"),
        ("serch", "docs", "x"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_a_line_on_stderr(
    cli: Cli, capsys: pytest.CaptureFixture[str], argv, monkeypatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert cli(*argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kvshard: ")
    assert "Traceback" not in captured.err


def test_a_misspelt_verb_gets_a_suggestion(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("serch", "docs", "x") == 2
    assert 'Did you mean "search"?' in capsys.readouterr().err


def test_a_value_over_the_limit_is_refused_without_reading_all_of_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(bytes((8 << 20) + 5))))
    assert cli("put", "k", "-") == 2
    assert "8,388,608" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("shards 3 and 4 do not answer", ErrorDetails(maybe_applied=True)),
        Expired("nobody knows any more"),
        ResourceExhausted("the disk is full"),
        Internal("a defect"),
    ],
)
def test_what_the_service_cannot_do_is_exit_code_3(
    cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str], error
) -> None:
    router.fail("Put", error, times=1_000)
    assert cli("put", "k", "v", "--timeout", "0.8") == 3
    assert error.message in capsys.readouterr().err


def test_a_request_that_fits_no_state_of_what_it_names_is_exit_code_2(
    cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script that waits while the service is unavailable (3) would wait for ever."""
    no_schema = FailedPrecondition("collection 'default' has no schema", ErrorDetails(field="collection"))
    router.fail("Search", no_schema)
    assert cli("search", "default", "x") == 2
    assert "has no schema" in capsys.readouterr().err
    router.fail("Search", FailedPrecondition("the cluster has no map yet"))
    assert cli("search", "default", "x") == 3


def test_an_unreachable_router_and_a_deadline_are_exit_code_3(
    cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    router.hold("Put")
    assert cli("put", "k", "v", "--timeout", "0.6") == 3
    assert "not known whether the write took effect" in capsys.readouterr().err
    monkeypatch.setenv("KVSHARD_ROUTER", "127.0.0.1:1")
    assert main(["get", "k", "--timeout", "0.6"]) == 3
    assert "127.0.0.1:1" in capsys.readouterr().err
    assert main(["get", "k", "--router", "nowhere"]) == 2


def test_scan(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(10):
        router.put(b"k%d" % n, b"line\n\t%d" % n)
    router.put(b"\xff", b"\xfe")
    assert cli("scan", "--prefix", "k", "--limit", "4") == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [f"k{n}\tline\\n\\t{n}" for n in range(4)]
    token = captured.err.split("--resume ")[1].strip()
    assert cli("scan", "--prefix", "k", "--keys-only", "--resume", token) == 0
    assert lines(capsys) == [f"k{n}" for n in range(4, 10)]
    assert cli("scan", "--start", "k8", "--json") == 0
    rows = [json.loads(line) for line in lines(capsys)]
    assert rows[0] == {"key": "k8", "value": "line\n\t8", "version": 9}
    assert rows[-1] == {"key_base64": "/w==", "value_base64": "/g==", "version": 11}
    assert cli("scan", "--end", "k1", "--json", "--keys-only") == 0
    assert json.loads(capsys.readouterr().out) == {"key": "k0", "version": 1}
    assert cli("scan", "--collection", "none") == 1


def make_docs(cli: Cli, router: FakeRouter) -> None:
    assert cli("collection", "create", "docs", "--schema", "title=text, tag=keyword") == 0
    for n in range(3):
        document = {"title": f"tail latency {'tail ' * n}".strip(), "tag": "odd" if n % 2 else "even"}
        router.put(f"d{n}".encode(), json.dumps(document).encode(), "docs")


def test_search_for_people(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    make_docs(cli, router)
    capsys.readouterr()
    assert cli("search", "docs", "tail", "--limit", "2", "--facet", "tag", "--timing") == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].split()[:3] == ["1.", "d2", "3.000"]
    assert "title: tail latency tail tail" in captured.out
    facet = captured.out.splitlines()
    assert [line.split() for line in facet[facet.index("tag") + 1 :][:2]] == [["even", "█" * 30, "2"], ["odd", "█" * 15, "1"]]
    assert "2 of 3 hits, all 2 shards answered" in captured.out
    assert "0.90 ms in the router" in captured.out
    token = captured.err.split("--next ")[1].strip()
    assert cli("search", "docs", "tail", "--limit", "2", "--next", token) == 0
    assert "d0" in lines(capsys)[0]


def test_where_the_time_of_a_read_went(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    router.put(b"k", b"v")
    assert cli("get", "k", "--explain") == 0
    captured = capsys.readouterr()
    assert captured.out == "v"
    summary, head, row, story = captured.err.splitlines()
    assert "0.90 ms in the router, 0.20 ms before its legs, 0.01 ms of it merging; 1 leg" in summary
    assert "waited for last: shard 1 at leaf-2: other" in summary
    assert head.split() == [
        "shard",
        "answered",
        "by",
        "total",
        "ms",
        "other",
        "attempts",
        "network",
        "queue",
        "work",
        "attempts",
    ]
    assert row.split() == ["1", "leaf-2", "0.80", "0.30", "0.18", "0.02", "0.30", "2", "<-", "last"]
    assert story == "shard 1: first leaf-1 0.00 to 0.80 cancelled; hedge leaf-2 0.30 to 0.80 won; not hedged: budget"
    assert cli("get", "absent", "--explain") == 1
    assert "shard 1 at leaf-2" in capsys.readouterr().err
    assert cli("get", "k", "--explain", "--json") == 0
    assert json.loads(capsys.readouterr().out)["timing"]["legs"][0]["tries"][1]["kind"] == "hedge"
    assert cli("scan", "--explain") == 0
    assert "shard 1 at leaf-2" in capsys.readouterr().err
    assert cli("scan", "--explain", "--json") == 0
    assert json.loads(lines(capsys)[-1])["timing"]["straggler_shard"] == 1


def test_slow_log(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("slowlog", "--method", "Search", "--reset") == 0
    request = router.requests["ListSlowReads"][-1]
    assert (request.limit, request.method, request.reset) == (20, "Search", True)
    head, row, _ = lines(capsys)
    assert head.split()[:4] == ["ended", "method", "collection", "took"]
    assert "Search  docs" in row
    assert "0.90 ms  DEADLINE_EXCEEDED  shard 1 at leaf-2: other attempts 0.30 ms  2 (1 hedge)" in row
    assert row.rstrip().endswith('title:"tail [latency]"')
    assert cli("slowlog", "--limit", "1", "--explain") == 0
    assert "hedge leaf-2 0.30 to 0.80 won" in capsys.readouterr().out
    assert cli("slowlog", "--json") == 0
    assert [json.loads(line)["code"] for line in lines(capsys)] == ["DEADLINE_EXCEEDED"] * 2
    assert cli("slowlog", "--limit", "0") == 2


def test_search_for_programs(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    make_docs(cli, router)
    capsys.readouterr()
    assert cli("search", "docs", "tail", "--json", "--filter", "odd", "--highlight", "title", "--facet", "tag") == 0
    page = json.loads(capsys.readouterr().out)
    assert [hit["key"] for hit in page["hits"]] == ["d1"]
    assert page["hits"][0]["document"] == {"title": "tail latency tail", "tag": "odd"}
    assert page["hits"][0]["highlights"][0]["spans"] == [[0, 4]]
    assert (page["total"], page["complete"], page["next"]) == (1, True, None)
    assert page["facets"] == {"tag": {"values": {"odd": 1}, "error_bound": 0}}


def test_search_with_aggregations(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    make_docs(cli, router)
    assert cli("search", "docs", "tail", "--limit", "0", "--agg", "t=terms:tag:5/stats:n", "--agg", "missing:tag") == 0
    asked = router.requests["Search"][-1]
    assert [each.name for each in asked.aggregations] == ["t", "missing:tag"]
    assert (asked.limit, asked.aggregations[0].terms.size, asked.aggregations[0].aggregations[0].stats.field) == (0, 5, "n")
    assert cli("search", "docs", "tail", "--agg", "tag") == 2
    assert "is no aggregation" in capsys.readouterr().err


def test_a_malformed_query_is_pointed_at(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    make_docs(cli, router)
    assert cli("search", "docs", "title:(a") == 2
    message, query, caret = capsys.readouterr().err.splitlines()
    assert message == "kvshard: a ) is missing"
    assert query[caret.index("^")] == "("


def test_search_without_all_shards_says_so(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    make_docs(cli, router)
    router.coverage = types_pb2.Coverage(documents_considered=3, documents_total=4, fraction=0.75, legs=2, legs_ok=1)
    failure = router.coverage.failed.add(shard=1, replicas_tried=["leaf-2"]).failure
    failure.reason, failure.message = "UNAVAILABLE", "leaf-2 cannot be reached"
    assert cli("search", "docs", "tail", "--partial") == 0
    captured = capsys.readouterr()
    assert "INCOMPLETE: 1 of 2 shards answered, 3 of 4 documents considered" in captured.out
    assert "shard 1 is missing: leaf-2 cannot be reached" in captured.err
    assert router.requests["Search"][-1].options.on_shortfall == types_pb2.SHORTFALL_POLICY_PARTIAL
    assert cli("search", "docs", "tail", "--json") == 0
    assert json.loads(capsys.readouterr().out)["coverage"]["failed"][0]["replicas_tried"] == ["leaf-2"]
    assert router.requests["Search"][-1].options.on_shortfall == types_pb2.SHORTFALL_POLICY_FAIL


def test_collections(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("collection", "create", "docs", "--schema", "title=text,year=integer") == 0
    assert lines(capsys) == ["collection docs: title=text, year=integer"]
    assert cli("collection", "create", "docs", "--schema", "title=keyword") == 1
    assert cli("collection", "create", "plain", "--json") == 0
    plain = json.loads(lines(capsys)[-1])
    assert (plain["name"], plain["id"], plain["schema"]) == ("plain", 3, {})
    assert cli("collection", "list") == 0
    assert any(line.split() == ["docs", "title=text,", "year=integer", "-", "-"] for line in lines(capsys))
    assert cli("collection", "list", "--json") == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["default", "docs", "plain"]
    assert cli("collection", "drop", "docs", "--yes") == 0
    assert cli("collection", "drop", "docs", "-y") == 1
    assert "docs" not in router.collections


def test_status(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    router.put(b"a", b"123")
    router.down_leaves.add("leaf-2")
    assert cli("status") == 0
    out = capsys.readouterr().out
    assert "down: cannot be reached" in out
    assert "127.0.0.1:7801" in out
    assert "1 documents, 3 B, map version 9" in out
    assert cli("status", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [leaf["is_up"] for leaf in found["leaves"]] == [True, False]
    assert found["leaves"][0]["report"]["pid"] == 4242
    hedging = {"policy": None, "budget": None, "max_attempts": None}
    default = {"name": "default", "id": 1, "schema": {}, "hedging": hedging, "aliases": [], "documents": 1, "bytes": 3}
    default |= {"version": 1, "change": None, "misfits": {}}
    assert found["collections"] == [default]


def test_output_that_nobody_reads_any_more_is_no_error(router: FakeRouter) -> None:
    for n in range(2000):
        router.put(b"key-%04d" % n, bytes(100))
    command = [sys.executable, "-m", "kvshard.cli", "scan", "--router", router.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 0
    assert errors == b""


def test_help_needs_no_grpc() -> None:
    program = "import sys; from kvshard.cli import main; main(['--help']); print('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "search" in done.stdout


def test_importing_kvshard_is_light() -> None:
    program = "import sys, kvshard; print(sorted({'grpc', 'msgspec', 'rich', 'asyncio'} & set(sys.modules))); kvshard.Client"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_shard_list_shows_the_map(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("shard", "list") == 0
    shown = capsys.readouterr().out
    assert "shard" in shown
    assert "leaf-1" in shown
    assert cli("shard", "list", "--json") == 0
    dumped = json.loads(capsys.readouterr().out)
    assert {leaf["id"] for leaf in dumped["leaves"]} >= {"leaf-1"}
    assert dumped["shards"]


def test_stale_reads_tell_how_stale(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    router.put(b"k", b"v")
    router.state = types_pb2.ReadState(shard=3, seqno=9, age_ms=40)
    assert cli("get", "k", "--stale") == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("v", "kvshard: shard 3: through write 9, at most 40 ms old\n")
    assert cli("get", "k", "--stale", "--json") == 0
    assert json.loads(capsys.readouterr().out)["age_ms"] == 40
    router.state = types_pb2.ReadState(shard=3, seqno=9)
    assert cli("scan", "--stale") == 0
    assert "through write 9, of unknown age" in capsys.readouterr().err
    assert [request.options.consistency for request in router.requests["Get"]] == [types_pb2.CONSISTENCY_STALE] * 2
