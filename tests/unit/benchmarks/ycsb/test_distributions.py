from collections import Counter
from random import Random

import pytest

from benchmarks.ycsb.distributions import SCRAMBLED_ITEMS, SCRAMBLED_ZETA, Latest, ScrambledZipfian, Zipfian, fnv_hash, zeta

DRAWS = 100_000


def shares(draw, draws=DRAWS):
    counted = Counter(draw() for _ in range(draws))
    return {number: count / draws for number, count in counted.items()}


def test_the_hash_is_the_one_that_ycsb_names_records_by():
    # The first three keys of any YCSB database: user6284781860667377211 and so on.
    assert [fnv_hash(number) for number in range(3)] == [6284781860667377211, 8517097267634966620, 1820151046732198393]


def test_zeta_is_a_sum_that_can_be_gone_on_with():
    assert zeta(3) == pytest.approx(1 + 2**-0.99 + 3**-0.99)
    assert zeta(1_000) == pytest.approx(7.728953217)
    assert zeta(1_000, 400, zeta(400)) == pytest.approx(zeta(1_000))


def test_the_published_sum_belongs_to_ten_billion_items():
    # Euler and Maclaurin: the sum from m on is the integral, half the first term, and a correction below 1e-10 here.
    m = 100_000
    integral = (SCRAMBLED_ITEMS**0.01 - m**0.01) / 0.01
    assert zeta(m) + integral - 0.5 * m**-0.99 == pytest.approx(SCRAMBLED_ZETA, rel=1e-6)


@pytest.mark.parametrize("items", [10, 1_000])
def test_zipfian_draws_each_number_as_often_as_its_place_says(items):
    found = shares(Zipfian(items, Random(1)).draw)
    assert set(found) <= set(range(items))
    total = zeta(items)
    # The two likeliest are drawn exactly; the rest is the paper's approximation.
    for number, tolerance in ((0, 0.03), (1, 0.03), (2, 0.25), (5, 0.25), (9, 0.25)):
        assert found[number] == pytest.approx((number + 1) ** -0.99 / total, rel=tolerance)


def test_zipfian_of_a_thousand_asks_the_first_tenth_two_thirds_of_the_time():
    found = shares(Zipfian(1_000, Random(2)).draw)
    expected = zeta(100) / zeta(1_000)
    assert expected == pytest.approx(0.685, abs=0.001)
    assert sum(share for number, share in found.items() if number < 100) == pytest.approx(expected, abs=0.02)


def test_zipfian_grows_with_its_items():
    zipfian = Zipfian(10, Random(3))
    assert max(zipfian.draw(1_000) for _ in range(20_000)) > 900
    grown = shares(lambda: zipfian.draw(1_000))
    assert grown[0] == pytest.approx(1 / zeta(1_000), rel=0.05)
    with pytest.raises(ValueError, match="fewer than"):
        zipfian.draw(999)


@pytest.mark.parametrize("items", [1, 2, 3])
def test_few_items_are_all_drawn_and_no_others(items):
    assert set(shares(Zipfian(items, Random(4)).draw, 5_000)) == set(range(items))
    with pytest.raises(ValueError, match="nothing to draw from"):
        Zipfian(0, Random(4))


def test_scrambled_zipfian_has_its_popular_records_scattered():
    found = shares(ScrambledZipfian(1_000, Random(5)).draw)
    assert set(found) <= set(range(1_000))
    ranked = sorted(found, key=lambda number: found[number], reverse=True)
    # The most popular item of ten billion gets one request in 26.5, the second one about half of that.
    assert ranked[0] == fnv_hash(0) % 1_000
    assert found[ranked[0]] == pytest.approx(1 / SCRAMBLED_ZETA, rel=0.05)
    assert ranked[1] == fnv_hash(1) % 1_000
    assert found[ranked[1]] == pytest.approx(2**-0.99 / SCRAMBLED_ZETA, rel=0.12)
    # Everybody else shares the rest: all records are asked for, wherever they lie.
    assert len(found) > 990
    assert sum(share for number, share in found.items() if number < 500) == pytest.approx(0.5, abs=0.1)


def test_latest_prefers_the_newest_while_records_are_added():
    newest = 999
    latest = Latest(lambda: newest, Random(6))
    before = shares(latest.draw)
    assert before[999] == pytest.approx(1 / zeta(1_000), rel=0.03)
    assert before[998] == pytest.approx(2**-0.99 / zeta(1_000), rel=0.05)
    assert sum(share for number, share in before.items() if number >= 900) == pytest.approx(0.685, abs=0.02)
    newest = 1_099
    after = shares(latest.draw)
    assert after[1_099] == pytest.approx(1 / zeta(1_100), rel=0.03)
    assert max(after) == 1_099
    assert min(after) >= 0
