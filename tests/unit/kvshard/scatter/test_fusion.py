"""Nearest neighbours of all shards, and their fusion with the hits of a text."""

import pytest

from kvshard.model import ShardHit, ShardSearchReply, changed
from kvshard.scatter.fusion import RANK_CONSTANT, fuse, leg_query, merge_nearest, nearest_record, page_of
from kvshard.scatter.requests import SearchQuery
from kvshard.search_accounts import ScoreExplanation
from kvshard.vectors import K_LEAST, Nearest, vector_of


def hit(key: str, score: float = 0.0) -> ShardHit:
    return ShardHit(key.encode(), score, b"{}", 1)


def query(text: str, limit: int = 2, k: int = 0) -> SearchQuery:
    return SearchQuery(text, [], limit, "", [], 10, [], False, False, None, nearest=Nearest("at", [1.0, 2.0], k))


def reply(hits: list[ShardHit], nearest: list[ShardHit]) -> ShardSearchReply:
    return ShardSearchReply(hits, len(hits), 10, nearest=nearest, nearest_total=7)


def test_the_nearest_of_all_shards_equal_ones_by_key() -> None:
    found = merge_nearest({0: [hit("b", 0.9), hit("d", 0.5)], 1: [hit("a", 0.9), hit("c", 0.7)]}, 3)
    assert [(shard, each.key) for shard, each in found] == [(1, b"a"), (0, b"b"), (1, b"c")]


def test_ranks_are_fused() -> None:
    texts = [(0, hit("a", 30.0)), (0, hit("b", 20.0)), (1, hit("c", 10.0))]
    nearest = [(1, hit("c", 0.9)), (0, hit("a", 0.8)), (1, hit("d", 0.7))]
    fused = fuse(texts, nearest, 10)
    first, second, third, fourth = (1 / (RANK_CONSTANT + rank) for rank in range(1, 5))
    wanted = {b"a": first + second, b"c": third + first, b"b": second, b"d": third}
    assert [each.key for _, each in fused] == [b"a", b"c", b"b", b"d"]
    assert {each.key: each.score for _, each in fused} == pytest.approx(wanted)
    assert fourth < third


def test_equal_sums_by_key_and_the_hit_of_the_text() -> None:
    fused = fuse([(0, hit("b"))], [(1, hit("a"))], 1)
    assert [(shard, each.key) for shard, each in fused] == [(1, b"a")]
    both = fuse([(5, hit("a"))], [(6, hit("a"))], 1)
    assert both[0][0] == 5


class TestLegs:
    def test_the_nearest_alone_need_no_hits(self) -> None:
        for text in ("", " * "):
            leg = leg_query(query(text, limit=30))
            assert (leg.limit, leg.nearest and leg.nearest.k) == (0, 30)

    def test_with_a_query_as_many_hits_as_are_fused(self) -> None:
        leg = leg_query(query("word"))
        assert (leg.limit, leg.nearest and leg.nearest.k) == (K_LEAST, K_LEAST)
        assert leg_query(query("word", k=5)).limit == 5

    def test_the_record(self) -> None:
        record = nearest_record(Nearest("at", [1.0, -2.0], 3))
        assert (record.field, vector_of(record.vector), record.k) == ("at", [1.0, -2.0], 3)


def test_a_page_of_the_nearest_alone() -> None:
    replies = {0: reply([], [hit("a", 0.9), hit("c", 0.1)]), 1: reply([], [hit("b", 0.5)])}
    page, total = page_of(replies, query(""), 1_000_000)
    assert [each.key for _, each in page.hits] == [b"a", b"b"]
    assert total == 14


def test_a_fused_page() -> None:
    replies = {0: reply([hit("t", 9.0)], [hit("a", 0.9)]), 1: reply([hit("a", 8.0)], [])}
    page, total = page_of(replies, query("word"), 1_000_000)
    assert [each.key for _, each in page.hits] == [b"a", b"t"]
    assert total == 2


def test_what_is_explained_tells_the_rank_in_each_order() -> None:
    def told(key: str, text: str) -> ShardHit:
        return changed(hit(key), explanation=ScoreExplanation(0.5, text))

    fused = fuse([(0, told("a", "text")), (1, told("b", "text"))], [(1, told("b", "vector"))], 5)
    first = fused[0][1]
    assert first.explanation is not None
    assert first.key == b"b"
    assert first.explanation.value == first.score == pytest.approx(sum(each.value for each in first.explanation.details))
    assert [each.description for each in first.explanation.details] == [
        "1 / (60 + rank), by the nearest rank 1",
        "1 / (60 + rank), by the query rank 2",
    ]
    assert [each.details[0].description for each in first.explanation.details] == ["vector", "text"]
