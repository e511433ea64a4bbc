"""`kvshard load` against a fake router: formats, bad lines, failures on the way, and going on after a crash."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from fakes.router_service import FakeRouter

from kvshard.cli import main
from kvshard.cli.load_progress import progress_line
from kvshard.errors import ErrorDetails, Expired, Internal, StorageFailed, Unavailable

Load = Callable[..., int]
SCHEMA = "title=text,year=integer"


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    with FakeRouter() as fake:
        yield fake


@pytest.fixture
def load(router: FakeRouter) -> Load:
    def call(*argv: object) -> int:
        return main(["load", *map(str, argv), "--router", router.address])

    return call


@pytest.fixture
def docs(tmp_path: pathlib.Path) -> pathlib.Path:
    return write_docs(tmp_path / "docs.jsonl", range(20))


def write_docs(path: pathlib.Path, numbers) -> pathlib.Path:
    path.write_text("".join(json.dumps({"id": f"d{n:04}", "title": f"doc {n}", "year": n}) + "\n" for n in numbers))
    return path


def rejects_of(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.with_name(path.name + ".rejects.jsonl").read_text().splitlines()]


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_json_lines(load: Load, router: FakeRouter, docs: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load(docs, "--collection", "docs", "--schema", SCHEMA, "--batch-size", 7) == 0
    assert json.loads(router.items["docs"][b"d0003"][0]) == {"id": "d0003", "title": "doc 3", "year": 3}
    assert sorted(len(request.keys) for request in router.requests["BatchWrite"]) == [6, 7, 7]
    assert "loaded 20, rejected 0, " in capsys.readouterr().out
    assert names(docs.parent) == ["docs.jsonl"]


def test_csv_by_the_schema_of_the_collection(load: Load, router: FakeRouter, tmp_path, capsys) -> None:
    assert main(["collection", "create", "docs", "--schema", SCHEMA, "--router", router.address]) == 0
    (tmp_path / "docs.csv").write_text('key,title,year\na,Tail,2013\nb,"x, y",\nc,z,soon\n')
    assert load(tmp_path / "docs.csv", "--collection", "docs", "--key-field", "key", "--json") == 1
    assert {key: json.loads(row[0]) for key, row in router.items["docs"].items()} == {
        b"a": {"key": "a", "title": "Tail", "year": 2013},
        b"b": {"key": "b", "title": "x, y"},
    }
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["loaded"], summary["rejected"]) == (2, 1)
    assert rejects_of(tmp_path / "docs.csv") == [
        {"line": 4, "error": "column year: 'soon' is not an integer", "raw": "c,z,soon"}
    ]


def test_bad_lines_are_kept_in_order_with_number_and_reason(load: Load, docs: pathlib.Path, capsys) -> None:
    lines = docs.read_text().splitlines()
    lines[4] = "{broken"
    lines[5] = '{"id": "wrong", "year": "soon"}'
    lines[12] = '{"title": "no key"}'
    docs.write_text("\n".join(lines))
    assert load(docs, "--collection", "docs", "--schema", SCHEMA, "--batch-size", 10) == 1
    found = rejects_of(docs)
    assert [row["line"] for row in found] == [5, 6, 13]
    assert "document.year must be an integer" in found[1]["error"]
    assert found[1]["raw"] == '{"id": "wrong", "year": "soon"}'
    captured = capsys.readouterr()
    assert "loaded 17, rejected 3 (kept in" in captured.out
    assert load(docs, "--collection", "docs", "--reject", docs.parent / "bad") == 1
    assert (docs.parent / "bad").exists()


def test_stdin(load: Load, router: FakeRouter, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "input").write_bytes(b'{"id":1}\nbad\n')
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "input").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert load("-") == 1
    assert router.items["default"][b"1"][0] == b'{"id":1}'
    assert names(tmp_path) == ["input", "stdin.rejects.jsonl"]


@pytest.mark.parametrize("source", ["-", "/dev/stdin"])
def test_ctrl_c_while_the_input_says_nothing(router: FakeRouter, tmp_path: pathlib.Path, source: str) -> None:
    verb = [sys.executable, "-m", "kvshard.cli", "load", source, "--format", "jsonl", "--batch-size", "2"]
    flags = ["--router", router.address, "--state", "state", "--reject", "rejects"]
    with subprocess.Popen([*verb, *flags], cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as loading:
        try:
            loading.stdin.write(b'{"id":1}\n{"id":2}\n{"id":3}\n')
            loading.stdin.flush()
            while not router.requests["BatchWrite"]:
                assert loading.poll() is None
                time.sleep(0.01)
            loading.send_signal(signal.SIGINT)
            assert loading.wait(timeout=10.0) == 130
        finally:
            loading.kill()
        told = loading.stderr.read().decode()
    assert "stopped behind line" in told
    assert told.endswith("kvshard: interrupted\n")


def test_of_two_lines_with_one_key_the_later_wins(load: Load, router: FakeRouter, tmp_path) -> None:
    (tmp_path / "docs.jsonl").write_text("".join(f'{{"id":"same","n":{n}}}\n' for n in range(50)))
    assert load(tmp_path / "docs.jsonl", "--batch-size", 3) == 0
    assert router.items["default"][b"same"][0] == b'{"id":"same","n":49}'


def test_what_fails_for_a_while_is_written_again(load: Load, router: FakeRouter, docs: pathlib.Path) -> None:
    router.fail("BatchWrite", Unavailable("leaf-1 restarts", ErrorDetails(maybe_applied=True)), times=2)
    assert load(docs, "--batch-size", 5) == 0
    assert len(router.items["default"]) == 20


@pytest.mark.parametrize(
    ("error", "code"), [(Internal("a defect"), 3), (Unavailable("gone", ErrorDetails(maybe_applied=True)), 3)]
)
def test_a_failed_load_goes_on_where_it_stopped(
    load: Load, router: FakeRouter, docs: pathlib.Path, capsys, error, code
) -> None:
    docs.write_text("bad\n" + docs.read_text())
    router.dead_keys[b"d0005"] = error  # By key: batches are under way together and arrive in any order.
    assert load(docs, "--batch-size", 3, "--retry-for", 0.05) == code
    assert names(docs.parent) == ["docs.jsonl", "docs.jsonl.load-state.json", "docs.jsonl.rejects.jsonl"]
    captured = capsys.readouterr()
    assert "stopped behind line 6: 5 loaded, 1 rejected; start the load again" in captured.err
    router.dead_keys.clear()
    router.requests.clear()
    assert load(docs, "--batch-size", 3) == 1
    captured = capsys.readouterr()
    assert "resuming behind line 6: 5 loaded, 1 rejected before" in captured.err
    assert "loaded 20 (5 of them before), rejected 1" in captured.out
    # By key: a batch that the first load gave up may have reached the router after it, as part of what is sent again now.
    assert len({key for request in router.requests["BatchWrite"] for key in request.keys}) == 15
    assert len(router.items["default"]) == 20
    assert [row["line"] for row in rejects_of(docs)] == [1]
    assert names(docs.parent) == ["docs.jsonl", "docs.jsonl.rejects.jsonl"]


def interrupted(load: Load, router: FakeRouter, docs: pathlib.Path) -> None:
    router.dead_keys[b"d0005"] = Internal("a defect")
    assert load(docs, "--batch-size", 5) == 3
    router.dead_keys.clear()
    router.requests.clear()


def loaded_again(router: FakeRouter) -> int:
    """Records of the second load, which are one batch. A small batch of the first may come this late: it was cancelled."""
    return max(len(request.keys) for request in router.requests["BatchWrite"])


def test_a_changed_file_is_loaded_anew(load: Load, router: FakeRouter, docs: pathlib.Path, capsys) -> None:
    interrupted(load, router, docs)
    docs.write_text(docs.read_text().replace("doc 2", "DOC 2"))
    assert load(docs) == 0
    assert "starting anew" in capsys.readouterr().err
    assert loaded_again(router) == 20


def test_a_file_that_grew_is_gone_on_with(load: Load, router: FakeRouter, docs: pathlib.Path) -> None:
    interrupted(load, router, docs)
    write_docs(docs, range(25))
    assert load(docs) == 0
    assert loaded_again(router) == 20


def test_another_collection_or_cluster_is_loaded_anew(load: Load, router: FakeRouter, docs: pathlib.Path) -> None:
    interrupted(load, router, docs)
    assert load(docs, "--collection", "other", "--schema", SCHEMA) == 0
    assert loaded_again(router) == 20
    interrupted(load, router, docs)
    state = docs.with_name("docs.jsonl.load-state.json")
    state.write_text(state.read_text().replace('["a", "b"]', '["c", "d"]'))
    assert load(docs) == 0
    assert loaded_again(router) == 20


def test_a_load_can_be_told_to_start_anew(load: Load, router: FakeRouter, docs: pathlib.Path) -> None:
    interrupted(load, router, docs)
    assert load(docs, "--no-resume") == 0
    assert loaded_again(router) == 20


def test_a_damaged_state_is_no_state(load: Load, router: FakeRouter, docs: pathlib.Path) -> None:
    interrupted(load, router, docs)
    docs.with_name("docs.jsonl.load-state.json").write_text('{"target')
    assert load(docs) == 0
    assert loaded_again(router) == 20


def test_a_repetition_that_came_too_late_is_written_anew(load: Load, router: FakeRouter, docs: pathlib.Path) -> None:
    """A record put twice is the same record: nobody has to read and decide."""
    router.fail("BatchWrite", Expired("nobody knows any more", ErrorDetails(maybe_applied=True)))
    assert load(docs, "--batch-size", 5) == 0
    assert len(router.items["default"]) == 20


def test_a_disk_that_failed_ends_the_load(load: Load, router: FakeRouter, docs: pathlib.Path) -> None:
    router.dead_keys[b"d0007"] = StorageFailed("the disk of leaf-1 is full")
    assert load(docs, "--batch-size", 5) == 3


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (("no-such.jsonl",), 2, "no-such.jsonl"),
        (("docs.jsonl", "--collection", "none"), 1, "--schema creates it"),
        (("docs.xml",), 2, "--format"),
        (("docs.jsonl", "--format", "xml"), 2, "xml"),
        (("docs.jsonl", "--batch-size", "0"), 2, "--batch-size"),
        (("docs.jsonl", "--schema", "title"), 2, 'is written as "title:text" or "title=text"'),
        (("docs.jsonl", "--format", "csv"), 2, "no column"),
    ],
)
def test_wrong_usage(load: Load, docs: pathlib.Path, monkeypatch, capsys, argv, code: int, text: str) -> None:
    monkeypatch.chdir(docs.parent)
    assert load(*argv) == code
    assert text in capsys.readouterr().err


def test_killed_in_the_middle_and_started_again(load: Load, router: FakeRouter, tmp_path, capsys) -> None:
    file = write_docs(tmp_path / "docs.jsonl", range(3000))
    text = file.read_text().splitlines()
    text[10], text[2500] = "bad", "bad"
    file.write_text("\n".join(text))
    router.fail("BatchWrite", Unavailable("busy", ErrorDetails(maybe_applied=True)), after=12, times=10_000)
    arguments = ["load", str(file), "--batch-size", "100", "--router", router.address]
    process = subprocess.Popen([sys.executable, "-m", "kvshard.cli", *arguments], stdout=subprocess.DEVNULL)
    try:
        state = tmp_path / "docs.jsonl.load-state.json"
        give_up_at = time.monotonic() + 20
        while len(router.requests["BatchWrite"]) < 16 or not state.exists():
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    router.recover()
    acknowledged = json.loads(state.read_text())
    assert 0 < acknowledged["loaded"] <= 1200
    with (tmp_path / "docs.jsonl.rejects.jsonl").open("a") as rejects:
        rejects.write('{"written after the state')
    router.requests.clear()
    assert main(arguments) == 1
    assert "resuming behind line" in capsys.readouterr().err
    assert len(router.items["default"]) == 2998
    assert sum(len(request.keys) for request in router.requests["BatchWrite"]) == 2998 - acknowledged["loaded"]
    assert [row["line"] for row in rejects_of(file)] == [11, 2501]


def test_plain_progress() -> None:
    assert progress_line(500, 600, 100, 1100, 2.0) == "500 records, 250/s, 55 %, ETA 2 s"
    assert progress_line(500, 600, 0, None, 2.0) == "500 records, 250/s"
