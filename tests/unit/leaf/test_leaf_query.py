import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvshard import hashing
from kvshard.errors import InvalidArgument
from kvshard.query import (
    AnyOf,
    Best,
    Clause,
    Constant,
    Group,
    Keys,
    MatchAll,
    MatchNone,
    Minimum,
    Occur,
    Within,
    Word,
    check_query,
    prepare,
)
from kvshard.sorting import BY_SCORE
from leaf.expansions import WordLists
from leaf.marked_words import MARKED_MAX_WORDS, marked_words
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
    view = IndexView(index.searcher(), index.fields, SCHEMA, index.parse)
    return view.page(query, BY_SCORE, 10, has_one_score=index.compiler.has_one_score(node)).found


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
        ('"run awaitables asyncio"', ""),
        ('"awaitables asyncio"~1', ""),
        ('"awaitables asyncio"~2', "1"),
        ('title:"gather asyncio"~2', "12"),
        ('title:"gather asyncio"~1', "2"),
        ("as?ncio", "12"),
        ("*ncio", "12"),
        ("a*o", "12"),
        ("A*O", "12"),
        ("*th?r", "12"),
        ("?", "2"),
        ("body:???", "123"),
        ("body:*y", "14"),
        ("*x*y*z*", ""),
        ("tag:p?", "12"),
        ("tag:?y", "124"),
        ("tag:p*", "126"),
        ("tag:*h*e*d", "2"),
        ("tag:a?b", "3"),
        ("tag:P*y?", ""),
        ("asincio~1", "12"),
        ("asincio~", "12"),
        ("asicnio~1", ""),
        ("asicnio~2", "12"),
        ("aysncio~1", "12"),
        ("asyncio~0", "12"),
        ("tial~", "4"),
        ("ruin~1", "12"),
        ("ru~2", "12"),
        ("ru~", ""),
        ("asincio.gathr~1", "12"),
        ("straße~1 -übung", ""),
        ("_exists_:x", "34"),
        ("asyncio^2 OR tai?", "124"),
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
        ("n:{* TO 1}", "2"),
        ("n:{1 TO *}", "5"),
        ("n:{* TO *}", "125"),
        ("tag:{* TO py}", "345"),
        ("tag:{py TO *}", "26"),
        ("at:{* TO 2020-01-01}", "6"),
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
     ("asyncio", False), ("as?ncio", True), ("asyncio~1", True),
     ("n:1 AND as*o^3", True), ("n:1 n:2", False), ("title:a.b*", False), ("n:1^2", True)],
)  # fmt: skip
def test_queries_of_one_score(index, text, expected):
    assert index.compiler.has_one_score(prepare(text, SCHEMA)) is expected


@pytest.mark.parametrize("text", ["asyn*", "as?n*o", "*ncio", "asincio~1", "asincio.gathr~1", "tag:p?", "tag:p*", "tag:*y",
                                  "title:asyncio.gath*"])  # fmt: skip
def test_what_stands_for_many_words_scores_one(index, text):
    assert {each.score for each in found(index, text)} == {1.0}


def compiled(index, node):
    view = IndexView(index.searcher(), index.fields, SCHEMA, index.parse)
    query = index.compiler.compile(node, [], None)
    return view.page(query, BY_SCORE, 10, has_one_score=index.compiler.has_one_score(node)).found


def test_what_only_structured_queries_say(index):
    def keys(node):
        check_query(node, SCHEMA)
        return "".join(sorted(each.key.decode() for each in compiled(index, node)))

    def scores(node):
        return {each.key.decode(): pytest.approx(each.score, rel=1e-6) for each in compiled(index, node)}

    asyncio, gather, tail = Word(None, "asyncio"), Word(None, "gather"), Word(None, "tail")
    assert keys(AnyOf("tag", ("py", "a b"))) == "123"
    assert keys(AnyOf("n", ("1", "-5", "77"))) == "12"
    assert keys(AnyOf("x", ("0", "1.5"))) == "34"
    assert keys(AnyOf("on", ("true",))) == "3"
    assert keys(AnyOf("at", ("2020-01-01", "2019-12-31T23:59:59.999999Z"))) == "46"
    assert keys(AnyOf("tag", ())) == ""
    assert keys(Keys((b"1", b"4", b"none"))) == "14"
    assert keys(MatchNone()) == ""
    filtered = Group((Clause(Occur.FILTER, tail), Clause(Occur.FILTER, Word("tag", "Py"))))
    assert keys(filtered) == "4"
    assert scores(filtered) == {"4": 0.0}
    both = Group((Clause(Occur.MUST, asyncio), Clause(Occur.FILTER, Word("tag", "thread"))))
    assert scores(both) == {"2": scores(asyncio)["2"].expected}
    assert scores(Constant(asyncio, 2.5)) == {"1": 2.5, "2": 2.5}
    assert scores(Within((("body", 3.0),), asyncio)) == {"1": 3 * scores(Word("body", "asyncio"))["1"].expected}
    best = Best((Constant(asyncio, 2.0), Constant(gather, 5.0), Constant(tail, 1.0)), 0.1)
    assert scores(best) == {"1": 5.2, "2": 5.2, "4": 1.0}
    assert keys(Best(())) == ""


def test_how_many_have_to_match(index):
    def keys(minimum, *words, must=()):
        clauses = [Clause(Occur.SHOULD, Word(None, word)) for word in words] + [Clause(Occur.MUST, node) for node in must]
        node = Group(tuple(clauses), minimum)
        return "".join(sorted(each.key.decode() for each in compiled(index, node)))

    words = ("asyncio", "gather", "thread", "tail")
    assert keys(None, *words) == "124"
    assert keys(Minimum(2), *words) == "12"
    assert keys(Minimum(3), *words) == "2"
    assert keys(Minimum(75, is_percent=True), *words) == "2"
    assert keys(Minimum(-2), *words) == "12"
    assert keys(Minimum(9), *words) == ""
    assert keys(Minimum(4), *words[:3], "...") == "2"
    assert keys(Minimum(1), *words, must=[MatchAll()]) == "124"
    assert keys(Minimum(-9), *words, must=[MatchAll()]) == "123456"


def test_words_are_marked_as_they_stand_in_the_texts(index):
    def marked(text, *texts):
        return marked_words(prepare(text, SCHEMA), "title", "text", lambda: texts)

    assert marked("asyncio.gather tag:x body:z -tail", "a") == {"asyncio", "gather"}
    assert marked("as* *er gathr~1", "Asyncio gather", "gathers later assert") == {
        "as", "asyncio", "gather", "assert", "later", "gathr",
    } - {"gathr"}  # fmt: skip
    assert marked("title:(b?t^2)", "bat BIT boot bt") == {"bat", "bit"}
    wide = marked("*", "x") | marked("w*", " ".join(f"w{number}" for number in range(3_000)))
    assert len(wide) == MARKED_MAX_WORDS


def test_marked_words_follow_the_analyzer():
    def marked(text, field_type, *texts):
        return marked_words(prepare(text, {"t": field_type}), "t", field_type, lambda: texts)

    assert marked("Cafés caf*", "text(ascii)", "Café cafeteria") == {"cafes", "cafe", "cafeteria", "caf"}
    assert marked("CAFÉ*x", "text(ascii)", "cafex") == {"cafex"}
    assert marked("running runing~1", "text(english)", "runs run ran") == {"run"}
    assert marked("run", "text(ngram)", "runs ran") == {"run", "runs"}


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("/async.o/", "12"),
        ("title:/g(ather|one)/", "12"),
        ("title:/G[A-Z]{5}/", "12"),  # words of texts are lower case
        ("tag:/py.?/", "126"),
        ("tag:/Py|a\\ b/", "34"),  # keywords are as they are
        ("tag:/[^p].*/", "234"),
        ("tag:/a\\ b/", "3"),
        ("/ta[ij]l/ AND /lat.*/", "4"),
        ("title:/stra(ß|ss)e/", "3"),
        ("/sync/", ""),
        ("NOT tag:/.*/", ""),
        ("NOT tag:/.+/", "5"),
    ],
)
def test_regular_expressions_are_compared_with_whole_words(index, text, keys):
    assert matches(index, text) == keys
    assert {each.score for each in found(index, text)} <= {1.0, 2.0}


def test_what_a_regular_expression_finds_is_marked():
    node = prepare("t:/run(s|ner)/", {"t": "text(english)"})
    assert marked_words(node, "t", "text(english)", lambda: ["Runs runner runt"]) == {"run", "runner"}


def test_regular_expressions_are_bounded(monkeypatch, tmp_path):
    monkeypatch.setattr("leaf.expansions.EXPANSION_MAX_WORDS", 20)
    index = TextIndex.create(tmp_path / "i", SCHEMA, slot_of)
    for number in range(30):
        index.write({b"%d" % number: (json.dumps({"title": f"w{number}", "tag": f"w{number}"}).encode(), 0)})
    index.commit(1)
    for text in ("/w.*/", "title:/.+9/", "tag:/w[0-9]+/"):
        with pytest.raises(InvalidArgument, match="/ has to look at more than 20 words of a shard; let it begin"):
            found(index, text)
    assert matches(index, "title:/w1[0-3]/") == "10111213"
    assert matches(index, "tag:/w2(1|22)/") == "21"


def test_wildcards_are_bounded(monkeypatch, tmp_path):
    monkeypatch.setattr("leaf.expansions.EXPANSION_MAX_WORDS", 100)
    index = TextIndex.create(tmp_path / "i", SCHEMA, slot_of)

    def write(words):
        for word in words:
            index.write({word.encode(): (json.dumps({"title": word, "tag": word}).encode(), 0)})
        index.commit(index.indexed_through + 1)

    write(["single", *(f"w{number}" for number in range(60))])
    assert len(found(index, "w*")) == 10
    write(f"w{number}" for number in range(60, 101))  # what was found out before does not count any more
    for text in ("w*", "w?1*", "*7", "title:w*", "tag:w*", "tag:*w", "-w*", "(a OR w*)^2"):
        for _ in range(2):  # the second time from what is remembered
            with pytest.raises(InvalidArgument, match="more than 100 words of a shard; let it begin") as caught:
                found(index, text)
            assert caught.value.details.limit == 100
    assert {each.key for each in found(index, "w10*")} == {b"w10", b"w100"}
    assert matches(index, "sin*le") == matches(index, "si?gl*e") == "single"


def test_a_wildcard_bomb_costs_no_more_than_its_words(index):
    began = time.perf_counter()
    for text in ("a*b????????????????????", "*a" * 127, "tag:*a?b?c?d*", "?" * 256, "*?*?*?*?*?*?*?*?"):
        found(index, text)
    assert time.perf_counter() - began < 2


def test_a_cancelled_search_stops_matching(index):
    class Gone(Exception):
        pass

    def check():
        raise Gone

    with pytest.raises(Gone):
        index.compiler.compile(prepare("a?y*", SCHEMA), [], None, check=check)


def test_compiling_on_several_threads(index):
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: matches(index, "asyncio.gather -tail asyn*"), range(200)))
    assert set(answers) == {"12"}


def test_the_patterns_of_one_query_list_the_words_of_a_field_once(index):
    class Counting:
        def __init__(self, searcher):
            self._searcher, self.lists = searcher, []

        def terms_with_prefix(self, field, prefix, **options):
            self.lists.append((field, prefix))
            return self._searcher.terms_with_prefix(field, prefix, **options)

    searcher = Counting(index.searcher())
    lists = WordLists(searcher)
    words = lists.beginning("f_body", "")
    assert "latency" in words
    assert lists.beginning("f_body", "") is words
    assert lists.beginning("f_body", "la") == ["latency"]
    assert len(searcher.lists) == 2
    for number in range(10):
        lists.beginning("f_body", f"none{number}")
    assert lists.beginning("f_body", "") == words
    assert len(searcher.lists) == 13, "only the last few are kept"
