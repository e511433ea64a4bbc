"""Merging, case by case; that it equals a sort is in tests/property/test_merge_properties.py."""

import pytest

from kvshard.model import ShardHit, ShardSearchReply
from kvshard.scatter.merge import merge_facet, merge_hits


def hit(key: str, score: float = 1.0, rank: int = 1, sort_value: int | float | str | None = None, size: int = 1) -> ShardHit:
    return ShardHit(key.encode(), score, b"x" * size, 1, rank, sort_value)


def reply(*hits: ShardHit, total: int | None = None) -> ShardSearchReply:
    return ShardSearchReply(list(hits), len(hits) if total is None else total, 100)


def test_hits_by_score_then_key() -> None:
    replies = {0: reply(hit("b", 2.0, 1), hit("a", 1.0, 2)), 1: reply(hit("a2", 2.0, 1), hit("z", 0.5, 2))}
    page = merge_hits(replies, {}, "", 3, 1_000)
    assert [(shard, each.key) for shard, each in page.hits] == [(1, b"a2"), (0, b"b"), (0, b"a")]
    assert page.offsets == {0: 2, 1: 1}
    assert page.has_more


@pytest.mark.parametrize(
    ("sort", "expected"), [("year", [b"b", b"a", b"c", b"d", b"e"]), ("-year", [b"c", b"a", b"b", b"d", b"e"])]
)
def test_sorted_hits_have_missing_values_last(sort: str, expected: list[bytes]) -> None:
    hits = [hit("a", sort_value=2), hit("b", sort_value=1), hit("c", sort_value=3), hit("d"), hit("e")]
    by_key = {each.key: each for each in hits}
    first = [by_key[key] for key in expected if key in (b"a", b"c", b"e")]
    second = [by_key[key] for key in expected if key in (b"b", b"d")]
    page = merge_hits({0: reply(*first), 1: reply(*second)}, {}, sort, 10, 1_000)
    assert [each.key for _, each in page.hits] == expected


def test_sort_by_text_descending() -> None:
    replies = {0: reply(hit("1", sort_value="pear"), hit("2", sort_value="fig")), 1: reply(hit("3", sort_value="kiwi"))}
    page = merge_hits(replies, {}, "-tag", 10, 1_000)
    assert [each.sort_value for _, each in page.hits] == ["pear", "kiwi", "fig"]


def test_page_continues_from_the_ranks_of_the_page_before() -> None:
    replies = {0: reply(hit("c", 1.0, rank=5), total=5), 1: reply(total=2)}
    page = merge_hits(replies, {0: 4, 1: 2}, "", 10, 1_000)
    assert page.offsets == {0: 5, 1: 2}
    assert not page.has_more


def test_total_that_promises_more_than_there_is_does_not_page_for_ever() -> None:
    page = merge_hits({0: reply(total=9)}, {0: 4}, "", 10, 1_000)
    assert not page.hits
    assert not page.has_more


def test_page_is_cut_before_it_gets_too_large() -> None:
    page = merge_hits({0: reply(hit("a", 3, 1, size=50), hit("b", 2, 2, size=60))}, {}, "", 10, 100)
    assert [each.key for _, each in page.hits] == [b"a"]
    assert page.is_cut
    assert page.has_more
    assert page.offsets == {0: 1}


def test_single_document_beyond_the_bound_is_returned() -> None:
    page = merge_hits({0: reply(hit("a", size=500))}, {}, "", 10, 100)
    assert len(page.hits) == 1


def facets(error: int = 0, **counts: int) -> ShardSearchReply:
    return ShardSearchReply([], 0, 0, {"tag": counts}, {"tag": error})


def test_facets_add_up_and_break_ties_by_value() -> None:
    merged = merge_facet("tag", [facets(b=2, a=1), facets(a=1, c=5)], 2)
    assert merged.values == [("c", 5), ("a", 2)]
    assert merged.error_bound == 0


def test_facet_error_counts_only_shards_that_did_not_list_the_value() -> None:
    merged = merge_facet("tag", [facets(3, a=9), facets(4, a=8, b=7)], 2)
    assert merged.values == [("a", 17), ("b", 7)]
    assert merged.error_bound == 3  # shard 0 may have up to 3 of b, a was counted everywhere


def test_facet_of_nothing() -> None:
    assert merge_facet("tag", [], 5).values == []
