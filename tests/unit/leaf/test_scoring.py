import json
import random

import pytest

from kvshard.clustermap import TOKEN_SLOTS
from kvshard.model import ShardSearch, TermStatistics
from kvshard.sorting import BY_SCORE
from leaf.bm25 import Bm25
from leaf.index_statistics import explained
from leaf.scoring import ALONE_MAX, weighed
from leaf.search_plan import SearchPlan
from leaf.text_index import TextIndex
from leaf.text_search import IndexView

SCHEMA = {"body": "text"}
DOCUMENTS = 400


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    rng = random.Random(5)
    index = TextIndex.create(tmp_path_factory.mktemp("scoring") / "i", SCHEMA, lambda key: 0)
    bodies = [
        " ".join(["one"] * rng.randint(1, 9) + ["two"] * rng.randint(0, 3) + ["x"] * rng.randint(0, 90)) for _ in range(400)
    ]
    index.write({b"k%03d" % n: (json.dumps({"body": body}).encode(), 0) for n, body in enumerate(bodies)})
    index.commit(1)
    yield index
    index.discard_changes()


def ranked(index, average, limit):
    """The keys of a page, and how many explanations it took. average: length of all bodies, in terms."""
    shipped = TermStatistics(8_000, {"body": int(8_000 * average)}, {"body": {"one": 700, "two": 90}})
    request = ShardSearch(0, 1, 1, "one two", [], limit, statistics=shipped)
    compiled = SearchPlan(request, SCHEMA).compiled(index.compiler, index.fields, index.searcher(), shipped, lambda: None)
    found = weighed(compiled, index.statistics, request, lambda query: query, TOKEN_SLOTS - 1, lambda: None)
    page = IndexView(index.searcher(), index.fields, SCHEMA, index.parse, exact=found.exact).page(found.query, BY_SCORE, limit)
    return [each.key for each in page.found], found.exact._explained


@pytest.mark.parametrize("average", [1.0, 8.0, 40.0, 300.0])
def test_a_page_has_the_best_of_all_however_far_off_the_average_length_is(index, average):
    everything, _ = ranked(index, average, DOCUMENTS)
    assert ranked(index, average, 5)[0] == everything[:5]


def test_few_are_looked_at_where_the_average_length_is_about_right(index):
    own = index.statistics.of({"body": ["one"]}).tokens["body"] / DOCUMENTS
    assert ranked(index, own, 5)[1] <= 10


@pytest.fixture(scope="module")
def keywords(tmp_path_factory):
    rng = random.Random(9)
    index = TextIndex.create(tmp_path_factory.mktemp("keywords") / "i", KEYWORDS, lambda key: 0)
    for n in range(DOCUMENTS):
        tags = [f"t{number}" for number in range(rng.choice([1, 2, 9, 30]))] + rng.choice([[], ["x"], ["y"], ["x", "y"]])
        index.write({b"k%03d" % n: (json.dumps({"tag": tags, "n": rng.randrange(3)}).encode(), 0)})
    index.commit(1)
    yield index
    index.discard_changes()


KEYWORDS = {"tag": "keyword", "n": "integer"}


@pytest.mark.parametrize("average", [0.5, 12.0, 500.0])
@pytest.mark.parametrize("text", ["tag:x", "tag:x^3 -n:2", "tag:x OR tag:y", "tag:x OR n:1", "tag:x^0.2 AND (n:1 OR n:0)"])
def test_keywords_beside_each_other_and_beside_constants_are_in_their_right_order(keywords, text, average):
    shipped = TermStatistics(8_000, {"tag": int(8_000 * average)}, {"tag": {"x": 2_000, "y": 3_500}})

    def page(limit):
        request = ShardSearch(0, 1, 1, text, [], limit, statistics=shipped)
        plan, fields = SearchPlan(request, KEYWORDS), keywords.fields
        compiled = plan.compiled(keywords.compiler, fields, keywords.searcher(), shipped, lambda: None)
        found = weighed(compiled, keywords.statistics, request, lambda query: query, TOKEN_SLOTS - 1, lambda: None)
        view = IndexView(keywords.searcher(), keywords.fields, KEYWORDS, keywords.parse, exact=found.exact)
        return [(each.score, each.key) for each in view.page(found.query, BY_SCORE, limit).found]

    everything = page(DOCUMENTS)
    assert everything == sorted(everything, key=lambda each: (-each[0], each[1]))
    assert page(60) == everything[:60]


TWO_TEXTS = {"title": "text", "body": "text"}


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Documents with one length, whose best field by the shard's own averages is the title, and by others the body."""
    rng = random.Random(3)
    index = TextIndex.create(tmp_path_factory.mktemp("twins") / "i", TWO_TEXTS, lambda key: 0)
    for n in range(200):
        body = " ".join((["one"] * rng.randint(0, 9) + ["x"] * 30)[:30])
        index.write({b"k%03d" % n: (json.dumps({"title": "one x x x", "body": body}).encode(), 0)})
    for n in range(1_500):
        index.write({b"z%04d" % n: (json.dumps({"title": "x " * 40, "body": "x"}).encode(), 0)})
    index.commit(1)
    yield index
    index.discard_changes()


def test_the_best_of_several_scores_is_found_beyond_the_first_documents_too(twins):
    counts = {"title": {"one": 9_000}, "body": {"one": 9_000}}
    shipped = TermStatistics(10_000, {"title": 10_000, "body": 4_000_000}, counts)
    request = ShardSearch(0, 1, 1, "one", [], 1, statistics=shipped)
    plan, searcher = SearchPlan(request, TWO_TEXTS), twins.searcher()
    compiled = plan.compiled(twins.compiler, twins.fields, searcher, shipped, lambda: None)
    found = weighed(compiled, twins.statistics, request, lambda query: query, TOKEN_SLOTS - 1, lambda: None)
    hits = searcher.search(found.query, 1_000).hits
    numbered, parts = found.exact.numbered
    scores = Bm25(shipped, parts)
    right = {address.doc: scores.score(explained(numbered, searcher, address)) for _, address in hits}
    scored = found.exact.scored(hits)
    assert {address.doc: score for score, address in scored} == right
    assert len(set(right.values())) > 5
    assert ALONE_MAX < found.exact._explained < len(hits)
