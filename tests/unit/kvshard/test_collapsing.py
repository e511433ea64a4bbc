"""Groups of a collapsed search: which were shown, how large they are, and that a page has the first hit of each."""

from kvshard.collapsing import GroupSize, group_digest, group_sizes, shown_after, shown_digests
from kvshard.model import ShardHit, ShardSearchReply, SortValue
from kvshard.scatter.merge import merge_hits
from kvshard.sorting import BY_SCORE


def hit(key: str, score: float, group: SortValue, size: int = 1) -> ShardHit:
    return ShardHit(key.encode(), score, b"", 1, group=group, group_size=size)


def reply(*hits: ShardHit, has_more: bool = False) -> ShardSearchReply:
    return ShardSearchReply(list(hits), 100, 100, has_more=has_more)


def test_each_value_has_a_digest_of_its_own() -> None:
    values = [None, "None", "", 0, "0", 1, -1, "a"]
    assert len({group_digest(value) for value in values}) == len(values)
    shown = shown_after(shown_after(b"", [hit("a", 1, "x")]), [hit("b", 1, None), hit("c", 1, 7)])
    assert shown_digests(shown) == {group_digest("x"), group_digest(None), group_digest(7)}
    assert shown_digests(b"") == set()


def test_the_first_hit_of_each_group_is_on_the_page() -> None:
    replies = {
        0: reply(hit("a", 9, "x"), hit("b", 5, "y"), hit("c", 1, None)),
        1: reply(hit("d", 8, "x"), hit("e", 7, "z"), hit("f", 6, "y"), hit("g", 2, None)),
    }
    page = merge_hits(replies, BY_SCORE, 10, 1_000, is_collapsed=True)
    assert [each.key for _, each in page.hits] == [b"a", b"e", b"f", b"g"]
    assert not page.has_more
    page = merge_hits(replies, BY_SCORE, 2, 1_000, is_collapsed=True)
    assert [each.key for _, each in page.hits] == [b"a", b"e"]
    assert page.has_more


def test_sizes_are_exact_where_no_shard_may_have_more_of_a_group() -> None:
    replies = {
        0: reply(hit("a", 9, "x", 10), hit("b", 5, "y", 20)),
        1: reply(hit("d", 8, "x", 1), has_more=True),
    }
    hits = [each for _, each in merge_hits(replies, BY_SCORE, 10, 1_000, is_collapsed=True).hits]
    assert group_sizes(hits, replies) == [GroupSize("x", 11, is_exact=True)], "shard 1 may have better ones than b"
    sizes = group_sizes(replies[0].hits, replies)
    assert sizes == [GroupSize("x", 11, is_exact=True), GroupSize("y", 20, is_exact=False)]
