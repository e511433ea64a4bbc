"""Pages of several collections merged into one: order, coverage, facets, and what is refused."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshard.aggregations.model import Filter, Stats, Terms
from kvshard.clustermap import Collection
from kvshard.collapsing import DIGEST_BYTES, GroupSize, group_digest, shown_after, shown_digests
from kvshard.errors import InvalidArgument
from kvshard.limits import COLLAPSE_MAX_GROUPS
from kvshard.model import SearchShape, ShardHit
from kvshard.scatter.coverage import Coverage
from kvshard.scatter.merge import MergedFacet
from kvshard.scatter.requests import SearchQuery
from kvshard.search_accounts import LegProfile, ProfiledLeg
from kvshard.vectors import Nearest
from router.ranking import StatisticsUsed
from router.search import Found
from router.several import check_groups, check_several, check_types, merged, query_for, tokens_behind
from router.statistics import Kind

WHOLE = Coverage(True, 10, 10, 2, 2)


def query(**fields) -> SearchQuery:
    base = {"query": "x", "filters": [], "limit": 3, "sort": "", "facets": [], "facet_limit": 2, "highlight": []}
    return SearchQuery(**{**base, "is_refresh_wanted": False, "is_keys_only": False, "shards": None, **fields})


def hit(key: str, score: float = 1.0, value: int | None = None, group: str | None = None) -> ShardHit:
    return ShardHit(key.encode(), score, b"{}", 1, sort_values=[] if value is None else [value], group=group)


def found(*hits: ShardHit, **fields) -> Found:
    return Found(
        **{"hits": [(0, each) for each in hits], "total": 5, "coverage": WHOLE, "facets": [], "next_token": b"", **fields}
    )


def keys(page) -> list[tuple[str, str]]:
    return [(name, each.key.decode()) for name, (_, each) in zip(page.collections, page.rest.hits, strict=True)]


def test_hits_are_merged_by_score_and_equal_ones_by_key_and_by_the_order_of_the_names() -> None:
    one, two = found(hit("a", 3.0), hit("c", 1.0)), found(hit("b", 2.0), hit("c", 1.0))
    page = merged(["one", "two"], [one, two], query(limit=4))
    assert keys(page) == [("one", "a"), ("two", "b"), ("one", "c"), ("two", "c")]
    assert (page.rest.total, page.rest.next_token) == (10, b"")
    assert keys(merged(["one", "two"], [one, two], query(limit=2))) == [("one", "a"), ("two", "b")]


def test_hits_are_merged_by_a_common_sort_field() -> None:
    one, two = found(hit("a", 0, 9), hit("b", 0, 1)), found(hit("c", 0, 5))
    assert keys(merged(["one", "two"], [one, two], query(sort="-n"))) == [("one", "a"), ("two", "c"), ("one", "b")]


def test_a_page_ends_where_a_collection_has_kept_back_what_comes_next() -> None:
    one, two = found(hit("a", 3.0), next_token=b"more"), found(hit("b", 2.0))
    assert keys(merged(["one", "two"], [one, two], query())) == [("one", "a")]


def test_a_page_goes_on_behind_what_was_shown_of_each_collection() -> None:
    def behind(name: str):
        return lambda count: f"{name} {count}".encode()

    one = found(hit("a", 4.0), hit("d", 1.0), token_behind=behind("one"))
    two = found(hit("b", 3.0), hit("c", 2.0), token_behind=behind("two"))
    three = found(hit("e", 0.5), token_behind=behind("three"))
    page = merged(["one", "two", "three"], [one, two, three], query(limit=3))
    assert (page.used, page.has_more) == ([1, 2, 0], True)
    assert tokens_behind(page, [one, two, three], [b"", b"2", b"3"]) == [b"one 1", b"two 2", b"3"]
    assert not merged(["one", "two"], [one, two], query(limit=4)).has_more
    assert merged(["one", "two"], [one, found(hit("b", 3.0), next_token=b"x")], query(limit=4)).has_more
    assert not merged(["one", "two"], [found(), found()], query()).has_more


class TestCollapsed:
    QUERY = query(shape=SearchShape(collapse="tag"))

    def test_a_group_stands_on_the_page_once_by_its_first_hit_in_whatever_collection(self) -> None:
        one = found(hit("a", 5.0, group="x"), hit("d", 2.0, group="y"), hit("f", 0.5, group=None))
        two = found(hit("b", 4.0, group="y"), hit("c", 3.0, group="x"), hit("e", 1.0, group="z"))
        page = merged(["one", "two"], [one, two], self.QUERY)
        assert keys(page) == [("one", "a"), ("two", "b"), ("two", "e")]
        assert page.used == [2, 3], "what was passed over is behind the next page's beginning"
        assert page.has_more
        assert not merged(["one", "two"], [one, two], replace(self.QUERY, limit=4)).has_more

    def test_a_page_ends_where_all_hits_of_a_collection_that_has_more_are_used(self) -> None:
        one = found(hit("a", 5.0, group="x"), hit("c", 3.0, group="y"), hit("d", 2.0, group="z"))
        two = found(hit("b", 4.0, group="x"), next_token=b"more")
        page = merged(["one", "two"], [one, two], self.QUERY)
        assert keys(page) == [("one", "a")]
        assert page.has_more

    def test_sizes_of_groups_are_added_up_and_say_where_there_may_be_more(self) -> None:
        one = found(hit("a", 5.0, group="x"), group_sizes=[GroupSize("x", 7, is_exact=True)])
        two = found(
            hit("b", 4.0, group="x"),
            hit("c", 3.0, group="y"),
            group_sizes=[GroupSize("x", 2, is_exact=True), GroupSize("y", 3, is_exact=False)],
        )
        assert merged(["one", "two"], [one, two], self.QUERY).rest.group_sizes == [
            GroupSize("x", 9, is_exact=True),
            GroupSize("y", 3, is_exact=False),
        ]
        open_ended = replace(one, next_token=b"more")
        only = found(hit("c", 6.0, group="y"), group_sizes=[GroupSize("y", 3, is_exact=True)])
        sizes = merged(["one", "two"], [open_ended, only], self.QUERY).rest.group_sizes
        assert sizes[0] == GroupSize("y", 3, is_exact=False), "the other may have some further on"

    def test_without_it_nothing_is_passed_over(self) -> None:
        one, two = found(hit("a", 2.0)), found(hit("b", 1.0))
        page = merged(["one", "two"], [one, two], query())
        assert (keys(page), page.rest.group_sizes) == ([("one", "a"), ("two", "b")], ())

    def test_the_field_is_of_one_type_everywhere(self) -> None:
        one, two = Collection("one", 2, {"tag": "keyword"}), Collection("two", 3, {"tag": "integer"})
        check_types(self.QUERY, [one, Collection("three", 4, {"tag": "keyword", "n": "integer"})])
        for other, why in ((two, "integer in two"), (Collection("bare", 5, {"n": "integer"}), "none in bare")):
            with pytest.raises(InvalidArgument, match=why) as refused:
                check_types(self.QUERY, [one, other])
            assert refused.value.details.field == "collapse"

    def test_pages_end_at_the_most_groups_that_a_token_carries(self) -> None:
        check_groups(b"", self.QUERY)
        check_groups(bytes(DIGEST_BYTES * (COLLAPSE_MAX_GROUPS - 3)), self.QUERY)
        with pytest.raises(InvalidArgument, match="4000 groups deep"):
            check_groups(bytes(DIGEST_BYTES * (COLLAPSE_MAX_GROUPS - 2)), self.QUERY)


def collapsed(hits: Sequence[ShardHit], begin: bytes, shown: bytes, limit: int) -> Found:
    """What a collection answers: the first hits behind `begin` hits of groups that were not shown, each group once."""
    seen = shown_digests(shown)
    firsts: list[tuple[int, ShardHit]] = []
    for place, each in enumerate(hits):
        digest = group_digest(each.group)
        if place >= int(begin or b"0") and digest not in seen:
            seen.add(digest)
            firsts.append((place, each))
    page = firsts[:limit]
    return found(
        *(each for _, each in page),
        next_token=b"more" if len(firsts) > limit else b"",
        token_behind=lambda count: b"%d" % (page[count - 1][0] + 1),
    )


GROUPED = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["a", "b", "c", "d", None])), max_size=12), min_size=1, max_size=3
)


@given(GROUPED, st.integers(1, 4))
def test_pages_have_each_group_once_by_its_first_hit(given_hits: list[list[tuple[int, str | None]]], limit: int) -> None:
    collections = [
        sorted((hit(f"{at}-{n}", score, group=group) for n, (score, group) in enumerate(each)), key=lambda h: (-h.score, h.key))
        for at, each in enumerate(given_hits)
    ]
    names = [str(at) for at in range(len(collections))]
    firsts: dict[str | None, bytes] = {}
    for each in sorted(chain.from_iterable(collections), key=lambda h: (-h.score, h.key)):
        firsts.setdefault(each.group, each.key)
    asked = query(limit=limit, shape=SearchShape(collapse="tag"))
    begins, shown, pages = [b""] * len(names), b"", list[bytes]()
    while True:
        answers = [collapsed(each, begin, shown, limit) for each, begin in zip(collections, begins, strict=True)]
        page = merged(names, answers, asked)
        pages += [each.key for _, each in page.rest.hits]
        assert len(page.rest.hits) <= limit
        if not page.has_more:
            break
        assert page.rest.hits, "a page leads further"
        begins = tokens_behind(page, answers, begins)
        shown = shown_after(shown, (each for _, each in page.rest.hits))
    assert pages == list(firsts.values())


def test_a_profile_says_of_which_collection_a_leg_was() -> None:
    leg = ProfiledLeg(0, "leaf-1", LegProfile([], [], 1, 1, 1, 1, 1))
    page = merged(["one", "two"], [found(profiles=[leg]), found(profiles=[leg])], query())
    assert [each.collection for each in page.rest.profiles] == ["one", "two"]


def test_the_rest_of_the_answers_is_added_up() -> None:
    part = Coverage(False, 5, 10, 2, 1)
    one = found(statistics=StatisticsUsed(Kind.EXACT, 0.0, 1), unseen_age_ms=5)
    two = found(statistics=StatisticsUsed(Kind.CACHED, 2.0, 1), unseen_age_ms=7, coverage=part, is_total_exact=False)
    rest = merged(["one", "two"], [one, two], query()).rest
    assert rest.coverage == Coverage(False, 15, 20, 4, 3)
    assert (rest.statistics, rest.unseen_age_ms, rest.is_total_exact) == (StatisticsUsed(Kind.CACHED, 2.0, 2), 7, False)
    assert merged(["one", "two"], [one, found()], query()).rest.unseen_age_ms is None


def test_facets_are_added_up_and_say_how_wrong_they_may_be() -> None:
    one = found(facets=[MergedFacet("tag", [("a", 5), ("b", 3)], 0)])
    two = found(facets=[MergedFacet("tag", [("b", 4)], 1)])
    (facet,) = merged(["one", "two"], [one, two], query(facets=["tag"])).rest.facets
    assert facet == MergedFacet("tag", [("b", 7), ("a", 5)], 1)
    cut = found(facets=[MergedFacet("tag", [("c", 9), ("d", 8)], 0)])
    (facet,) = merged(["one", "three"], [one, cut], query(facets=["tag"])).rest.facets
    assert facet == MergedFacet("tag", [("c", 9), ("d", 8)], 3), "the first may have up to three of each"


@pytest.mark.parametrize(
    ("names", "fields", "field"),
    [
        (["a"] * 17, {}, "collections"),
        (["a", "b"], {"nearest": Nearest("v", [1.0], 3)}, "nearest"),
    ],
)
def test_what_does_not_go_over_several_is_refused(names, fields, field) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_several(names, query(**fields))
    assert refused.value.details.field == field
    check_several(["a", "b"], query())


def test_a_collection_is_not_asked_for_facets_that_only_others_have() -> None:
    one, two = Collection("one", 2, {"tag": "keyword"}), Collection("two", 3, {"lang": "keyword"})
    asked = query_for(query(facets=["tag", "lang", "none"], highlight=["lang"]), one, [one, two])
    assert (asked.facets, asked.highlight) == (["tag", "none"], [])
    assert dict(asked.elsewhere) == {"tag": "keyword", "lang": "keyword"}


def test_fields_of_aggregations_are_of_one_type() -> None:
    one, two = Collection("one", 2, {"n": "integer", "tag": "keyword"}), Collection("two", 3, {"n": "float", "tag": "keyword"})
    check_types(query(aggregations={"t": Terms("tag"), "f": Filter("n:1")}), [one, two])
    for aggregation in (Stats("n"), Terms("tag", aggs={"s": Stats("n")}), Filter("*", {"s": Stats("n")})):
        with pytest.raises(InvalidArgument, match="n is of type float and integer") as refused:
            check_types(query(aggregations={"a": aggregation}), [one, two])
        assert refused.value.details.field == "aggregations"
