import json

import pytest

from kvshard.clustermap import TOKEN_SLOTS, Collection
from kvshard.errors import Cancelled, DeadlineExceeded
from kvshard.model import ShardSearch, TermStatistics
from leaf.index_search import SearchJob
from leaf.leg_group import LegGroups
from leaf.precedence import FREE_TRACK, FreeTrack, RunApart
from leaf.search_plan import SearchPlans
from leaf.text_index import IndexFailed, TextIndex
from leaf.unseen import UnseenWrites
from tests.fakes.clock import ManualClock

SCHEMA = {"body": "text", "title": "text", "tag": "keyword"}
COLLECTION = Collection("docs", 7, SCHEMA)
SHARDS, DOCUMENTS, TOP = 3, 40, 5


def document(shard, number):
    """The lower the number, the better it matches; in each shard as in the others."""
    return {"body": " ".join(["word"] * (DOCUMENTS - number) + [f"n{number}"] * shard), "title": f"t{number % 3}", "tag": "x"}


def key_of(shard, number):
    return b"%d-%02d" % (shard, number)


class FakeSource:
    """Stored documents; gone: keys that were deleted since the index was refreshed."""

    def __init__(self):
        self.gone = set()
        self.reads = 0

    def last_slot(self, shard):
        return TOKEN_SLOTS - 1

    def has_expired_unswept(self, shard, collection_id, now_ms):
        return False

    def live_documents(self, shard, collection_id):
        return DOCUMENTS

    def read_documents(self, shard, collection_id, keys):
        self.reads += len(keys)
        return [None if key in self.gone else (b'{"key": "%s"}' % key, 1, 0) for key in keys]


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    made = []
    for shard in range(SHARDS):
        index = TextIndex.create(tmp_path_factory.mktemp("legs") / str(shard), SCHEMA, lambda key: 0)
        documents = {key_of(shard, n): (json.dumps(document(shard, n)).encode(), 0) for n in range(DOCUMENTS)}
        index.write(documents)
        index.commit(1)
        made.append(index)
    yield made
    for index in made:
        index.discard_changes()


@pytest.fixture
def source():
    return FakeSource()


def statistics_of(indexes):
    parts = [index.statistics.of({"body": ["word"], "title": ["word"]}) for index in indexes]
    whole = [
        sum(each) for each in zip(*[(p.documents, p.tokens["body"], p.counts["body"]["word"]) for p in parts], strict=True)
    ]
    titles = sum(part.tokens["title"] for part in parts)
    return TermStatistics(whole[0], {"body": whole[1], "title": titles}, {"body": {"word": whole[2]}, "title": {"word": 0}})


def legs(indexes, source, plans=None, clock=None, track=FREE_TRACK, **asked):
    """The jobs of one search, bound to their indexes as the indexer binds them."""
    clock, groups = clock or ManualClock(), LegGroups(clock or ManualClock())
    plans = plans or SearchPlans()
    shipped = statistics_of(indexes)
    jobs = []
    for shard, index in enumerate(indexes):
        request = ShardSearch(shard, 1, 7, "word", [], TOP, **{"together": TOP, "statistics": shipped, **asked})
        job = SearchJob(request, COLLECTION, source, clock, clock.monotonic() + 10.0, UnseenWrites(), plans)
        job.bind(index, groups, lambda ended: None, track)
        jobs.append(job)
    return jobs


def page(replies):
    hits = sorted((-hit.score, hit.key) for reply in replies for hit in reply.hits)
    return [(key, -score) for score, key in hits][:TOP]


def test_legs_that_run_together_give_the_page_that_each_alone_would_give(indexes, source):
    alone = [job.run() for job in legs(indexes, source, together=0)]
    read_alone, source.reads = source.reads, 0
    together = [job.run() for job in legs(indexes, source)]
    assert page(together) == page(alone)
    assert [reply.total for reply in together] == [reply.total for reply in alone]
    assert sum(len(reply.hits) for reply in together) < sum(len(reply.hits) for reply in alone)
    assert source.reads < read_alone
    for reply, whole in zip(together, alone, strict=True):
        assert whole.complete_to is None
        assert reply.hits == whole.hits[: len(reply.hits)]
        assert reply.has_more
        if len(reply.hits) < len(whole.hits):
            assert reply.complete_to is not None
            assert all(hit.score < reply.complete_to for hit in whole.hits[len(reply.hits) :])


class OnceApart(FreeTrack):
    """Has the leg that runs begin anew when it, or one of the others in its place, has looked up so often."""

    def __init__(self, looks):
        self.looks = looks

    def between(self, patient_until):
        self.looks -= 1
        if self.looks == 0:
            raise RunApart


def test_a_leg_that_begins_anew_wherever_it_is_gives_the_same_answer(indexes, source):
    def answer(job):
        try:
            return job.run()
        except RunApart:
            return job.run()

    right = [job.run() for job in legs(indexes, source)]
    looks = 0
    while True:
        looks += 1
        track = OnceApart(looks)
        found = [answer(job) for job in legs(indexes, source, track=track)]
        assert page(found) == page(right)
        assert [reply.total for reply in found] == [reply.total for reply in right]
        if track.looks > 0:
            break
    assert looks > 3 * len(indexes)


def test_a_leg_on_its_own_is_whole_although_it_might_be_together(indexes, source):
    (reply,) = [job.run() for job in legs(indexes[:1], source)]
    assert len(reply.hits) == TOP


@pytest.mark.parametrize("other", [{"sort": "tag"}, {"query": "*"}, {"statistics": None}, {"limit": 0}, {"query": "tag:x"}])
def test_legs_whose_order_does_not_rest_on_right_scores_are_whole(indexes, source, other):
    jobs = legs(indexes, source)
    jobs = [
        SearchJob(ShardSearch(s, 1, 7, **{"query": "word", "filters": [], "limit": TOP, "together": TOP, **other}), *rest)
        for s, rest in enumerate([(COLLECTION, source, ManualClock(), 2_000.0, UnseenWrites())] * len(jobs))
    ]
    groups = LegGroups(ManualClock())
    for job, index in zip(jobs, indexes, strict=True):
        job.bind(index, groups, lambda ended: None)
    for reply in [job.run() for job in jobs]:
        assert len(reply.hits) == other.get("limit", TOP)


@pytest.mark.parametrize("gone", [1, 2, 4])
def test_where_documents_are_gone_it_shows_that_others_may_be_missing(indexes, source, gone):
    best = [key for key, _ in page([job.run() for job in legs(indexes, source)])]
    source.gone = set(best[:gone])
    replies = [job.run() for job in legs(indexes, source)]
    found, right = page(replies), page([job.run() for job in legs(indexes, source, together=0)])
    for reply in replies:
        if reply.complete_to is not None:
            surely = [
                each for each in right if each[1] >= reply.complete_to and each[0].startswith(b"%d-" % replies.index(reply))
            ]
            assert set(surely) <= {(hit.key, hit.score) for hit in reply.hits}
    if len(found) == TOP and found[-1][1] >= max(reply.complete_to or 0.0 for reply in replies):
        assert found == right


def test_what_fails_in_one_leg_fails_that_one_alone(indexes, source):
    jobs = legs(indexes, source)
    jobs[1].cancel()
    first = jobs[0].run()
    with pytest.raises(Cancelled):
        jobs[1].run()
    last = jobs[2].run()
    alone = [job.run() for job in legs(indexes, source, together=0)]
    assert page([first, last]) == page([alone[0], alone[2]])


def test_a_leg_may_run_again_in_another_index(indexes, source):
    job = legs(indexes, source)[0]
    job.run()
    job.bind(indexes[1], LegGroups(ManualClock()), lambda ended: None)
    assert job.run().hits[0].key == key_of(1, 0)


def test_a_leg_whose_deadline_passes_while_others_look_fails(indexes, source):
    clock = ManualClock()
    jobs = legs(indexes, source, clock=clock)
    jobs[0].run()
    clock.advance(11.0)
    with pytest.raises(DeadlineExceeded):
        jobs[1].run()


def test_a_damaged_index_fails_its_own_leg(indexes, source, monkeypatch):
    jobs = legs(indexes, source)
    monkeypatch.setattr(jobs[1], "_begin", lambda index: (_ for _ in ()).throw(IndexFailed("gone", is_damage=True)))
    jobs[0].run()
    with pytest.raises(IndexFailed):
        jobs[1].run()


def test_each_leg_looks_once(indexes, source, monkeypatch):
    looked, begin = [], SearchJob._begin

    def noted(job, index):
        looked.append(index)
        return begin(job, index)

    monkeypatch.setattr(SearchJob, "_begin", noted)
    for job in legs(indexes, source):
        job.run()
    assert looked == indexes
