"""The promises of ring, placement and map for any cluster: bounds, zones, minimal movement, determinism."""

import itertools
import random
from collections import Counter
from fractions import Fraction
from math import ceil, floor

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kvshard import clustermap_text
from kvshard.clustermap import DEFAULT_COLLECTION, TOKEN_SLOTS, ClusterMap, Leaf, equal_ranges
from kvshard.coordination.mapwriter import BootstrapPlan, plan_shards
from kvshard.limits import SHARDS_MAX
from kvshard.placement import PlacementProblem, PlacementSolution, solve
from kvshard.ring import RingLeaf

SHARDS = st.one_of(st.integers(1, 40), st.sampled_from([64, 100, 256]))
WEIGHTS = st.one_of(st.just(1.0), st.sampled_from([0.1, 0.5, 1.5, 2.0, 3.0, 10.0]), st.floats(0.01, 100))


@st.composite
def clusters(draw: st.DrawFn, most_leaves: int = 20, with_weights: bool = True) -> tuple[RingLeaf, ...]:
    count = draw(st.integers(1, most_leaves))
    zones = draw(st.lists(st.sampled_from("wxyz"), min_size=count, max_size=count))
    weights = draw(st.lists(WEIGHTS, min_size=count, max_size=count)) if with_weights else [1.0] * count
    return tuple(RingLeaf(f"leaf-{n}", zone, weight) for n, (zone, weight) in enumerate(zip(zones, weights, strict=True)))


@st.composite
def problems(draw: st.DrawFn) -> PlacementProblem:
    leaves = draw(clusters())
    replicas = draw(st.integers(1, min(3, len(leaves))))
    return PlacementProblem(leaves, tuple(range(draw(SHARDS))), replicas, draw(st.integers(0, 5)))


def loads(solution: PlacementSolution) -> Counter[str]:
    return Counter(leaf for leaves in solution.replicas.values() for leaf in leaves)


def check_rules(problem: PlacementProblem, solution: PlacementSolution) -> None:
    """What `check_solution` checks, written independently."""
    zone_of = {leaf.id: leaf.zone for leaf in problem.leaves if leaf.weight > 0}
    assert sorted(solution.replicas) == sorted(problem.shards)
    for leaves in solution.replicas.values():
        assert len(leaves) == len(set(leaves)) == problem.replicas
        assert len({zone_of[leaf] for leaf in leaves}) == min(problem.replicas, len(set(zone_of.values())))
    for leaf, load in loads(solution).items():
        fair = solution.shares.fair[leaf]
        assert load <= max(ceil(fair), floor(Fraction(11, 10) * fair))
        assert load >= floor(fair)
    assert sum(solution.shares.fair.values()) == len(problem.shards) * problem.replicas
    first = Counter(leaves[0] for leaves in solution.replicas.values())
    for leaf, load in loads(solution).items():
        assert load // problem.replicas <= first[leaf] <= -(-load // problem.replicas)


@settings(max_examples=80, deadline=None)
@given(problems())
def test_rules_hold_for_any_cluster(problem: PlacementProblem) -> None:
    check_rules(problem, solve(problem))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), SHARDS, st.integers(1, 3), st.sampled_from([1, 2, 3, 5]))
def test_equal_leaves_are_loaded_within_the_bound_of_the_mean(count: int, shards: int, replicas: int, zones: int) -> None:
    """Zones of equal size do not get in the way of balance."""
    assume(replicas <= count and count % zones == 0)
    leaves = tuple(RingLeaf(f"leaf-{n}", f"zone-{n % zones}") for n in range(count))
    solution = solve(PlacementProblem(leaves, tuple(range(shards)), replicas))
    mean = Fraction(shards * replicas, count)
    held = loads(solution)
    assert all(floor(mean) <= held[leaf.id] <= max(ceil(mean), floor(Fraction(11, 10) * mean)) for leaf in leaves)
    first = Counter(leaves[0] for leaves in solution.replicas.values())
    assert all(floor(Fraction(shards, count)) <= first[leaf.id] <= ceil(Fraction(shards, count)) for leaf in leaves)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), SHARDS, st.integers(1, 3), st.booleans())
def test_a_new_leaf_moves_no_more_than_its_ideal_share(count: int, shards: int, replicas: int, has_own_zone: bool) -> None:
    assume(replicas <= count)
    leaves = tuple(RingLeaf(f"leaf-{n}", f"zone-{n}" if has_own_zone else "") for n in range(count + 1))
    before = solve(PlacementProblem(leaves[:-1], tuple(range(shards)), replicas))
    after = solve(PlacementProblem(leaves, tuple(range(shards)), replicas, current=before.replicas))
    ideal = Fraction(shards * replicas, count + 1)
    assert after.moved <= max(ceil(ideal), floor(Fraction(12, 10) * ideal))
    check_rules(PlacementProblem(leaves, tuple(range(shards)), replicas), after)


@settings(max_examples=80, deadline=None)
@given(clusters(most_leaves=15), SHARDS, st.integers(1, 3), st.data())
def test_any_new_leaf_moves_no_more_than_its_fair_share(
    leaves: tuple[RingLeaf, ...], shards: int, replicas: int, data: st.DataObject
) -> None:
    """With weights and zones a leaf's ideal part is its fair share; rounding may shift one replica a leaf."""
    assume(replicas <= len(leaves))
    new = RingLeaf("new", data.draw(st.sampled_from("vwxyz")), data.draw(WEIGHTS))
    before = solve(PlacementProblem(leaves, tuple(range(shards)), replicas))
    problem = PlacementProblem((*leaves, new), tuple(range(shards)), replicas, current=before.replicas)
    after = solve(problem)
    check_rules(problem, after)
    assert after.moved <= Fraction(12, 10) * after.shares.fair["new"] + len(leaves) + 1


@settings(max_examples=80, deadline=None)
@given(clusters(most_leaves=15), SHARDS, st.integers(1, 3), st.data())
def test_a_leaf_that_goes(leaves: tuple[RingLeaf, ...], shards: int, replicas: int, data: st.DataObject) -> None:
    assume(replicas < len(leaves))
    gone = data.draw(st.sampled_from(leaves))
    before = solve(PlacementProblem(leaves, tuple(range(shards)), replicas))
    rest = tuple(leaf for leaf in leaves if leaf != gone)
    problem = PlacementProblem(rest, tuple(range(shards)), replicas, current=before.replicas)
    after = solve(problem)
    check_rules(problem, after)
    drained = tuple(RingLeaf(leaf.id, leaf.zone, 0.0) if leaf == gone else leaf for leaf in leaves)
    assert solve(PlacementProblem(drained, problem.shards, replicas, current=before.replicas)).replicas == after.replicas


@settings(max_examples=60, deadline=None)
@given(problems(), st.data())
def test_any_current_placement_is_mended(problem: PlacementProblem, data: st.DataObject) -> None:
    """Whatever stands in the map: too many, too few, unknown leaves, wrong zones."""
    names = [leaf.id for leaf in problem.leaves] + ["unknown"]
    places = st.lists(st.sampled_from(names), max_size=5, unique=True).map(tuple)
    some = st.sampled_from(problem.shards)
    current = data.draw(st.dictionaries(some, places, max_size=20))
    mended = PlacementProblem(problem.leaves, problem.shards, problem.replicas, problem.seed, current)
    check_rules(mended, solve(mended))


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 1000))
def test_the_same_input_has_the_same_solution_in_any_order(problem: PlacementProblem, shuffle: int) -> None:
    rng = random.Random(shuffle)
    leaves = tuple(rng.sample(problem.leaves, len(problem.leaves)))
    shards = tuple(rng.sample(problem.shards, len(problem.shards)))
    first, second = solve(problem), solve(PlacementProblem(leaves, shards, problem.replicas, problem.seed))
    assert repr(first.replicas) == repr(second.replicas)
    stay = solve(PlacementProblem(leaves, shards, problem.replicas, problem.seed, first.replicas))
    assert stay.moved == 0


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from("xyz"), min_size=2, max_size=4), st.integers(1, 3), st.integers(1, 3), st.data())
def test_no_placement_with_the_same_quotas_moves_less(
    zones: list[str], shards: int, replicas: int, data: st.DataObject
) -> None:
    """Against every placement there is, for clusters small enough to list them all."""
    assume(replicas <= len(zones))
    leaves = tuple(RingLeaf(f"{n}", zone) for n, zone in enumerate(zones))
    zone_of = {leaf.id: leaf.zone for leaf in leaves}
    wanted = min(replicas, len(set(zones)))
    combinations = [c for c in itertools.combinations(zone_of, replicas) if len({zone_of[leaf] for leaf in c}) >= wanted]
    current = {shard: data.draw(st.sampled_from(combinations)) for shard in range(shards)}
    solution = solve(PlacementProblem(leaves, tuple(range(shards)), replicas, 0, current))
    quota = {leaf: count for leaf, count in solution.shares.quota.items() if count}
    least = min(
        sum(leaf not in current[shard] for shard, chosen in enumerate(choice) for leaf in chosen)
        for choice in itertools.product(combinations, repeat=shards)
        if Counter(leaf for chosen in choice for leaf in chosen) == quota
    )
    assert solution.moved == least


@given(st.integers(1, SHARDS_MAX))
@settings(max_examples=50, deadline=None)
def test_ranges_cover_every_slot_once(count: int) -> None:
    ranges = equal_ranges(count)
    assert len(ranges) == count
    assert ranges[0][0] == 0
    assert ranges[-1][1] == TOKEN_SLOTS - 1
    assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(ranges))
    assert {last - first + 1 for first, last in ranges} <= {TOKEN_SLOTS // count, -(-TOKEN_SLOTS // count)}


@given(clusters(most_leaves=8), st.integers(1, 300), st.integers(1, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_the_same_plan_gives_the_same_map_byte_for_byte(
    leaves: tuple[RingLeaf, ...], shards: int, replicas: int, seed: int
) -> None:
    assume(replicas <= len(leaves))

    def made(order: int) -> ClusterMap:
        planned = tuple(Leaf(leaf.id, "", leaf.zone, leaf.weight) for leaf in leaves[::order])
        configs = plan_shards(BootstrapPlan(planned, shards, replicas, seed))
        by_id = {shard.id: shard for shard in configs[::order]}
        return ClusterMap(1, seed, {leaf.id: leaf for leaf in planned}, by_id, {"default": DEFAULT_COLLECTION})

    assert clustermap_text.to_json(made(1)) == clustermap_text.to_json(made(-1))
    assert clustermap_text.from_json(clustermap_text.to_json(made(1))) == made(1)
