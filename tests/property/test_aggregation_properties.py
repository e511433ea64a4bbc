"""However documents are split, what the parts say together is what one pass over the whole says."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvshard.aggregations import distinct, spread
from kvshard.aggregations.distinct import count_of, distinct_of, is_exact, merge_distinct
from kvshard.aggregations.doubles import code_of, double_of
from kvshard.aggregations.finish import finish
from kvshard.aggregations.grid import lower_edge, position_of
from kvshard.aggregations.merge import merge, merge_moments, merge_rows, trim
from kvshard.aggregations.model import Stats, Terms
from kvshard.aggregations.partial import Moments, Rows
from kvshard.aggregations.spread import grid_error, merge_spreads, percentiles, relative_error, spread_of
from kvshard.hashing import token

ItemT = TypeVar("ItemT")
NUMBERS = st.one_of(
    st.integers(-1_000, 1_000).map(float),
    st.floats(-1e3, 1e3, allow_nan=False),
    st.floats(allow_nan=False, allow_infinity=False),
)
PERCENTS = (0.0, 1.0, 50.0, 99.0, 100.0)


def parts_of(items: Sequence[ItemT], cuts: Sequence[int]) -> list[Sequence[ItemT]]:
    """The items in as many parts as there are cuts; the same cut names the same part."""
    found: dict[int, list[ItemT]] = {cut: [] for cut in cuts}
    for number, item in enumerate(items):
        found[cuts[number % len(cuts)]].append(item)
    return list(found.values())


CUTS = st.lists(st.integers(0, 4), min_size=1, max_size=40)


@given(items=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(-5, 5)), max_size=60), cuts=CUTS)
def test_rows_with_what_is_inside(items, cuts):
    def rows(part):
        keys = sorted({key for key, _ in part})
        inside = [moments([value for key, value in part if key == each]) for each in keys]
        return Rows(keys, [sum(key == each for key, _ in part) for each in keys], {"s": inside})

    whole, merged = rows(items), merge([rows(part) for part in parts_of(items, cuts)])
    assert isinstance(merged, Rows)
    assert dict(zip(merged.keys, merged.counts, strict=True)) == dict(zip(whole.keys, whole.counts, strict=True))
    terms = Terms("f", size=3, order="-s.max", aggs={"s": Stats("n")})
    schema = {"f": "keyword", "n": "integer"}
    for one, other in zip(finish(terms, merged, schema), finish(terms, whole, schema), strict=True):
        assert (one.key, one.count) == (other.key, other.count)
        assert one.aggregations["s"].mean == pytest.approx(other.aggregations["s"].mean)


def moments(values):
    if not values:
        return Moments()
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Moments(len(values), math.fsum(values), min(values), max(values), mean, squares)


@given(values=st.lists(st.floats(-1e6, 1e6), max_size=60), cuts=CUTS)
def test_moments(values, cuts):
    whole, merged = moments(values), merge_moments([moments(part) for part in parts_of(values, cuts)])
    assert (merged.count, merged.minimum, merged.maximum) == (whole.count, whole.minimum, whole.maximum)
    assert merged.total == pytest.approx(whole.total, rel=1e-9, abs=1e-6)
    assert merged.mean == pytest.approx(whole.mean, rel=1e-9, abs=1e-6)
    assert merged.squares == pytest.approx(whole.squares, rel=1e-9, abs=1e-2)


@given(values=st.lists(NUMBERS, max_size=80), cuts=CUTS, room=st.integers(8, 40), is_grid=st.booleans())
def test_spreads(values, cuts, room, is_grid):
    if is_grid:
        values = [float(int(value)) for value in values if abs(value) < 2**53]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spread, "CODES_MAX", room)
        whole = spread_of(Counter(values), is_grid)
        assert merge_spreads([spread_of(Counter(part), is_grid) for part in parts_of(values, cuts)] or [whole]) == whole
    ordered = sorted(values)
    for percent, found in zip(PERCENTS, percentiles(whole, PERCENTS), strict=True):
        if not values:
            assert found is None
            continue
        wanted = ordered[min(max(math.ceil(percent / 100 * len(values)), 1), len(values)) - 1]
        if relative_error(whole) < 0.5:  # with the real room it is never more, whatever the values are
            error = grid_error(whole) + relative_error(whole) * abs(wanted) * (1 + 1e-12)
            assert abs(found - wanted) <= error + (1e-307 if whole.shift else 0)


@settings(max_examples=25)  # each goes over the registers several times
@given(values=st.lists(st.integers(0, 99), max_size=80), cuts=CUTS, room=st.integers(0, 40))
def test_different_values(values, cuts, room):
    hashes = [token(b"%d" % value, 0) for value in values]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distinct, "HASHES_MAX", room)
        whole = distinct_of(hashes)
        assert merge_distinct([distinct_of(part) for part in parts_of(hashes, cuts)] or [whole]) == whole
        assert is_exact(whole) == (len(set(hashes)) <= room)
    # So few values rarely share a register, and then the estimate is that of counting the empty ones.
    assert abs(count_of(whole) - len(set(hashes))) <= (0 if is_exact(whole) else 3)


@given(
    shards=st.lists(st.dictionaries(st.integers(0, 30), st.integers(1, 9), max_size=20), min_size=1, max_size=5),
    listed=st.integers(1, 6),
    again=st.integers(1, 8),
)
def test_what_was_cut_off_stays_within_the_stated_error(shards, listed, again):
    truth: Counter[int] = Counter()
    for shard in shards:
        truth.update(shard)
    cut = [trim(Rows(list(shard), list(shard.values())), listed) for shard in shards]
    merged = trim(merge_rows([merge_rows(cut[:2]), *cut[2:]]), again)
    errors = merged.errors or [0] * len(merged.keys)
    for key, count, error in zip(merged.keys, merged.counts, errors, strict=True):
        assert truth[key] - error <= count <= truth[key]
    assert all(count <= merged.error for key, count in truth.items() if key not in merged.keys)
    assert sum(merged.counts) + merged.others == sum(truth.values())


@given(one=NUMBERS, other=NUMBERS)
def test_codes_have_the_order_of_doubles(one, other):
    assert (code_of(one) < code_of(other)) == (one < other)
    assert double_of(code_of(one)) == one


@given(position=st.integers(-(10**6), 10**6), interval=st.floats(1e-9, 1e9), offset=st.floats(-1e6, 1e6))
def test_edges_of_a_grid(position, interval, offset):
    edge = lower_edge(position, interval, offset)
    assert position_of(edge, interval, offset) >= position
    assert position_of(math.nextafter(edge, -math.inf), interval, offset) < position
