import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvshard import hashing
from kvshard.query import prepare
from leaf.text_index import TextIndex
from leaf.text_search import IndexView


def slot_of(key: bytes) -> int:
    return hashing.slot(key, 0)


SCHEMA = {
    "title": "text",
    "body": "text",
    "tag": "keyword",
    "n": "integer",
    "x": "float",
    "on": "boolean",
    "at": "date",
}

DOCUMENTS = {
    b"1": {"title": "asyncio gather", "body": "Run awaitables concurrently with asyncio.gather", "tag": "py", "n": 1},
    b"2": {"title": "gather asyncio", "body": "run_in_executor hands work to a thread", "tag": ["py", "thread"], "n": -5},
    b"3": {"title": "Straße", "body": "Übung macht den Meister", "tag": "a b", "x": 1.5, "on": True},
    b"4": {"body": "tail latency", "tag": "Py", "x": -0.0, "on": False, "at": "2020-01-01T12:00:00Z"},
    b"5": {"title": ["one two", "three"], "tag": "", "n": 2**63 - 1, "at": "2020-01-02"},
    b"6": {"title": "...", "tag": "pya", "at": "2019-12-31T23:59:59.999999Z"},
}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    index = TextIndex.create(tmp_path_factory.mktemp("index") / "i", SCHEMA, slot_of)
    for at, (key, document) in enumerate(DOCUMENTS.items()):
        index.write({key: (json.dumps(document).encode(), 0)})
        if at % 3 == 2:
            index.commit(at + 1)
    return index


def found(index, text, filters=()):
    node = prepare(text, SCHEMA)
    query = index.compiler.compile(node, [prepare(each, SCHEMA) for each in filters], None)
    view = IndexView(index.searcher(), index.fields, SCHEMA)
    return view.page(query, "", 0, 10, index.compiler.has_one_score(node)).found


def matches(index, text, filters=()):
    return "".join(sorted(each.key.decode() for each in found(index, text, filters)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("*", "123456"),
        ("", "123456"),
        ("asyncio", "12"),
        ("ASYNCIO", "12"),
        ("asyncio.gather", "1"),
        ("title:asyncio.gather", "1"),
        ('"asyncio gather"', "1"),
        ('"gather asyncio"', "2"),
        ("run_in_executor", "2"),
        ("straße", "3"),
        ("übung", "3"),
        ("title:tail", ""),
        ("body:tail", "4"),
        ("tail asyncio", "124"),
        ("tail AND asyncio", ""),
        ("asyncio AND NOT concurrently", "2"),
        ("asyncio -concurrently", "2"),
        ("asyncio OR NOT n:*", "12346"),
        ("-asyncio", "3456"),
        ("-asyncio -tail", "356"),
        ("+asyncio +gather executor", "12"),
        ("asyn*", "12"),
        ("title:asyncio.gath*", "1"),
        ("title:asyncio.*", "12"),
        ("body:asyncio.g*", "1"),
        ("Ü*", "3"),
        ('"two three"', ""),
        ("...", ""),
        ("... asyncio", "12"),
        ("... AND asyncio", "12"),
        ("-...", "123456"),
        ("+... -asyncio", ""),
        ('""', ""),
        ("x" * 100, ""),
        ("tag:py", "12"),
        ("tag:Py", "4"),
        ("tag:PY", ""),
        ('tag:"a b"', "3"),
        ('tag:""', "5"),
        ("tag:py*", "126"),
        ("tag:thread", "2"),
        ("tag:[py TO pya]", "126"),
        ("tag:{py TO pya}", ""),
        ('tag:["a b" TO py}', "3"),
        ("tag:<b", "345"),
        ("tag:>=pz", "2"),
        ("tag:*", "123456"),
        ("title:*", "12356"),
        ("body:*", "1234"),
        ("n:*", "125"),
        ("n:1", "1"),
        ("n:-5", "2"),
        ("n:9223372036854775807", "5"),
        ("n:[-5 TO 1]", "12"),
        ("n:{-5 TO 1}", ""),
        ("n:>1", "5"),
        ("n:>=1", "15"),
        ("n:<1", "2"),
        ("n:[* TO *]", "125"),
        ("x:0", "4"),
        ("x:1.5", "3"),
        ("x:>0", "3"),
        ("x:[-1 TO 2]", "34"),
        ("on:true", "3"),
        ("on:false", "4"),
        ("on:*", "34"),
        ("at:2020-01-01", "4"),
        ("at:2020-01-01T12:00:00Z", "4"),
        ("at:2020-01-01T13:00:00+01:00", "4"),
        ("at:[2020-01-01 TO 2020-01-01]", "4"),
        ("at:{2020-01-01 TO *]", "5"),
        ("at:>=2020-01-01", "45"),
        ("at:<2020-01-01", "6"),
        ("at:<=2020-01-01", "46"),
        ("at:[2019-12-31T23:59:59.999999Z TO 2019-12-31T23:59:59.999999Z]", "6"),
        ("tag:(py Py)", "124"),
        ("(asyncio tail)^3 n:1", "124"),
    ],
)
def test_what_matches(index, text, expected):
    assert matches(index, text) == expected


def test_filters_restrict_and_do_not_score(index):
    plain = {each.key: each.score for each in found(index, "asyncio")}
    filtered = {each.key: each.score for each in found(index, "asyncio", ["tag:thread", "n:<0"])}
    assert filtered == {b"2": plain[b"2"]}
    assert matches(index, "*", ["..."]) == ""
    assert matches(index, "*", ["-tag:py"]) == "3456"


def test_boosts_and_best_field(index):
    plain = found(index, "tail")[0].score
    assert found(index, "tail^3")[0].score == pytest.approx(3 * plain, rel=1e-6)
    best = {each.key: each.score for each in found(index, "asyncio")}
    parts = [{each.key: each.score for each in found(index, f"{name}:asyncio")} for name in ("title", "body")]
    assert best[b"1"] == max(part[b"1"] for part in parts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("*", True), ("n:1", True), ("-asyncio", True), ("asyn*", True), ("n:1 AND on:true", True), ("tag:py", False),
     ("asyncio", False), ("n:1 n:2", False), ("title:a.b*", False), ("n:1^2", True)],
)  # fmt: skip
def test_queries_of_one_score(index, text, expected):
    assert index.compiler.has_one_score(prepare(text, SCHEMA)) is expected


def test_compiling_on_several_threads(index):
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: matches(index, "asyncio.gather -tail asyn*"), range(200)))
    assert set(answers) == {"12"}
