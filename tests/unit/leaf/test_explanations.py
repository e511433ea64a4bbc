import json

import msgspec
import pytest
import tantivy

from kvshard.model import TermStatistics
from kvshard.query import prepare
from kvshard.search_accounts import ScoreExplanation
from leaf.bm25 import Bm25, Explanation
from leaf.explanations import Explainer
from leaf.index_fields import keyword_of
from leaf.text_index import TextIndex
from leaf.weighting import Numbered

SCHEMA = {"title": "text", "body": "text", "tag": "keyword", "n": "integer"}
QUERIES = [
    "hello",
    "title:hello^3 AND n:[2 TO 4]",
    '"hello world" OR tail',
    "hel*",
    "*",
    "NOT n:3",
    "tag:rpc OR nope",
    'body:"tail latency"^2 hello',
    "title:hello AND (tag:rpc OR tag:b)",
    "title:world (body:of NOT n:1) hello~1",
]


@pytest.fixture
def index(tmp_path) -> TextIndex:
    index = TextIndex.create(tmp_path / "index", SCHEMA, lambda key: 0)
    for n in range(6):
        text = {"title": f"hello world {n}", "body": "tail latency of hello " * (n + 1), "tag": ["rpc", "b"], "n": n}
        index.write({b"k%d" % n: (json.dumps(text).encode(), 0)})
    index.commit(1)
    return index


def shown(field: str, term: str) -> str:
    return keyword_of(term) if field == "tag" else term


def raw(index: TextIndex, query: str) -> list[tuple[float, Explanation, Numbered]]:
    """(score, explanation, its parts) of each match, best first."""
    node, searcher, found = prepare(query, SCHEMA), index.searcher(), []
    for score, address in searcher.search(index.compiler.compile(node, [], None), 100).hits:
        weighting = Numbered(index.fields)
        numbered = index.compiler.scored(node, weighting, searcher)
        text = numbered.explain(searcher, address).to_json()
        found.append((score, msgspec.json.decode(text, type=Explanation), weighting))
    return found


def leaves(explanation: ScoreExplanation) -> list[ScoreExplanation]:
    return [each for detail in explanation.details for each in leaves(detail)] if explanation.details else [explanation]


def check_sums(explanation: ScoreExplanation) -> None:
    """Every value is what its description says of the details."""
    values = [each.value for each in explanation.details]
    description = explanation.description
    if description == "sum of":
        assert explanation.value == pytest.approx(sum(values))
    elif description == "the best of":
        assert explanation.value == max(values)
    elif description.endswith(" times"):
        assert explanation.value == pytest.approx(float(description.split()[0]) * values[0])
    elif description.endswith("rarity times share of"):
        assert explanation.value == pytest.approx(values[0] * values[1])
    for each in explanation.details:
        check_sums(each)


@pytest.mark.parametrize("query", QUERIES)
def test_an_explanation_adds_up_to_the_score_that_is_shown(index: TextIndex, query: str) -> None:
    found = raw(index, query)
    assert found
    for score, node, weighting in found:
        explained = Explainer(weighting.parts, None, shown).explain(node)
        assert explained.value == pytest.approx(score, rel=1e-5)
        check_sums(explained)
        assert not any(part in json.dumps(msgspec.to_builtins(explained)) for part in ("f_", "Boost", "Clause", "k72"))


@pytest.mark.parametrize("query", QUERIES)
def test_with_shipped_statistics_it_is_their_score(index: TextIndex, query: str) -> None:
    statistics = TermStatistics(
        documents=1_000,
        tokens={"title": 5_000, "body": 40_000, "tag": 2_000},
        counts={"title": {"hello": 10, "world": 7}, "body": {"hello": 500, "tail": 3, "latency": 2}, "tag": {"k727063": 9}},
    )
    for _, node, weighting in raw(index, query):
        explained = Explainer(weighting.parts, statistics, shown).explain(node)
        assert explained.value == pytest.approx(Bm25(statistics, weighting.parts).score(node), rel=1e-12)
        check_sums(explained)


def test_it_speaks_of_fields_words_and_figures(index: TextIndex) -> None:
    statistics = TermStatistics(documents=100, tokens={"tag": 250, "body": 700}, counts={"tag": {"k727063": 20}})
    _, node, weighting = raw(index, 'tag:rpc AND body:"tail latency"')[0]
    explained = Explainer(weighting.parts, statistics, shown).explain(node)
    term, phrase = explained.details
    assert term.description == 'term "rpc" in tag: rarity times share of'
    assert phrase.description == 'phrase "tail latency" in body: rarity times share of'
    figures = {each.description: each.value for each in leaves(term)}
    assert figures == {
        'n, documents with "rpc"': 20,
        "N, documents of the collection": 100,
        "f, times in the document": 1,
        "l, length of the field in the document, in tokens": 2,
        "a, average length of the collection": 2.5,
    }


def test_nothing_but_matching_has_a_fixed_score(index: TextIndex) -> None:
    def told(query: str) -> str:
        _, node, weighting = raw(index, query)[0]
        return Explainer(weighting.parts, None).explain(node).description

    assert told("*") == "every document"
    assert told("n:[2 TO 3]") == "matches, with a fixed score"


def test_tantivy_explains_as_it_is_expected_to(index: TextIndex) -> None:
    """What the explainer reads off by its place."""
    _, node, _ = raw(index, "title:hello")[0]
    product = node.details[0]
    assert product.description.startswith("TermQuery")
    assert [each.description.split(",")[0] for each in product.details[2].details] == ["freq", "k1", "b", "dl", "avgdl"]
    assert isinstance(index.searcher(), tantivy.Searcher)
