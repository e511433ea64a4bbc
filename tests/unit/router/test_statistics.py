import itertools

import pytest

from kvshard.model import TermStatistics
from router.statistics import REFRESHED_STALE_MAX_S, STALE_MAX_S, Kind, KnownStatistics, Summed, is_sum_of, verdict

DOCS = 7
SHARDS = {0: 0, 1: 2}
WORD, TAG = ("body", "word"), ("tag", "k78")
TERMS = [WORD, TAG]


def told(documents, tokens, count, generation=1, tags=1):
    counts = {"body": {"word": count}, "tag": {"k78": tags}}
    return TermStatistics(documents, {"body": tokens, "tag": 5}, counts, generation)


@pytest.fixture
def known():
    known = KnownStatistics()
    known.learn(DOCS, 0, 0, told(10, 100, 3), 1.0)
    known.learn(DOCS, 1, 2, told(20, 300, 4), 2.0)
    return known


def test_numbers_are_summed_over_the_shards(known):
    summed = known.summed(DOCS, TERMS, SHARDS)
    assert summed.whole == TermStatistics(30, {"body": 400, "tag": 10}, {"body": {"word": 7}, "tag": {"k78": 2}})
    assert summed.heard_at == {0: 1.0, 1: 2.0}
    assert summed.unknown == ()
    assert known.lacking(DOCS, TERMS, SHARDS, 3.0) == {}


def test_another_collection_has_its_own(known):
    assert known.lacking(8, [WORD], SHARDS, 3.0) == {0: {"body": ["word"]}, 1: {"body": ["word"]}}
    assert known.summed(8, [WORD], SHARDS).whole == TermStatistics(0, {"body": 0}, {"body": {"word": 0}})


def test_a_term_that_a_shard_was_not_asked_for_is_lacking(known):
    known.learn(DOCS, 0, 0, TermStatistics(10, {"body": 100}, {"body": {"other": 1}}, 1), 3.0)
    assert known.lacking(DOCS, [("body", "other"), WORD], SHARDS, 3.0) == {1: {"body": ["other"]}}
    summed = known.summed(DOCS, [("body", "other")], SHARDS)
    assert (summed.unknown, summed.whole.documents) == ((1,), 10)


def test_numbers_from_before_a_split_do_not_count(known):
    shards = {0: 1, 1: 2, 2: 0}
    assert known.lacking(DOCS, [WORD], shards, 3.0) == {0: {"body": ["word"]}, 2: {"body": ["word"]}}
    assert known.summed(DOCS, [WORD], shards).unknown == (0, 2)
    known.learn(DOCS, 0, 1, told(5, 50, 1, generation=0), 4.0)
    assert known.summed(DOCS, [WORD], shards).parts[0].documents == 5


def test_numbers_from_before_a_split_are_forgotten_with_the_first_ones_behind_it(known):
    cells = known.cells
    known.learn(DOCS, 0, 1, told(5, 50, 1), 4.0)
    assert known.cells == cells
    assert known.summed(DOCS, TERMS, {0: 0}).unknown == (0,)
    known.learn(DOCS, 0, 0, told(10, 100, 3, generation=99), 5.0)  # a replica that is behind
    assert known.cells == cells
    assert known.summed(DOCS, TERMS, {0: 1, 1: 2}).whole.documents == 25


def test_what_is_learnt_later_does_not_change_what_was_summed(known):
    summed = known.summed(DOCS, TERMS, SHARDS)
    known.learn(DOCS, 0, 0, told(11, 110, 4, generation=2), 3.0)
    assert summed.parts[0] == TermStatistics(10, {"body": 100, "tag": 5}, {"body": {"word": 3}, "tag": {"k78": 1}})
    assert summed.heard_at == {0: 1.0, 1: 2.0}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([told(10, 100, 3), told(20, 300, 4)], True),
        ([told(11, 100, 3), told(19, 300, 4)], True),  # nothing but the sums matters to a score
        ([told(10, 100, 3), told(20, 301, 4)], False),
        ([told(10, 100, 3), told(20, 300, 5)], False),
        ([told(10, 100, 3)], False),
        (
            [
                told(10, 100, 3),
                TermStatistics(20, {"body": 300, "tag": 5}, {"body": {"word": 4, "more": 1}, "tag": {"k78": 1}}),
            ],
            False,
        ),
        (
            [told(10, 100, 3), TermStatistics(20, {"body": 300, "tag": 5}, {"body": {"word": 4}, "tag": {"k78": 1}, "x": {}})],
            False,
        ),
    ],
)
def test_a_sum_is_told_by_its_parts(known, parts, expected):
    assert is_sum_of(known.summed(DOCS, TERMS, SHARDS).whole, parts) == expected


@pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
def test_of_several_generations_the_newest_stays(order):
    known = KnownStatistics()
    for now, generation in enumerate(order):
        known.learn(DOCS, 0, 0, told(generation, generation, generation, generation), float(now))
    assert known.summed(DOCS, TERMS, {0: 0}).parts[0].documents == 3


def test_old_numbers_of_a_changed_shard_are_asked_for_again_after_a_while(known):
    known.learn(DOCS, 0, 0, TermStatistics(11, generation=2), 4.0)
    assert known.lacking(DOCS, TERMS, SHARDS, 1.0 + STALE_MAX_S) == {}
    lacking = known.lacking(DOCS, TERMS, SHARDS, 1.1 + STALE_MAX_S)
    assert lacking == {0: {"body": ["word"], "tag": ["k78"]}}


def test_old_numbers_of_an_unchanged_shard_stay_good(known):
    assert known.lacking(DOCS, TERMS, SHARDS, 1e6) == {}
    # Another replica has put together what the first one committed in steps; and other collections go on.
    known.learn(DOCS, 0, 0, TermStatistics(10, generation=5, through=50), 4.0)
    assert known.lacking(DOCS, TERMS, SHARDS, 1e6) == {0: {"body": ["word"], "tag": ["k78"]}}
    known.learn(DOCS, 0, 0, TermStatistics(10, {"body": 100, "tag": 5}, told(0, 0, 3).counts, 1, 60), 5.0)
    known.learn(DOCS, 0, 0, TermStatistics(10, generation=5, through=70), 6.0)
    assert known.lacking(DOCS, TERMS, SHARDS, 1e6) == {}


def test_numbers_older_than_what_a_search_must_see_are_asked_for_again(known):
    late = 1.1 + REFRESHED_STALE_MAX_S
    assert known.lacking(DOCS, [WORD], SHARDS, late, {0: 1, 1: 2}) == {}  # shard 1 was heard a second later
    assert known.lacking(DOCS, [WORD], SHARDS, late, {0: 2}) == {0: {"body": ["word"]}}
    known.learn(DOCS, 0, 0, told(10, 100, 3), late, through=2)
    assert known.lacking(DOCS, [WORD], SHARDS, 1e6, {0: 2}) == {}


def test_kept_are_those_used_last():
    known = KnownStatistics(cells_max=6)
    for number in range(4):
        known.learn(DOCS, 0, 0, TermStatistics(1, {"body": 1}, {"body": {f"word{number}": 1}}), 1.0)
        known.summed(DOCS, [("body", "word0")], {0: 0})
    assert known.cells == 6
    assert known.terms == 6
    known.learn(DOCS, 0, 0, TermStatistics(1, {"body": 1}, {"body": {"word4": 1}}), 1.0)
    assert known.cells == 6
    assert known.lacking(DOCS, [("body", "word0"), ("body", "word1")], {0: 0}, 1.0) == {0: {"body": ["word1"]}}


def test_texts_are_known_once_told():
    known = KnownStatistics(texts_max=2)
    one, two, three = ("body", "One", False), ("body", "two", False), ("body", "tw", True)
    assert known.unknown_texts(DOCS, [one, two]) == [one, two]
    known.learn_texts(DOCS, [one, two], [[("body", "one")], []])
    assert known.unknown_texts(DOCS, [one, two, three]) == [three]
    assert known.unknown_texts(8, [one]) == [one]
    assert known.terms_of(DOCS, b"query", [one, two]) == [("body", "one")]
    known.terms_of(DOCS, b"query", [one])
    known.learn_texts(DOCS, [three], [[]])
    assert known.unknown_texts(DOCS, [one, two, three]) == [two]


def test_a_query_may_have_terms_that_its_texts_do_not_show():
    known = KnownStatistics()
    text = ("body", "One", False)
    known.learn_texts(DOCS, [text], [[("body", "one")]])
    known.learn_query(DOCS, b"query", frozenset([WORD]), [text])
    assert known.unknown_texts(DOCS, [text]) == [text]  # it may be cut otherwise by now
    assert known.terms_of(DOCS, b"query", [text]) == [WORD]
    known.learn_query(DOCS, b"query", frozenset([TAG]), [])
    assert known.terms_of(DOCS, b"query", []) == sorted([WORD, TAG])
    assert known.terms_of(DOCS, b"other", []) == []


def used(known):
    return known.summed(DOCS, TERMS, SHARDS)


SAME = {0: told(10, 100, 3, 9), 1: told(20, 300, 4, 9)}


@pytest.mark.parametrize(
    ("answered", "kind", "age_s", "is_stale"),
    [
        (SAME, Kind.EXACT, 0.0, False),
        (SAME | {0: told(11, 100, 3)}, Kind.CACHED, 2.0, False),
        (SAME | {0: told(10, 101, 3)}, Kind.CACHED, 2.0, False),
        (SAME | {0: told(10, 100, 2)}, Kind.CACHED, 2.0, False),
        (SAME | {1: told(20, 300, 4, tags=2)}, Kind.CACHED, 1.0, False),
        ({0: SAME[0]}, Kind.CACHED, 1.0, False),
        ({}, Kind.CACHED, 2.0, False),
        (SAME | {0: None}, Kind.LOCAL, 0.0, True),
    ],
)
def test_what_scores_rest_on(known, answered, kind, age_s, is_stale):
    found = verdict(used(known), answered, 3.0)
    assert (found.kind, found.age_s, found.is_stale, found.missing) == (kind, age_s, is_stale, frozenset())


def test_it_is_worth_asking_again_where_old_numbers_turned_out_wrong(known):
    late = 1.5 + STALE_MAX_S
    assert verdict(used(known), SAME | {0: told(11, 100, 3)}, late).is_stale
    assert not verdict(used(known), SAME | {1: told(21, 300, 4)}, late).is_stale  # heard a second later
    assert not verdict(used(known), {1: SAME[1]}, 100.0).is_stale  # who does not answer may not the next time


def test_terms_beyond_those_known_are_scored_locally(known):
    own = TermStatistics(10, {"body": 100, "tag": 5}, {"body": {"word": 3, "more": 1}, "tag": {"k78": 1}})
    found = verdict(used(known), SAME | {0: own}, 3.0)
    assert (found.kind, found.missing, found.is_stale) == (Kind.LOCAL, {("body", "more")}, True)


def test_terms_that_a_query_has_not_after_all_do_not_matter(known):
    own = TermStatistics(10, {"body": 100}, {"body": {"word": 3}})
    assert verdict(used(known), SAME | {0: own}, 3.0).kind is Kind.EXACT


def test_a_query_without_terms_needs_no_statistics(known):
    summed = known.summed(8, [], SHARDS)
    assert verdict(summed, {0: TermStatistics(5), 1: TermStatistics(6)}, 3.0).kind is Kind.EXACT
    assert verdict(summed, {0: None}, 3.0).kind is Kind.EXACT
    assert verdict(summed, {0: told(1, 1, 1)}, 3.0).missing == {WORD, TAG}


def test_nothing_known_is_local_where_there_is_something():
    nothing = Summed(TermStatistics(0, {"body": 0}, {"body": {"word": 0}}), unknown=(0,))
    own = TermStatistics(1, {"body": 1}, {"body": {"word": 1}})
    assert verdict(nothing, {0: own}, 1.0).kind is Kind.LOCAL
    assert verdict(nothing, {0: own}, 1.0).is_stale
