"""Pages of several collections merged into one: order, coverage, facets, and what is refused."""

import pytest

from kvshard.aggregations.model import Filter, Stats, Terms
from kvshard.clustermap import Collection
from kvshard.errors import InvalidArgument
from kvshard.model import SearchShape, ShardHit
from kvshard.scatter.coverage import Coverage
from kvshard.scatter.merge import MergedFacet
from kvshard.scatter.requests import SearchQuery
from kvshard.search_accounts import LegProfile, ProfiledLeg
from router.ranking import StatisticsUsed
from router.search import Found
from router.several import check_several, check_types, merged, query_for, tokens_behind
from router.statistics import Kind

WHOLE = Coverage(True, 10, 10, 2, 2)


def query(**fields) -> SearchQuery:
    base = {"query": "x", "filters": [], "limit": 3, "sort": "", "facets": [], "facet_limit": 2, "highlight": []}
    return SearchQuery(**{**base, "is_refresh_wanted": False, "is_keys_only": False, "shards": None, **fields})


def hit(key: str, score: float = 1.0, value: int | None = None) -> ShardHit:
    return ShardHit(key.encode(), score, b"{}", 1, sort_values=[] if value is None else [value])


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
    assert (page.shown, page.has_more) == ([1, 2, 0], True)
    assert tokens_behind(page, [one, two, three], [b"", b"2", b"3"]) == [b"one 1", b"two 2", b"3"]
    assert not merged(["one", "two"], [one, two], query(limit=4)).has_more
    assert merged(["one", "two"], [one, found(hit("b", 3.0), next_token=b"x")], query(limit=4)).has_more
    assert not merged(["one", "two"], [found(), found()], query()).has_more


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
        (["a", "b"], {"shape": SearchShape(collapse="tag")}, "collapse"),
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
