"""Merging, case by case; that it equals a sort is in tests/property/test_merge_properties.py."""

import pytest

from kvshard.model import ShardHit, ShardSearchReply, SortValue
from kvshard.scatter.merge import MergedHits, merge_facet, merge_hits, used_up
from kvshard.sorting import parse_sort


def hit(key: str, score: float = 1.0, *values: SortValue, size: int = 1) -> ShardHit:
    return ShardHit(key.encode(), score, b"x" * size, 1, list(values))


def reply(
    *hits: ShardHit, total: int | None = None, has_more: bool = False, complete_to: float | None = None
) -> ShardSearchReply:
    found = len(hits) if total is None else total
    return ShardSearchReply(list(hits), found, 100, has_more=has_more or complete_to is not None, complete_to=complete_to)


def merged(replies: dict[int, ShardSearchReply], sort: str = "", limit: int = 10, max_bytes: int = 1_000) -> MergedHits:
    return merge_hits(replies, parse_sort(sort), limit, max_bytes)


def test_hits_by_score_then_key() -> None:
    page = merged({0: reply(hit("b", 2.0), hit("a", 1.0)), 1: reply(hit("a2", 2.0), hit("z", 0.5))}, limit=3)
    assert [(shard, each.key) for shard, each in page.hits] == [(1, b"a2"), (0, b"b"), (0, b"a")]
    assert page.has_more
    assert not page.is_cut


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("year", "bacde"),
        ("-year", "cabde"),
        ("year:missing_first", "debac"),
        ("-year:missing_first", "decab"),
    ],
)
def test_missing_values_are_last_or_first_in_either_direction(sort: str, expected: str) -> None:
    hits = {"a": hit("a", 0, 2), "b": hit("b", 0, 1), "c": hit("c", 0, 3), "d": hit("d", 0, None), "e": hit("e", 0, None)}
    first = [hits[key] for key in expected if key in "ace"]
    second = [hits[key] for key in expected if key in "bd"]
    page = merged({0: reply(*first), 1: reply(*second)}, sort)
    assert b"".join(each.key for _, each in page.hits).decode() == expected


def test_several_keys_each_in_its_direction() -> None:
    first = reply(hit("1", 0, "a", 5), hit("2", 0, "a", 1), hit("3", 0, "b", 9))
    second = reply(hit("4", 0, "a", 7), hit("5", 0, "a", 5), hit("6", 0, None, 9))
    page = merged({0: first, 1: second}, "tag,-year")
    assert [each.key for _, each in page.hits] == [b"4", b"1", b"5", b"2", b"3", b"6"]


def test_sort_by_text_descending() -> None:
    page = merged({0: reply(hit("1", 0, "pear"), hit("2", 0, "fig")), 1: reply(hit("3", 0, "kiwi"))}, "-tag")
    assert [each.sort_values for _, each in page.hits] == [["pear"], ["kiwi"], ["fig"]]


def test_page_ends_where_a_shard_kept_hits_back() -> None:
    """What the other has behind that may come after what this one has not delivered."""
    page = merged({0: reply(hit("a", 3.0), has_more=True), 1: reply(hit("b", 2.0))})
    assert [each.key for _, each in page.hits] == [b"a"]
    assert (page.has_more, page.is_cut, page.is_short) == (True, True, True)
    full = merged({0: reply(hit("a", 3.0), has_more=True), 1: reply(hit("b", 2.0))}, limit=1)
    assert (full.has_more, full.is_cut) == (True, False)


def test_page_of_a_shard_that_kept_everything_back_is_empty() -> None:
    page = merged({0: reply(has_more=True), 1: reply(hit("b", 2.0))})
    assert (page.hits, page.has_more) == ([], True)


@pytest.mark.parametrize(
    ("complete_to", "limit", "expected", "is_short"),
    [
        (1.0, 3, "abc", False),
        (1.5, 2, "ab", False),
        (1.5, 3, "ab", True),
        (2.0, 3, "ab", True),
        (2.5, 3, "a", True),
        (0.5, 4, "abc", True),
        (0.5, 3, "abc", False),
    ],
)
def test_what_scores_too_little_to_come_first_is_not_waited_for(
    complete_to: float, limit: int, expected: str, is_short: bool
) -> None:
    replies = {0: reply(hit("a", 3.0), complete_to=complete_to), 1: reply(hit("b", 2.0), hit("c", 1.0))}
    page = merged(replies, limit=limit)
    assert "".join(each.key.decode() for _, each in page.hits) == expected
    assert (page.is_short, page.is_cut, page.has_more) == (is_short, is_short, True)
    assert used_up(replies, parse_sort(""), limit) == [0] * is_short


def test_a_shard_without_a_hit_may_say_that_it_has_none_so_good() -> None:
    page = merged({0: reply(complete_to=1.5), 1: reply(hit("b", 2.0), hit("c", 1.0))})
    assert ([each.key for _, each in page.hits], page.is_short) == ([b"b"], True)


def test_hits_are_used_up_where_the_page_could_go_on() -> None:
    a, b = reply(hit("a1", 9.0), hit("a2", 8.0), has_more=True), reply(hit("b1", 7.0), hit("b2", 1.0), has_more=True)
    wanted = {limit: used_up({0: a, 1: b, 2: reply(hit("c1", 0.5))}, parse_sort(""), limit) for limit in range(1, 7)}
    assert wanted == {1: [], 2: [], 3: [0], 4: [0], 5: [0, 1], 6: [0, 1]}
    assert used_up({0: reply(has_more=True), 1: b}, parse_sort(""), 1) == [0]
    assert used_up({1: reply(hit("b1", 7.0), hit("b2", 1.0))}, parse_sort(""), 9) == []


def test_total_that_promises_more_than_there_is_does_not_page_for_ever() -> None:
    page = merged({0: reply(total=9)})
    assert not page.hits
    assert not page.has_more


def test_page_is_cut_before_it_gets_too_large() -> None:
    page = merged({0: reply(hit("a", 3, size=50), hit("b", 2, size=60))}, max_bytes=100)
    assert [each.key for _, each in page.hits] == [b"a"]
    assert page.is_cut
    assert page.has_more


def test_single_document_beyond_the_bound_is_returned() -> None:
    assert len(merged({0: reply(hit("a", size=500))}, max_bytes=100).hits) == 1


def facets(error: int = 0, **counts: int) -> ShardSearchReply:
    return ShardSearchReply([], 0, 0, {"tag": counts}, {"tag": error})


def test_facets_add_up_and_break_ties_by_value() -> None:
    counted = merge_facet("tag", [facets(b=2, a=1), facets(a=1, c=5)], 2)
    assert counted.values == [("c", 5), ("a", 2)]
    assert counted.error_bound == 0


def test_facet_error_counts_only_shards_that_did_not_list_the_value() -> None:
    counted = merge_facet("tag", [facets(3, a=9), facets(4, a=8, b=7)], 2)
    assert counted.values == [("a", 17), ("b", 7)]
    assert counted.error_bound == 3  # shard 0 may have up to 3 of b, a was counted everywhere


def test_facet_of_nothing() -> None:
    assert merge_facet("tag", [], 5).values == []
