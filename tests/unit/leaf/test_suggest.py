import json

import pytest

from kvshard import hashing
from kvshard.query import prepare
from kvshard.suggest_messages import SuggestPart
from leaf.suggest import Suggester
from leaf.text_index import TextIndex

SCHEMA = {"title": "text", "folded": "text(ascii)", "typed": "text(ngram)", "name": "text(keyword)", "tag": "keyword"}
TITLES = [
    "asyncio gather",
    "Asyncio gather gateway",
    "gather asyncio",
    "gate",
    "Über Straße 東京タワー",
    "latency of the tail",
    "latency 2013",
    "latencies",
]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    index = TextIndex.create(tmp_path_factory.mktemp("index") / "i", SCHEMA, lambda key: hashing.slot(key, 0))
    for at, title in enumerate(TITLES):
        document = dict.fromkeys(("title", "folded", "typed", "name", "tag"), title)
        index.write({b"%d" % at: (json.dumps(document).encode(), 0)})
        if at == 3:
            index.commit(1)
    index.commit(2)
    return index


def suggest(index, text, *fields, limit=5, among="*", check=lambda: None, **part):
    live = index.compiler.compile(prepare(among, SCHEMA), [], None)
    suggester = Suggester(SCHEMA, index.fields, index.searcher(), live, check)
    return suggester.suggest(SuggestPart(text, list(fields or ("title",)), limit, **part))


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ("gat", ["title"], [("gather", 3), ("gate", 1), ("gateway", 1)]),
        ("GAT", ["title"], [("gather", 3), ("gate", 1), ("gateway", 1)]),
        ("g", ["typed"], [("gather", 3), ("gate", 1), ("gateway", 1)]),
        ("asyncio gat", ["title"], [("asyncio gather", 3), ("asyncio gateway", 1)]),
        ("Asyncio, gat", ["typed"], [("Asyncio, gather", 3), ("Asyncio, gateway", 1)]),
        ("tail gat", ["title"], []),
        ("asyncio nosuch gat", ["title"], []),
        ("gat", ["title", "typed", "folded"], [("gather", 3), ("gate", 1), ("gateway", 1)]),
        ("asyncio gat", ["title", "typed"], [("asyncio gather", 3), ("asyncio gateway", 1)]),
        ("gather ", ["title"], []),
        ("gather.", ["title"], []),
        ("🎉", ["title"], []),
        ("ÜB", ["title"], [("über", 1)]),
        ("ub", ["title"], []),
        ("ub", ["folded"], [("uber", 1)]),
        ("stras", ["folded"], [("strasse", 1)]),
        ("東京", ["title"], [("東京タワー", 1)]),
        ("東京", ["typed"], [("東京タワー", 1)]),
        ("asyncio g", ["name"], [("asyncio gather", 1), ("asyncio gather gateway", 1)]),
        ("Asyncio g", ["tag"], [("Asyncio gather gateway", 1)]),
        ("asyncio gather", ["name", "tag"], [("asyncio gather", 1), ("asyncio gather gateway", 1)]),
        ("lat", ["title"], [("latency", 2), ("latencies", 1)]),
    ],
)
def test_completions(index, text, fields, expected):
    reply = suggest(index, text, *fields, wants_corrections=False)
    assert (reply.completions, reply.missed, reply.words) == (expected, 0, [])


def test_what_the_limit_cuts_off_is_told(index):
    reply = suggest(index, "gat", limit=2)
    assert (reply.completions, reply.missed) == ([("gather", 3), ("gate", 1)], 1)
    assert suggest(index, "gat", limit=1).missed == 3  # nobody looked at the second one
    assert suggest(index, "gat", "title", "folded", limit=2).missed == 2  # one in either field
    assert suggest(index, "gat", limit=0).completions == []


def test_only_documents_that_count_are_counted(index):
    assert suggest(index, "gat", among="asyncio").completions == [("gather", 3), ("gateway", 1)]
    assert suggest(index, "gat", among="title:tail").completions == []


def test_without_context_the_words_before_do_not_matter(index):
    reply = suggest(index, "asynco gat", has_context=False)
    assert reply.completions == [("asynco gather", 3), ("asynco gate", 1), ("asynco gateway", 1)]


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ("asynco", ["title"], [("asynco", 0, 6, 0, [("asyncio", 3, 1)])]),
        ("the Asynco!", ["title"], [("the", 0, 3, 1, []), ("asynco", 4, 10, 0, [("asyncio", 3, 1)])]),
        ("gather", ["title"], [("gather", 0, 6, 3, [])]),
        ("gaet", ["title"], [("gaet", 0, 4, 0, [("gate", 1, 1)])]),
        ("latnecies", ["title"], [("latnecies", 0, 9, 0, [("latencies", 1, 1)])]),
        ("latncy", ["title", "typed", "folded"], [("latncy", 0, 6, 0, [("latency", 2, 1)])]),
        ("latncy", ["typed"], [("latncy", 0, 6, 0, [("latency", 2, 1)])]),
        ("2014", ["title"], [("2014", 0, 4, 0, [])]),
        ("of", ["title"], [("of", 0, 2, 1, [])]),
        ("strassse", ["folded"], [("strassse", 0, 8, 0, [("strasse", 1, 1)])]),
        ("übre", ["title"], [("übre", 0, 4, 0, [("über", 1, 1)])]),
        ("zzzzzzz", ["title"], [("zzzzzzz", 0, 7, 0, [])]),
        ("asynco", ["name", "tag"], []),
        ("x" * 41, ["title"], []),
    ],
)
def test_corrections(index, text, fields, expected):
    reply = suggest(index, text, *fields, limit=0)
    assert [(word.word, word.start, word.end, word.documents, word.near) for word in reply.words] == expected


def test_only_the_last_words_of_a_long_text_are_looked_at(index):
    reply = suggest(index, " ".join(["tail"] * 20), limit=0)
    assert len(reply.words) == 16


def test_a_word_that_goes_on_is_no_mistake(index):
    (word,) = suggest(index, "gat").words
    assert (word.documents, word.near) == (0, [])
    first, _ = suggest(index, "asynco gat", has_context=False).words
    assert first.near == [("asyncio", 3, 1)]


def test_it_stops_when_nobody_waits(index):
    def stop():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        suggest(index, "gat", check=stop)
    with pytest.raises(TimeoutError):
        suggest(index, "asynco", limit=0, check=stop)


def test_a_word_that_some_documents_have_keeps_its_near_ones(index):
    (word,) = suggest(index, "gate", limit=0).words
    assert (word.documents, word.near) == (1, [])
