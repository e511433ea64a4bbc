"""Scores put together from single terms are those of an explanation of the whole query, to the last bit."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tantivy import Occur

from kvshard.model import ShardSearch, TermStatistics
from leaf.bm25 import Bm25
from leaf.index_statistics import explained
from leaf.made_query import GroupPart, Part, TermPart, made
from leaf.search_plan import CompiledSearch, SearchPlan
from leaf.term_scores import TermScores, is_made_of_terms
from leaf.text_index import TextIndex
from leaf.weighting import Numbered, Weighting

SCHEMA = {"title": "text", "body": "text(english)", "tag": "keyword", "year": "integer"}
WORDS = ("running", "tail", "leaf", "hedge", "slow", "shard")
STATISTICS = TermStatistics(
    9_000,
    {"title": 30_000, "body": 400_000, "tag": 20_000},
    {name: {word: 10 + 700 * place for place, word in enumerate((*WORDS, "run", "hedg"))} for name in ("title", "body", "tag")},
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextIndex]:
    rng = random.Random(3)
    folder: Path = tmp_path_factory.mktemp("terms")
    index = TextIndex.create(folder / "i", SCHEMA, lambda key: 0)
    for commit in range(3):
        for number in range(100):
            document = {
                "title": " ".join(rng.choices((*WORDS, "x"), k=rng.randint(0, 4))),
                "body": " ".join(rng.choices((*WORDS, "y", "z"), k=rng.choice([1, 9, 90]))),
                "tag": rng.sample(WORDS, rng.randint(0, 3)),
                "year": number,
            }
            index.write({b"k%d-%d" % (commit, number): (json.dumps(document).encode(), 0)})
        index.commit(1 + commit)
    yield index
    index.discard_changes()


def compiled(index: TextIndex, query: str) -> CompiledSearch:
    request = ShardSearch(0, 1, 1, query, [], 10, statistics=STATISTICS)
    return SearchPlan(request, SCHEMA).compiled(index.compiler, index.fields, index.searcher(), STATISTICS, lambda: None)


def a_query(rng: random.Random, depth: int = 2) -> str:
    kind = rng.randrange(6 if depth else 2)
    if kind == 0:
        return rng.choice(WORDS)
    if kind == 1:
        return f"{rng.choice(['title', 'body', 'tag'])}:{rng.choice([*WORDS, 'nowhere'])}"
    if kind == 2:
        return f"({a_query(rng, depth - 1)})^{rng.choice(['2', '0.3', '1.75'])}"
    clauses = [a_query(rng, depth - 1) for _ in range(rng.randint(2, 3))]
    between = rng.choice([" AND ", " OR ", " "])
    return f"({between.join(clauses)})"


def scores(index: TextIndex, query: str | Part) -> tuple[list[float], list[float]]:
    """Of all matches: from their terms, and from explanations of the whole."""
    part = compiled(index, query).query.part if isinstance(query, str) else query
    assert is_made_of_terms(part), query
    searcher, weighting = index.searcher(), Numbered(index.fields)
    numbered = made(part, weighting)
    whole = Bm25(STATISTICS, weighting.parts)
    terms = TermScores(part, Bm25(STATISTICS, ()), index.fields, searcher, index.statistics.has_term)
    hits = [address for _, address in searcher.search(made(part, Weighting(index.fields)), 1_000).hits]
    return [terms.score(each) for each in hits], [whole.score(explained(numbered, searcher, each)) for each in hits]


@pytest.mark.parametrize("seed", range(40))
def test_they_are_those_of_an_explanation(index: TextIndex, seed: int) -> None:
    rng = random.Random(seed)
    found = 0
    for _ in range(5):
        terms, whole = scores(index, a_query(rng))
        assert terms == whole
        found += len(terms)
    assert found


@pytest.mark.parametrize(
    "query",
    ["tail leaf slow", "title:tail OR title:tail", "nowhere tail", "tag:tail AND tag:leaf", "(tail OR leaf) AND slow^3"],
)
def test_of_usual_queries_too(index: TextIndex, query: str) -> None:
    terms, whole = scores(index, query)
    assert terms == whole
    assert len(set(terms)) > 1


def may(*words: str) -> list[tuple[Occur, Part]]:
    return [(Occur.Should, TermPart("title", word, "position")) for word in words]


@pytest.mark.parametrize(
    "group",
    [
        GroupPart(may("tail", "leaf", "slow"), (), 2),
        GroupPart([(Occur.Must, TermPart("title", "tail", "position")), *may("leaf", "slow")], (), 1),
    ],
)
@pytest.mark.parametrize("place", ["alone", "beside"])
def test_a_group_of_which_some_have_to_match_counts_only_then(index: TextIndex, group: GroupPart, place: str) -> None:
    part = group if place == "alone" else GroupPart([(Occur.Should, group), *may("shard")], (), 0)
    terms, whole = scores(index, part)
    assert terms == whole
    assert len(terms) > 10


@pytest.mark.parametrize(
    "query",
    ['"tail leaf"', "tail NOT leaf", "tail AND year:[3 TO 9]", "tai*", "*", "tail^0.123456789", "(tail leaf~1)"],
)
def test_whatever_else_is_in_a_query_takes_an_explanation(index: TextIndex, query: str) -> None:
    assert not is_made_of_terms(compiled(index, query).query.part)
