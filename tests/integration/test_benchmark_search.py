"""The parts of the search benchmark, on a corpus of a few hundred texts and for less than a second each."""

import sysconfig
from pathlib import Path

import pytest

from benchmarks.search.__main__ import updated
from benchmarks.search.accuracy import best_pages, judge, round_trip_figure
from benchmarks.search.corpus import corpus
from benchmarks.search.costs import rate_figures, rates
from benchmarks.search.counting import aggregating, counting
from benchmarks.search.floor import shard_indexes
from benchmarks.search.freshness import write_to_visible
from benchmarks.search.isolation import Beside, isolation
from benchmarks.search.loaded import running, write
from benchmarks.search.paging import paging
from benchmarks.search.queries import sample_queries, vocabulary
from benchmarks.search.reference import Reference
from benchmarks.turns import Pace

TEXTS = 600


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    root = Path(sysconfig.get_path("stdlib"))  # The first modules of it, by name.
    found = corpus(TEXTS, tmp_path_factory.mktemp("no-manuals"), [root])
    assert len(found) == TEXTS
    return found


@pytest.fixture(scope="module")
def documents(texts):
    return {text.key: text.document for text in texts}


@pytest.fixture(scope="module")
def queries(texts):
    return sample_queries(vocabulary(str(text.document["doc"]) for text in texts), 40, seed=1)


@pytest.fixture
async def loaded(tmp_path, documents):
    async with running(tmp_path, replicas=1, leaves=1, shards=2) as cluster:
        await write(cluster.texts, documents)
        yield cluster


async def test_every_part_measures_what_it_says(loaded, documents, queries):
    reference = Reference(documents)
    judged = await judge(loaded.texts, best_pages(reference, queries))
    assert (judged.asked, judged.incomplete, judged.wrong_totals) == (len(queries), 0, [])
    assert [figure.value for figure in await counting(loaded.texts, reference, queries[:3], len(documents))] == [0]
    assert [figure.value for figure in await aggregating(loaded.texts, documents)] == [0]
    assert [figure.value for figure in await paging(loaded.texts, documents, page_hits=70)] == [0]
    others = {key: document | {"words": 1} for key, document in documents.items()}
    assert [figure.is_met for figure in await paging(loaded.texts, others, page_hits=70)] == [False]
    indexes = await shard_indexes(loaded, documents)
    assert indexes.documents == len(documents)
    for query in queries:
        found, total = indexes.answer(query, 10)
        assert (len(found), total) == (min(10, total), reference.best(query, 10).total)
    compared = await rates(loaded, reference, indexes, queries, Pace(turns=1, seconds=0.05))
    assert all(figure.value for figure in rate_figures(compared))
    assert len(await write_to_visible(loaded.texts, writes=4, every_s=0.01)) == 4
    beside = await isolation(loaded.texts, queries, long_s=0.05, turns=1)
    assert beside.long
    assert not beside.refused
    assert [figure.name for figure in beside.figures()][-1].startswith("a long search among")


async def test_four_shards_rank_as_the_reference_also_after_updates(tmp_path, texts, documents, queries):
    changed = updated(texts, 0.2, seed=1)
    assert len(changed) == TEXTS // 5
    async with running(tmp_path, replicas=1, leaves=1, shards=4) as cluster:
        await write(cluster.texts, documents)
        right = best_pages(Reference(documents), queries)
        judged = await judge(cluster.texts, right)
        assert judged.different == []
        assert judged.statistics == {"exact": len(queries)}
        assert round_trip_figure(await judge(cluster.texts, right)).is_goal_met
        assert (await judge(cluster.texts, right, statistics="local")).different
        await write(cluster.texts, changed)
        right = best_pages(Reference({**documents, **changed}), queries)
        for _ in range(20):  # Until no answer rests on statistics from before: they are heard with other answers.
            judged = await judge(cluster.texts, right)
            if judged.statistics == {"exact": len(queries)}:
                break
        assert judged.different == []


def test_a_part_that_found_no_long_search_has_no_ratio_to_show():
    beside = Beside(alone=[0.001], beside=[0.003])
    assert [figure.value for figure in beside.figures()] == [None, pytest.approx(3.0)]
