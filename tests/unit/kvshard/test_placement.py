"""Placement by example: what must hold at the edges. The promises in general are in tests/property."""

from fractions import Fraction

import pytest

from kvshard.errors import Internal, InvalidArgument
from kvshard.fair_shares import Bounds, divide, fair_shares, round_parts
from kvshard.placement import PlacementProblem, PlacementSolution, check_solution, solve
from kvshard.ring import RingLeaf


def problem(zones: str, shards: int, replicas: int, **more: object) -> PlacementProblem:
    """Leaves a, b, c...: one a letter of `zones`, which names its zone."""
    leaves = tuple(RingLeaf(chr(ord("a") + n), zone) for n, zone in enumerate(zones))
    return PlacementProblem(leaves, tuple(range(shards)), replicas, **more)  # type: ignore[arg-type]


def loads(solution: PlacementSolution) -> dict[str, int]:
    held = [leaf for leaves in solution.replicas.values() for leaf in leaves]
    return {leaf: held.count(leaf) for leaf in sorted(set(held))}


def primaries(solution: PlacementSolution) -> dict[str, int]:
    first = [leaves[0] for leaves in solution.replicas.values()]
    return {leaf: first.count(leaf) for leaf in sorted(set(first))}


def test_frozen_placement() -> None:
    """A change here places new clusters differently: intended, or not at all."""
    assert dict(solve(problem("xxx", 8, 1)).replicas) == FROZEN


FROZEN = {0: ("a",), 1: ("b",), 2: ("c",), 3: ("c",), 4: ("a",), 5: ("a",), 6: ("b",), 7: ("b",)}


def test_even_by_default() -> None:
    solution = solve(problem("zzz", 8, 1))
    assert sorted(loads(solution).values()) == [2, 3, 3]
    solution = solve(problem("zzzz", 8, 2))
    assert loads(solution) == {"a": 4, "b": 4, "c": 4, "d": 4}
    assert primaries(solution) == {"a": 2, "b": 2, "c": 2, "d": 2}


def test_more_replicas_than_leaves() -> None:
    with pytest.raises(InvalidArgument, match="3 replicas of a shard need as many leaves, and there are 2") as caught:
        solve(problem("zz", 8, 3))
    assert (caught.value.details.field, caught.value.details.limit) == ("replicas", 2)
    with pytest.raises(InvalidArgument):
        solve(PlacementProblem((RingLeaf("a"), RingLeaf("b", weight=0.0)), (0,), 2))


@pytest.mark.parametrize(
    "wrong",
    [
        PlacementProblem((RingLeaf("a"),), (0,), 0),
        PlacementProblem((RingLeaf("a"), RingLeaf("a")), (0,), 1),
        PlacementProblem((RingLeaf("a"),), (0, 0), 1),
        PlacementProblem((), (0,), 1),
    ],
)
def test_problems_that_make_no_sense(wrong: PlacementProblem) -> None:
    with pytest.raises(InvalidArgument):
        solve(wrong)


def test_no_shards() -> None:
    assert solve(problem("zz", 0, 1)).replicas == {}


def test_a_small_zone_takes_what_it_can_and_the_others_the_rest() -> None:
    """Zone x has one leaf and every shard must be in both zones: it holds them all, twice the mean. Zones come first."""
    solution = solve(problem("xyyy", 6, 2))
    assert loads(solution) == {"a": 6, "b": 2, "c": 2, "d": 2}


def test_fewer_zones_than_replicas_are_all_used() -> None:
    solution = solve(problem("xyyy", 6, 3))
    zone_of = dict(zip("abcd", "xyyy", strict=True))
    assert all({zone_of[leaf] for leaf in leaves} == {"x", "y"} for leaves in solution.replicas.values())


def test_weights() -> None:
    leaves = (RingLeaf("a", weight=1.0), RingLeaf("b", weight=2.0), RingLeaf("c", weight=5.0), RingLeaf("none", weight=0.0))
    assert loads(solve(PlacementProblem(leaves, tuple(range(80)), 1))) == {"a": 10, "b": 20, "c": 50}


def test_a_heavy_leaf_holds_no_shard_twice() -> None:
    leaves = (RingLeaf("a", weight=100.0), RingLeaf("b"), RingLeaf("c"))
    assert loads(solve(PlacementProblem(leaves, tuple(range(10)), 2))) == {"a": 10, "b": 5, "c": 5}


def test_a_leaf_that_goes_moves_only_what_it_held() -> None:
    before = solve(problem("zzzz", 32, 2))
    gone = problem("zzz", 32, 2, current=before.replicas)
    after = solve(gone)
    assert after.moved == loads(before)["d"]


def test_nothing_moves_without_need() -> None:
    before = solve(problem("xyzxyz", 32, 3))
    again = solve(problem("xyzxyz", 32, 3, current=before.replicas))
    assert again.moved == 0
    assert again.replicas == before.replicas


def test_fewer_replicas_drop_and_move_nothing() -> None:
    before = solve(problem("zzzz", 16, 3))
    after = solve(problem("zzzz", 16, 2, current=before.replicas))
    assert after.moved == 0


def test_new_shards_leave_the_old_ones_alone() -> None:
    before = solve(problem("zzzz", 8, 1))
    after = solve(problem("zzzz", 16, 1, current=before.replicas))
    assert all(after.replicas[shard] == before.replicas[shard] for shard in range(8))


def test_a_placement_against_the_rules_is_mended() -> None:
    crowded = dict.fromkeys(range(6), ("a", "b"))  # both in zone x, which a zone y has made wrong
    solution = solve(problem("xxyy", 6, 2, current=crowded))
    assert solution.moved == 6
    unknown = {0: ("gone", "a", "a"), 1: (), 7: ("a",)}
    assert len(solve(problem("zz", 2, 2, current=unknown)).replicas) == 2


def test_chains_of_moves_are_found() -> None:
    """Shard 0 must leave a for c but is on c already: b has to hand something on first."""
    current = {0: ("a", "c"), 1: ("a", "b"), 2: ("a", "b"), 3: ("a", "b")}
    solution = solve(problem("zzzz", 4, 2, current=current))
    assert set(loads(solution).values()) == {2}
    assert solution.moved == 3


def test_a_primary_stays_where_it_can() -> None:
    before = solve(problem("zzz", 9, 3))
    after = solve(problem("zzzz", 9, 3, current=before.replicas))
    kept = sum(before.replicas[shard][0] == after.replicas[shard][0] for shard in range(9))
    assert kept >= 6


def test_broken_promises_are_noticed() -> None:
    asked = problem("xy", 2, 1)
    good = solve(asked)
    for wrong in ({0: ("a",)}, {0: ("a",), 1: ("a",)}, {0: ("a", "b"), 1: ("b",)}, {0: ("a",), 1: ("elsewhere",)}):
        with pytest.raises(Internal):
            check_solution(asked, PlacementSolution(wrong, 0, good.shares))
    two = problem("xxy", 3, 2)
    same_zone = PlacementSolution({0: ("a", "b"), 1: ("a", "c"), 2: ("b", "c")}, 0, solve(two).shares)
    with pytest.raises(Internal, match="zones"):
        check_solution(two, same_zone)


def test_division_within_bounds() -> None:
    weights = {"a": Fraction(1), "b": Fraction(1), "c": Fraction(2)}
    free = dict.fromkeys("abc", Bounds(0, 100))
    assert divide(Fraction(8), weights, free) == {"a": 2, "b": 2, "c": 4}
    assert divide(Fraction(8), weights, free | {"c": Bounds(0, 2)}) == {"a": 3, "b": 3, "c": 2}
    assert divide(Fraction(8), weights, free | {"a": Bounds(5, 9)}) == {"a": 5, "b": 1, "c": 2}
    assert divide(Fraction(8), weights, {"a": Bounds(3, 9), "b": Bounds(0, 9), "c": Bounds(0, 3)}) == {"a": 3, "b": 2, "c": 3}


def test_rounding_prefers_what_is_held() -> None:
    parts = {"a": Fraction(5, 2), "b": Fraction(5, 2), "c": Fraction(3)}
    assert round_parts(parts, 8, {}) == {"a": 3, "b": 2, "c": 3}
    assert round_parts(parts, 8, {"b": 3}) == {"a": 2, "b": 3, "c": 3}


def test_weights_are_exact() -> None:
    """Tenths are not exact in binary; ten equal leaves must still get equal shares."""
    shares = fair_shares(dict.fromkeys("abcdefghij", 0.1), dict.fromkeys("abcdefghij", ""), 10, 3, {})
    assert set(shares.fair.values()) == {Fraction(3)}
    assert set(shares.quota.values()) == {3}
