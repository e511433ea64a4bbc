"""A corpus in shards, with all that an update leaves behind, is ranked as one fresh index of it would be."""

import json
import shutil
import tempfile
from heapq import merge
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvshard import hashing
from kvshard.model import ShardSearch, TermStatistics
from kvshard.query import prepare
from kvshard.sorting import parse_sort
from leaf import text_search
from leaf.joint_best import JointBest
from leaf.scoring import weighed
from leaf.search_plan import SearchPlan
from leaf.text_index import TextIndex
from leaf.text_search import IndexView
from leaf.weighting import Weighting

SCHEMA = {"title": "text", "body": "text(english)", "tag": "keyword"}
WORDS = ["alpha", "beta", "gamma", "delta", "running", "runs", "a", "b"]
QUERIES = [
    "alpha",
    "alpha beta",
    "alpha beta^2.5 gamma -delta",
    'title:alpha OR "beta gamma"',
    '"alpha beta" "gamma delta"^3 a',
    "+runs title:run_a tag:x",
    "tag:x",
    "tag:x OR tag:y",
    "(alpha OR beta^0.1) AND (gamma OR tag:y OR del*)",
    "runn* alpha",
    "nothing alpha",
]

texts = st.lists(st.sampled_from(WORDS), min_size=0, max_size=60).map(" ".join)
documents = st.fixed_dictionaries(
    {},
    optional={
        "title": texts,
        "body": st.one_of(texts, st.lists(texts, max_size=3)),
        "tag": st.lists(st.sampled_from(["x", "y", "z"]), max_size=3),
    },
)
changes = st.dictionaries(st.integers(0, 80).map(lambda number: b"k%02d" % number), st.none() | documents, max_size=60)


def slot_of(key):
    return hashing.slot(key, 0)


BY_SCORE = parse_sort("")


def search(indexes, text, skipped, limit):
    """(key, score) of the hits after those skipped, over all shards, found page by page."""
    node = prepare(text, SCHEMA)
    shipped = shipped_of(indexes, node)
    found = []
    for index in indexes:
        ranked, has_one_score = ranked_by(index, text, limit, shipped)
        view = IndexView(index.searcher(), index.fields, SCHEMA, index.parse, exact=ranked.exact)
        rows, after = [], None
        while len(rows) < skipped + limit:
            page = view.page(ranked.query, BY_SCORE, limit, after, len(rows), has_one_score)
            rows += page.found
            if not page.has_more:
                break
            after = page.found[-1].after
        assert view.page(ranked.query, BY_SCORE, len(rows) or 1, None, 0, has_one_score).found == rows
        found.append([(-each.score, each.key) for each in rows])
        assert ranked.exact is None or not ranked.exact.is_bounded
    return [(key, -score) for score, key in merge(*found)][skipped : skipped + limit]


def ranked_by(index, text, limit, shipped):
    """The query with its scores, and whether all have the same."""
    request = ShardSearch(0, 1, 1, text, [], limit, statistics=shipped)
    compiled = SearchPlan(request, SCHEMA).compiled(index.compiler, index.fields, index.searcher(), shipped, lambda: None)
    ranked = weighed(compiled, index.statistics, request, lambda query: query, (1 << 16) - 1, lambda: None)
    return ranked, compiled.has_one_score


def found_jointly(indexes, text, limit, least):
    """(key, score) of the first hits over all shards, where each leg leaves out what the others make superfluous.

    least: hits that a leg may return; a page that the legs together cannot fill is not looked at.
    """
    shipped, best, legs = shipped_of(indexes, prepare(text, SCHEMA)), JointBest(limit), []
    for shard, index in enumerate(indexes):
        ranked, has_one_score = ranked_by(index, text, limit, shipped)
        view = IndexView(index.searcher(), index.fields, SCHEMA, index.parse, exact=ranked.exact)
        scores = None if has_one_score else view.look_ahead(ranked.query, least, lambda: best.bar)
        best.note(shard, scores or ())
        legs.append((shard, view, ranked, has_one_score))
    found = []
    for shard, view, ranked, has_one_score in legs:
        page = view.page(ranked.query, BY_SCORE, least, None, 0, has_one_score)
        best.note(shard, [each.score for each in page.found])
        alone = IndexView(view.searcher, indexes[shard].fields, SCHEMA, indexes[shard].parse, exact=ranked.exact)
        whole = alone.page(ranked.query, BY_SCORE, 100, None, 0, has_one_score)
        rows = [(-each.score, each.key) for each in page.found]
        assert whole.found[: len(rows)] == page.found
        assert whole.total == page.total
        if page.complete_to is not None:
            assert page.has_more
            assert all(each.score < page.complete_to for each in whole.found[len(rows) :])
        else:
            assert page.has_more == (len(whole.found) > len(rows))
            assert not page.has_more or len(rows) == least
        found.append(rows)
    return [(key, -score) for score, key in merge(*found)][:limit]


def shipped_of(indexes, node):
    parts = []
    for index in indexes:
        weighting = Weighting(index.fields)
        index.compiler.scored(node, weighting)
        parts.append(index.statistics.of(weighting.terms))
    fields = {name for part in parts for name in part.counts}
    return TermStatistics(
        sum(part.documents for part in parts),
        {name: sum(part.tokens[name] for part in parts) for name in fields},
        {name: {term: sum(part.counts[name][term] for part in parts) for term in parts[0].counts[name]} for name in fields},
    )


@pytest.fixture(scope="module")
def root():
    path = Path(tempfile.mkdtemp())
    yield path
    shutil.rmtree(path)


def write(index, held, through):
    index.write({key: None if document is None else (json.dumps(document).encode(), 0) for key, document in held.items()})
    index.commit(through)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(changes, min_size=1, max_size=4),
    st.integers(1, 4),
    st.lists(st.sampled_from(QUERIES), min_size=3, max_size=3, unique=True),
    st.integers(0, 15),
    st.sampled_from([1, 3, 10]),
    st.booleans(),
)
def test_shards_rank_as_one_index_of_what_is_live(root, history, count, queries, offset, limit, merges):
    shards = [TextIndex.create(root / f"shard-{number}", SCHEMA, slot_of) for number in range(count)]
    live = {}
    for through, step in enumerate(history, 1):
        for number, index in enumerate(shards):
            write(index, {key: document for key, document in step.items() if slot_of(key) % count == number}, through)
        live |= step
    live = {key: document for key, document in live.items() if document is not None}
    if merges:
        shards[0].close_writer()
    reference = TextIndex.create(root / "reference", SCHEMA, slot_of)
    write(reference, live, 1)
    for text in queries:
        right = search([reference], text, offset, limit)
        assert search(shards, text, offset, limit) == right
        assert found_jointly(shards, text, limit, limit) == search(shards, text, 0, limit)
        found_jointly(shards, text, limit, 1 + limit // 3)
        check_against_tantivy(reference, text, offset, limit, right)
    for index in (*shards, reference):
        index.discard_changes()


def check_against_tantivy(reference, text, offset, limit, right):
    """The scores are tantivy's own, but for its rounding."""
    node = prepare(text, SCHEMA)
    view = IndexView(reference.searcher(), reference.fields, SCHEMA, reference.parse)
    query = reference.compiler.compile(node, [], None)
    own = view.page(query, BY_SCORE, offset + limit, None, 0, reference.compiler.has_one_score(node)).found[offset:]
    assert [each.score for each in own] == pytest.approx([score for _, score in right], rel=1e-5)


def test_a_window_that_is_too_small_is_said(root, monkeypatch):
    monkeypatch.setattr(text_search, "TIE_WINDOW", 40)
    index = TextIndex.create(root / "bounded", SCHEMA, slot_of)
    write(index, {b"k%03d" % number: {"title": "alpha"} for number in range(100)}, 1)
    with pytest.raises(AssertionError):
        search([index], "alpha", 0, 10)
    index.discard_changes()
