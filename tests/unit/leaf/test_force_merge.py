import json

import pytest
from tantivy import Query

from kvshard.clustermap import Collection
from kvshard.errors import NotReady
from kvshard.query import prepare
from kvshard.sorting import BY_SCORE
from leaf import force_merge as module
from leaf.force_merge import FILLER_MAX_BYTES, LOOK_AGAIN_S, MERGE_WAIT_S, REST_S, ForceMerge, MergeTurn, Stage
from leaf.index_fields import vector_id
from leaf.index_slot import DAMAGE_QUIET_S, WRITER_IDLE_S, Fork, IndexSlot, Phase
from leaf.text_index import IndexFailed, TextIndex
from leaf.text_search import IndexView
from tests.fakes.clock import ManualClock
from tests.fakes.log_source import FakeLogSource

DOCS = Collection("docs", 2, {"body": "text", "n": "integer", "v": "vector(2,l2)"})
FEW, MANY = 16, 40
"""So many documents are written again as a whole; so many are not."""


def stored(n, word="hello"):
    return json.dumps({"body": f"{word} w{n}", "n": n, "v": [n, 1]}).encode()


class House:
    """A shard whose index is stepped by hand."""

    def __init__(self, path, turn=None):
        self.clock, self.source, self.path = ManualClock(), FakeLogSource(), path
        self.turn = turn or MergeTurn()
        self.slot = self.opened()

    def opened(self):
        slot = IndexSlot(self.path, 0, DOCS, self.source, self.clock, self.turn)
        while slot.phase is not Phase.SERVING:
            slot.step(lambda: False)
        return slot

    @property
    def index(self) -> TextIndex:
        return self.slot.index

    def put(self, documents):
        seqno = self.source.write(0, DOCS.id, documents)
        self.slot.step(lambda: False)
        assert self.slot.covers(seqno)
        return seqno

    def fill(self, documents=MANY, commits=4):
        """Some documents in several segments, some of them deleted or replaced."""
        for part in range(commits):
            self.put({b"k%03d" % n: stored(n) for n in range(part, documents, commits)})
        self.put({b"k%03d" % n: stored(n, "other") for n in range(0, documents, 10)} | {b"k001": None})

    def due_in(self):
        due = self.slot.due_at(self.source.applied_seqno(0), 0, 0.5)
        return None if due is None else due - self.clock.monotonic()

    def run_until_idle(self, stop_after=1_000):
        """Step whenever it is due; returns the steps it took."""
        for taken in range(stop_after):
            due_in = self.due_in()
            if due_in is None:
                return taken
            self.clock.advance(max(due_in, 0.0))
            self.slot.step(lambda: False)
        return stop_after


def told(index):
    """What searches see of an index."""
    searcher = index.searcher()
    statistics = index.statistics
    counted = statistics.of({"body": ["hello", "other", "w3"]})
    return found(index), searcher.num_docs, counted, statistics.generation, index.indexed_through


def found(index):
    view = IndexView(index.searcher(), index.fields, index.schema, index.parse)
    pages = []
    for text in ("*", "other", "w3", "n:[5 TO 9]"):
        page = view.page(index.compiler.compile(prepare(text, index.schema), [], None), BY_SCORE, 500)
        pages.append((page.total, sorted(each.key for each in page.found)))
    return pages


def near(index):
    rows = index.vectors["v"]
    return rows.nearest(index.searcher(), Query.exists_query(vector_id("v")), [7.2, 1.0], 3, lambda: None)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(module, "WHOLE_MAX_DOCUMENTS", FEW)


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path / "i")
    yield house
    house.slot.close()


def test_an_index_that_is_quiet_gets_one_segment_without_deleted_documents(house):
    house.fill()
    before, nearest = told(house.index), near(house.index)
    assert house.index.searcher().num_segments > 1
    house.run_until_idle()
    assert [(each.documents, each.deleted) for each in house.index.segments()] == [(MANY - 1, 0)]
    assert house.index.searcher().num_segments == 1
    assert told(house.index) == before
    assert near(house.index) == nearest
    assert not house.slot.has_writer
    again = TextIndex.open(house.path, DOCS.schema, house.source.slot_of)
    assert told(again)[0] == before[0]
    assert again.indexed_through == before[-1]


def test_searches_see_no_difference_at_any_time_nor_after_a_crash(house):
    house.fill()
    before = told(house.index)
    stages = set()
    while (due_in := house.due_in()) is not None:
        house.clock.advance(max(due_in, 0.0))
        house.slot.step(lambda: False)
        stages.add(house.slot._merge.stage)
        assert told(house.index) == before
        crashed = TextIndex.open(house.path, DOCS.schema, house.source.slot_of)
        assert told(crashed)[0] == before[0]
        assert (crashed.indexed_through, crashed.misfits) == (before[-1], {})
    assert stages == set(Stage)


def test_a_leaf_that_stops_in_between_merges_after_its_next_start(house):
    house.fill()
    while house.slot._merge.stage is not Stage.FILLING:
        house.run_until_idle(1)
    house.run_until_idle(2)
    house.slot.close()
    assert len(house.index.segments()) > 1
    house.slot = house.opened()
    assert house.due_in() >= WRITER_IDLE_S - 1, "who starts has other things to do"
    house.run_until_idle()
    assert len(house.index.segments()) == 1


def test_a_write_in_between_is_seen_and_the_merge_comes_after_it(house):
    house.fill()
    while house.slot._merge.stage is not Stage.FILLING:
        house.run_until_idle(1)
    house.run_until_idle(1)
    house.put({b"k000": stored(7, "fresh"), b"k002": None})
    assert house.slot._merge.stage is Stage.NONE
    assert house.turn.take(None, house.clock.monotonic() + 100), "another index has its turn meanwhile"
    house.turn.give_back(None, 0.0)
    assert house.due_in() == pytest.approx(WRITER_IDLE_S)
    seen = told(house.index)
    assert seen[1] == MANY - 2
    house.run_until_idle()
    assert told(house.index) == seen
    assert len(house.index.segments()) == 1


def test_a_write_during_the_merge_counts(house):
    house.fill()
    while house.slot._merge.stage is not Stage.MERGING:
        house.run_until_idle(1)
    assert house.due_in() == pytest.approx(MERGE_WAIT_S)
    house.put(dict.fromkeys(b"k%03d" % n for n in range(0, MANY, 2)))
    seen = told(house.index)
    assert seen[1] == MANY // 2 - 1
    house.run_until_idle()
    assert told(house.index) == seen
    assert len(house.index.segments()) == 1


def test_a_small_index_is_written_again_as_a_whole(house, monkeypatch):
    house.fill(documents=FEW)
    before = told(house.index)
    commits = []
    rewrite = TextIndex.rewrite
    monkeypatch.setattr(TextIndex, "rewrite", lambda *arguments: (commits.append(1), rewrite(*arguments)))
    house.run_until_idle()
    assert len(commits) == 1
    assert [(each.documents, each.deleted) for each in house.index.segments()] == [(FEW - 1, 0)]
    assert told(house.index) == before


def test_what_has_one_segment_is_let_be(house):
    house.put({b"a": stored(1)})
    files = sorted(house.path.rglob("*"))
    assert house.run_until_idle() == 2, "the writer is closed, and a look"
    assert sorted(house.path.rglob("*")) == files
    house.source.write(0, 77, {b"a": b"of another collection"})
    house.slot.step(lambda: False)
    assert house.run_until_idle() <= 1, "nothing has changed here"


def test_what_a_field_does_not_take_is_not_counted_again(house):
    house.fill()
    house.put({b"k00": b'{"n": "none"}', b"k0": b"garbage"})
    house.run_until_idle()
    assert house.index.misfits == {"n": 1, "": 1}
    assert len(house.index.segments()) == 1


def test_only_what_the_index_holds_as_it_is_and_is_short_is_written_again(house, monkeypatch):
    house.fill()
    house.put({b"a": stored(1, "word " * FILLER_MAX_BYTES)})
    later = {b"b": stored(2), b"k000": stored(3, "later")}
    house.source.shards[0].documents |= {(DOCS.id, key): (value, 99, 0) for key, value in later.items()}
    house.source.shards[0].documents[DOCS.id, b"c"] = (stored(4), 1, 0)  # never written: tantivy failed at it
    written = []
    rewrite = TextIndex.rewrite

    def noted(index, documents):
        written.extend(key for key, *_ in documents)
        rewrite(index, documents)

    monkeypatch.setattr(TextIndex, "rewrite", noted)
    before = told(house.index)
    house.run_until_idle()
    assert written
    assert not {b"a", b"b", b"c", b"k000"} & set(written)
    assert told(house.index) == before


def test_documents_that_are_alone_in_their_segments_do_not_keep_it_from_the_rest(house):
    house.put({b"k%03d" % n: stored(n) for n in range(3, MANY)})
    for n in range(3):
        house.put({b"k%03d" % n: stored(n)})
    house.run_until_idle()
    assert [(each.documents, each.deleted) for each in house.index.segments()] == [(MANY, 0)]


@pytest.mark.parametrize("error", [IndexFailed("no space left"), NotReady("being filled"), OSError("gone")])
def test_a_failure_leaves_all_as_it_is_until_something_is_written(house, monkeypatch, error):
    house.fill()
    before = told(house.index)

    def fails(*arguments):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(TextIndex, "rewrite", fails)
        steps = house.run_until_idle()
    assert steps < 5
    assert told(house.index) == before
    assert house.slot.phase is Phase.SERVING
    house.put({b"new": stored(5)})
    house.run_until_idle()
    assert len(house.index.segments()) == 1


def test_damage_leads_to_a_rebuild(house):
    house.fill()
    while house.index.has_writer:
        house.run_until_idle(1)
    (house.path / "segments" / "meta.json").unlink()
    house.run_until_idle()
    assert house.slot.phase is Phase.SERVING
    assert house.index.searcher().num_docs == MANY - 1


def test_a_full_disk_is_left_to_those_who_need_it(house, monkeypatch):
    house.fill()
    monkeypatch.setattr(module, "FREE_BYTES", 1 << 62)
    segments = house.index.segments()
    house.run_until_idle()
    assert len(house.index.segments()) == len(segments)


def test_a_split_in_between_goes_first_and_what_has_left_is_merged_away(house):
    house.fill()
    while house.slot._merge.stage is not Stage.FILLING:
        house.run_until_idle(1)
    child = split(house)
    assert house.slot._merge.stage is Stage.NONE
    house.run_until_idle()
    assert house.index.searcher().num_docs + child.searcher().num_docs == MANY - 1
    assert house.index.searcher().num_docs == len(house.source.shards[0].documents)
    assert [each.deleted for each in house.index.segments()] == [0]


def test_what_has_left_a_merged_index_is_merged_away(house):
    house.fill()
    house.run_until_idle()
    split(house)
    house.run_until_idle()
    left = len(house.source.shards[0].documents)
    assert [(each.documents, each.deleted) for each in house.index.segments()] == [(left, 0)]


def split(house):
    """Let half of the slots leave, with a fork of the index; returns that."""
    seqno = house.source.split(0, 7, 1 << 15)
    path = house.path.with_name("child")
    house.slot.split(Fork(path, 7, 1 << 15, (1 << 16) - 1, seqno))
    while house.slot.forks:
        house.slot.step(lambda: False)
    return TextIndex.open(path, DOCS.schema, house.source.slot_of)


def test_an_index_that_was_rebuilt_is_looked_at_again(house):
    house.fill()
    house.run_until_idle()
    assert house.due_in() is None
    house.clock.advance(DAMAGE_QUIET_S)
    assert house.slot.report_damage(house.index)
    while house.slot.phase is not Phase.SERVING or house.slot._damaged:
        house.slot.step(lambda: False)
    assert "not wanted" not in repr(house.slot._merge)


def test_one_index_at_a_time_and_then_a_rest(tmp_path):
    turn = MergeTurn()
    first, second = House(tmp_path / "a", turn), House(tmp_path / "b", turn)
    second.clock = second.slot._clock = second.slot._merge._clock = first.clock
    for each in (first, second):
        each.fill()
        each.clock.advance(WRITER_IDLE_S)
        each.slot.step(lambda: False)
        assert not each.slot.has_writer
    while first.slot._merge.stage is not Stage.MERGING:
        first.run_until_idle(1)
    assert second.due_in() == LOOK_AGAIN_S
    second.slot._merge.step(second.index)
    assert second.slot._merge.stage is Stage.NONE
    first.run_until_idle()
    assert REST_S <= second.due_in() < 2 * REST_S
    second.run_until_idle()
    assert len(second.index.segments()) == 1
    first.slot.close()
    second.slot.close()


def test_who_is_closed_gives_its_turn_back(house):
    house.fill()
    while house.slot._merge.stage is not Stage.FILLING:
        house.run_until_idle(1)
    assert not house.turn.take(self := object(), 1e9)
    house.slot.close()
    assert house.turn.take(self, 1e9)


def test_what_is_not_the_documents_as_they_are_is_let_be(house):
    house.fill()
    house.source.shards[0].applied -= 1
    assert house.run_until_idle() < 5
    assert len(house.index.segments()) > 1


def test_repr():
    merge = ForceMerge(3, 2, FakeLogSource(), ManualClock(), MergeTurn())
    assert repr(merge) == "ForceMerge(shard 3, none, 0 documents left, wanted)"
    assert "rest until" in repr(MergeTurn())
