"""How many hits of each shard are enough, and when that is not tried."""

from itertools import product

import pytest

from kvshard.scatter.hits_asked import COLLECTIONS_MAX, MISS_CHANCE, SHORT_MAX, TRY_EVERY, ShortPages, hits_asked


def chance_of_more(limit: int, widths: list[int], asked: list[int]) -> list[float]:
    """Of each shard, that it has more of the hits than it is asked for: by going through all the ways they may lie."""
    whole = sum(widths)
    chances = [0.0] * len(widths)
    for homes in product(range(len(widths)), repeat=limit):
        chance = 1.0
        for home in homes:
            chance *= widths[home] / whole
        for shard, most in enumerate(asked):
            chances[shard] += chance * (homes.count(shard) > most)
    return chances


@pytest.mark.parametrize("widths", [[1, 1, 1, 1], [8, 1], [3, 2, 1], [1, 1, 98]])
@pytest.mark.parametrize("limit", [1, 2, 5, 7])
def test_no_more_are_asked_for_than_are_enough(limit: int, widths: list[int]) -> None:
    asked = hits_asked(limit, widths)
    assert all(1 <= each <= limit for each in asked)
    most = MISS_CHANCE / len(widths)
    assert all(chance <= most for chance in chance_of_more(limit, widths, asked))
    fewer = [each - 1 for each in asked]
    assert all(chance > most for chance in chance_of_more(limit, widths, fewer))


def test_usual_pages() -> None:
    assert {limit: hits_asked(limit, [1] * 8)[0] for limit in (1, 3, 5, 10, 20, 100, 1_000)} == {
        1: 1, 3: 3, 5: 4, 10: 5, 20: 8, 100: 24, 1_000: 160,
    }  # fmt: skip
    assert hits_asked(10, [1] * 8, is_next_told=False) == [6] * 8
    assert hits_asked(2, [1] * 8, is_next_told=False) == [2] * 8
    assert hits_asked(10, [65_536]) == [10]
    assert hits_asked(1_000, [65_535, 1]) == [1_000, 1]
    assert hits_asked(1, [65_535, 1]) == [1, 1], "none asked for would be none found"


def test_pages_that_come_up_short_by_chance_change_nothing() -> None:
    short = ShortPages()
    for number in range(1_000):
        assert short.may_ask_few(1)
        short.note(1, number % 25 == 0)


def test_where_most_come_up_short_few_hits_are_tried_now_and_then() -> None:
    short = ShortPages()
    for _ in range(10):
        short.note(1, True)
    assert repr(short) == "ShortPages({1: 0.146})"
    tried = [short.may_ask_few(1) for _ in range(3 * TRY_EVERY)]
    assert tried == [*[False] * (TRY_EVERY - 1), True] * 3
    assert short.may_ask_few(2), "of another collection"
    while not short.may_ask_few(1) or short._parts[1] > SHORT_MAX:
        short.note(1, False)
    assert all(short.may_ask_few(1) for _ in range(TRY_EVERY))


def test_what_is_kept_is_bounded() -> None:
    short = ShortPages()
    for collection in range(2 * COLLECTIONS_MAX):
        short.note(collection, True)
    assert list(short._parts) == [*range(COLLECTIONS_MAX, 2 * COLLECTIONS_MAX)]
