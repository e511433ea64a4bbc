"""Each analyzer by itself, and what a search finds, counts and marks in a field that has it."""

import json

import pytest
import tantivy
from hypothesis import given
from hypothesis import strategies as st

from kvshard import hashing
from kvshard.analyzers import ANALYZERS, NGRAM
from kvshard.query import prepare
from kvshard.schema import text_type
from kvshard.sorting import BY_SCORE
from leaf.analysis import begun_words, query_terms, term_count, word_terms, words_and_terms
from leaf.index_fields import marked_in, searched
from leaf.text_index import TextIndex
from leaf.text_search import IndexView


def words(field_type, text):
    return [term.text for term in query_terms(field_type, text)]


@pytest.mark.parametrize(
    ("field_type", "text", "expected"),
    [
        ("text", "Straße, Ümlaut-ÜBER", ["straße", "ümlaut", "über"]),
        ("text", "Ελλάδα 東京タワー", ["ελλάδα", "東京タワー"]),
        ("text", "🎉 party👍time", ["party", "time"]),
        ("text", f"{'x' * 40} {'y' * 39}", ["y" * 39]),
        ("text(ascii)", "Café ÜBER straße Ελλάδα", ["cafe", "uber", "strasse", "ελλάδα"]),
        ("text(cjk)", "日本 Tower 한국 ünï", ["日", "本", "tower", "한", "국", "ünï"]),
        ("text(keyword)", "New YORK 🎉", ["new york 🎉"]),
        ("text(ngram)", "Asyncio", ["asyncio"]),
        ("text(english)", "The runners are running to the libraries", ["runner", "run", "librari"]),
        ("text(german)", "Der Läufer über die Häuser", ["lauf", "haus"]),
        ("text(greek)", "Άνθρωπος ΑΝΘΡΩΠΟΙ", ["ανθρωπ", "ανθρωπ"]),
        ("text(russian)", "и книги книга", ["книг", "книг"]),
    ],
)
def test_queries_are_cut_by_their_field(field_type, text, expected):
    assert words(field_type, text) == expected


def test_every_analyzer_can_be_made():
    assert all(words(text_type(name), "42") == ["42"] for name in ANALYZERS)


def test_marks_do_not_cut_words_of_scripts_that_have_them():
    assert len(words("text(tamil)", "மரங்கள்")) == 1


def test_each_word_has_its_term():
    pairs = [("runners", "runner"), ("running", "run")]
    assert words_and_terms("text(english)", "The runners are running") == pairs
    assert words_and_terms("text(ngram)", "Héy 東京") == [("héy", "héy"), ("東京", "東京")]


def test_positions_remember_where_stop_words_were():
    assert [(term.text, term.position) for term in query_terms("text(english)", "tail of the cat")] == [("tail", 0), ("cat", 3)]


@pytest.mark.parametrize(
    ("field_type", "text", "expected"),
    [
        ("text", "Asyncio gath", ["asyncio", "gath"]),
        ("text(english)", "the Libraries runnin", ["the", "libraries", "runnin"]),
        ("text(english)", "th", ["th"]),
        ("text(english)", "the", ["the"]),
        ("text(english)", "...", []),
        ("text(ascii)", "Caf\u00e9", ["cafe"]),
        ("text(keyword)", "New Yo", ["new yo"]),
    ],
)
def test_words_as_they_are(field_type, text, expected):
    assert [term.text for term in word_terms(field_type, text)] == expected


def test_ngrams_are_all_beginnings_of_each_word(tmp_path):
    assert begun_words("Héy, 東京") == ["héy=", "東京="]
    assert term_count("text(ngram)", "Héy, 東京") == 7
    index = index_of(tmp_path, {"body": "text(ngram)"}, {b"a": {"body": ["Héy, 東京", "x" * 39 + " " + "y" * 40]}})
    terms = {term for term, _ in index.searcher().terms_with_prefix(searched("body"), "")}
    assert terms == {"h", "hé", "héy", "héy=", "東", "東京", "東京=", *("x" * n for n in range(1, 40)), "x" * 39 + "="}
    assert {term for term, _ in index.searcher().terms_with_prefix("w_body", "")} == {"héy", "東京", "x" * 39}


def test_phrases_of_beginnings_end_with_their_text(tmp_path):
    schema = {"body": "text(ngram)"}
    index = index_of(tmp_path, schema, {b"a": {"body": ["the tail latency", "of leaves"]}})

    def count(text):
        query = index.compiler.compile(prepare(text, schema), [], None)
        return IndexView(index.searcher(), index.fields, schema, index.parse).count(query)

    texts = ['"tail lat"', '"the tail"', '"the lat"', '"the lat"~1', '"latency of"', '"of lea"', "tail.lat*", "the.lat*"]
    assert [count(text) for text in texts] == [1, 1, 0, 1, 0, 1, 1, 0]


def test_the_word_itself_comes_before_those_that_begin_with_it(tmp_path):
    texts = {b"a": "tailor of tails", b"b": "the tail of all those long words here", b"c": "tailing"}
    schema = {"body": "text(ngram)"}
    index = index_of(tmp_path, schema, {key: {"body": text} for key, text in texts.items()})
    node = prepare("tail", schema)
    view = IndexView(index.searcher(), index.fields, schema, index.parse)
    found = view.page(index.compiler.compile(node, [], None), BY_SCORE, 3).found
    assert found[0].key == b"b"
    assert len(found) == 3


@pytest.mark.parametrize("field_type", ["text", "text(english)", "text(ngram)", "text(keyword)", "text(cjk)"])
def test_terms_are_counted_as_the_index_counts_them(tmp_path, field_type):
    text = "The runners of Tokyo 東京 are running 🎉"
    index = index_of(tmp_path, {"body": field_type}, {b"a": {"body": text}})
    word = query_terms(field_type, text)[0].text
    query = tantivy.Query.term_query(index.fields, searched("body"), word)
    searcher = index.searcher()
    ((_, address),) = searcher.search(query, 1).hits
    explained = query.explain(searcher, address).to_json()
    assert f'"value": {float(term_count(field_type, text))}' in explained.replace("\n", ""), explained


def slot_of(key: bytes) -> int:
    return hashing.slot(key, 0)


def index_of(path, schema, documents):
    index = TextIndex.create(path / "index", schema, slot_of)
    index.write({key: (json.dumps(document).encode(), 0) for key, document in documents.items()})
    index.commit(1)
    return index


FIELDS = {
    "plain": "text",
    "folded": "text(ascii)",
    "english": "text(english)",
    "typed": "text(ngram)",
    "whole": "text(keyword)",
    "cjk": "text(cjk)",
}
TEXTS = {
    b"1": "The runners of New York are running",
    b"2": "Café",
    b"3": "東京タワー",
    b"4": "asyncio.gather runs " + "x" * 30,
    b"5": "New York",
}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    documents = {key: dict.fromkeys(FIELDS, text) for key, text in TEXTS.items()}
    return index_of(tmp_path_factory.mktemp("analysis"), FIELDS, documents)


def page(index, text):
    node = prepare(text, FIELDS)
    query = index.compiler.compile(node, [], None)
    has_one_score = index.compiler.has_one_score(node)
    view = IndexView(index.searcher(), index.fields, FIELDS, index.parse)
    return view.page(query, BY_SCORE, 10, has_one_score=has_one_score).found, has_one_score


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain:run", ""),
        ("plain:running", "1"),
        ("english:run", "14"),
        ("english:RUNNING", "14"),
        ("english:runn*", "1"),
        ("english:running*", "1"),
        ("english:the*", "1"),
        ("english:runn?rs", "1"),
        ("english:runnres~", "1"),
        ("english:asyncioes~", "4"),
        ("english:sunned~1", ""),
        ("english:asyncio.gath*", "4"),
        ("english:the.runn*", "1"),
        ("english:new.runn*", ""),
        ('english:"runner of york"', ""),
        ('english:"runner of new york"', "1"),
        ('english:"runner with new york"', "1"),  # any stop word may stand where one stood
        ('english:"runner new york"', ""),
        ("english:the", ""),
        ("english:the AND english:run", "14"),
        ("plain:cafe", ""),
        ("folded:cafe", "2"),
        ("folded:CAFÉ", "2"),
        ("folded:caf*", "2"),
        ("typed:asyn", "4"),
        ("typed:asyn*", "4"),
        ("typed:sync", ""),
        ('typed:"asyncio gath"', "4"),
        ('typed:"new yo"', "15"),
        ("typed:as*cio", "4"),
        ("typed:as*nc", ""),  # a pattern is for whole words
        ("typed:asynco~", "4"),
        ("typed:" + "x" * 15, "4"),
        ("typed:" + "x" * 16, "4"),
        ("typed:" + "x" * 29 + "*", "4"),
        ("typed:" + "x" * 30, "4"),
        ("typed:" + "x" * 31, ""),
        ('whole:"new york"', "5"),
        ("whole:york", ""),
        ("whole:caf*", "2"),
        ("plain:東京", ""),
        ("plain:東京*", "3"),
        ("cjk:東京", "3"),
        ("cjk:京東", ""),
        ("cjk:タワ", "3"),
        ("cjk:京タ*", "3"),
        ("cjk:york", "15"),
    ],
)
def test_what_is_found(index, text, expected):
    assert "".join(sorted(hit.key.decode() for hit in page(index, text)[0])) == expected


@pytest.mark.parametrize("text", ["plain:r*", "english:r*", "english:running*", "typed:r*", "cjk:東京*", "whole:new*", "r*"])
def test_one_score_is_promised_only_where_there_is_one(index, text):
    found, has_one_score = page(index, text)
    assert not has_one_score or len({hit.score for hit in found}) <= 1


@pytest.mark.parametrize(
    ("name", "text", "marked"),
    [
        ("english", "english:run", ["running"]),
        ("english", "english:runn*", ["runners", "running"]),
        ("english", "english:running*", ["running"]),
        ("typed", "typed:runn", ["runners", "running"]),
        ("folded", "folded:york", ["York"]),
        ("cjk", "cjk:york", ["York"]),
    ],
)
def test_whole_words_are_marked(index, name, text, marked):
    searcher = index.searcher()
    query = index.compiler.highlight_query(prepare(text, FIELDS), name, lambda: [TEXTS[b"1"]])
    generator = tantivy.SnippetGenerator.create(searcher, query, index.fields, marked_in(name, FIELDS[name]))
    document = tantivy.Document()
    document.add_text(marked_in(name, FIELDS[name]), TEXTS[b"1"])
    snippet = generator.snippet_from_doc(document)
    assert [snippet.fragment()[each.start : each.end] for each in snippet.highlighted()] == marked


def test_an_index_knows_its_analyzers_when_it_is_opened_again(tmp_path):
    schema = {"body": "text(english)"}
    index_of(tmp_path, schema, {b"a": {"body": "running"}}).close_writer()
    index = TextIndex.open(tmp_path / "index", schema, slot_of)
    index.write({b"b": (b'{"body": "runs"}', 0)})
    index.commit(2)
    query = index.compiler.compile(prepare("run", schema), [], None)
    assert IndexView(index.searcher(), index.fields, schema, index.parse).count(query) == 2


@pytest.mark.parametrize(
    "text", ["", " ", "a", "-a b_c.d  E9 ", "x" * 39 + " y", "x" * 40 + " y", "y " + "x" * 41, "a\tb\nc\x00d'e"]
)
@pytest.mark.parametrize("field_type", ["text", "text(ascii)", "text(cjk)", "text(tamil)", "text(turkish)", "text(english)"])
def test_words_of_ascii_are_counted_as_they_are_cut(field_type, text):
    assert term_count(field_type, text) == len(query_terms(field_type, text))


@given(st.text(st.characters(max_codepoint=127), max_size=120), st.sampled_from(sorted({*ANALYZERS} - {NGRAM})))
def test_any_ascii_text_is_counted_as_it_is_cut(text, name):
    assert term_count(text_type(name), text) == len(query_terms(text_type(name), text))
