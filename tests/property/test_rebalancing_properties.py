"""The balancer on any cluster and through any events: it converges, is then quiet, throttled, moves little, and empties nobody
in sync. `fakes/rebalanced.py` checks the throttle and what a plan may name at every look."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from math import ceil, floor

from fakes.rebalanced import HEAL_AFTER, Shards
from hypothesis import given, settings
from hypothesis import strategies as st

from kvshard.clustermap import Leaf
from kvshard.fair_shares import fair_shares
from kvshard.placement import PlacementProblem, solve
from kvshard.ring import RingLeaf

ZONES = st.sampled_from(("", "a", "b"))
WEIGHTS = st.sampled_from((0.5, 1.0, 1.0, 2.0))
EVENTS = st.sampled_from(("die", "die", "return", "join", "drain", "undo", "remove", "wait", "move", "lead"))


@st.composite
def clusters(draw: st.DrawFn, equal: bool = False) -> Shards:
    count = draw(st.integers(2, 6))
    leaves = tuple(
        Leaf(f"leaf-{n}", "h:1") if equal else Leaf(f"leaf-{n}", "h:1", draw(ZONES), draw(WEIGHTS)) for n in range(count)
    )
    return Shards(leaves, draw(st.integers(1, 10)), draw(st.integers(1, min(3, count))))


def happen(shards: Shards, event: str, number: int) -> None:
    known = sorted(shards.map.leaves)
    leaf = shards.map.leaves[known[number % len(known)]]
    match event:
        case "die" if len(shards.up) > 1:
            shards.up.discard(leaf.id)
        case "return" if not leaf.is_removed:
            shards.is_returning = shards.is_returning or leaf.id not in shards.up
            shards.up.add(leaf.id)
        case "join" if len(known) < 8:
            shards.put_leaf(Leaf(f"new-{shards.map.version}", "h:1"))
            shards.up.add(f"new-{shards.map.version - 1}")
        case "drain" | "undo":
            shards.put_leaf(replace(leaf, is_draining=event == "drain"))
        case "remove" if leaf.id not in shards.up:
            shards.put_leaf(replace(leaf, is_removed=True))
        case "wait":
            shards.now += HEAL_AFTER
        case "move" | "lead":
            shard = shards.map.shards[number % len(shards.map.shards)]
            others = sorted(set(known) - set(shard.desired))
            if event == "lead":
                shards.put_shard(replace(shard, desired=(*shard.desired[1:], *shard.desired[:1])))
            elif others and shards.map.leaves[others[0]].may_hold:
                shards.put_shard(replace(shard, desired=(*shard.desired[:-1], others[0])))
        case _:
            pass


@settings(max_examples=120, deadline=None)
@given(clusters(), st.lists(st.tuples(EVENTS, st.integers(0, 1_000), st.integers(0, 3)), max_size=8))
def test_it_converges_whatever_happens_and_is_then_quiet(shards: Shards, events: list[tuple[str, int, int]]) -> None:
    for event, number, rounds in events:
        happen(shards, event, number)
        for _ in range(rounds):
            before = {shard: shards.living(shard) for shard in shards.map.shards}
            shards.look()
            shards.work()
            for shard, living in before.items():
                wanted = set(shards.map.shards[shard].desired)
                kept = shards.living(shard)
                assert len(kept) >= len(living) or wanted <= kept, "left before everything wanted was in sync"
    shards.is_returning = True
    shards.settle()
    shards.now += 2 * HEAL_AFTER
    shards.settle(200 + 20 * len(shards.map.shards))
    may_hold = {leaf.id for leaf in shards.map.leaves.values() if leaf.may_hold and leaf.id in shards.up}
    for shard in shards.map.shards.values():
        if may_hold and shards.living(shard.id):
            assert shards.living(shard.id) <= may_hold, "somebody who should be empty is not"
            assert len(shards.living(shard.id)) == min(len(may_hold), shards.map.replicas)


@settings(max_examples=100, deadline=None)
@given(clusters(equal=True), st.integers(0, 5))
def test_a_death_moves_what_was_lost_and_the_spread_stays_fair(shards: Shards, number: int) -> None:
    leaf = sorted(shards.map.leaves)[number % len(shards.map.leaves)]
    replicas = shards.map.replicas
    lost = {shard for shard in shards.holding(leaf) if replicas > 1}
    shards.up.discard(leaf)
    shards.look()
    shards.now += HEAL_AFTER
    shards.settle()
    if replicas == 1:
        return
    spare = len(shards.up) >= replicas
    assert shards.copies >= len(lost) * spare
    # What was lost, and what an uneven completion of it would cost: at most one for each leaf.
    assert shards.copies <= (len(lost) + len(shards.up)) * spare
    assert_fair(shards)


@settings(max_examples=100, deadline=None)
@given(clusters(equal=True))
def test_a_leaf_that_joins_costs_no_more_moves_than_the_best_placement(shards: Shards) -> None:
    current = {shard.id: shard.desired for shard in shards.map.shards.values()}
    shards.put_leaf(Leaf("new", "h:1"))
    shards.up.add("new")
    ring = tuple(RingLeaf(leaf) for leaf in shards.map.leaves)
    best = solve(PlacementProblem(ring, tuple(current), shards.map.replicas, 0, current))
    shards.settle()
    assert shards.copies <= best.moved
    assert_fair(shards)


def assert_fair(shards: Shards) -> None:
    """No living leaf is more than one replica, or one primary, beside its share."""
    held = Counter(leaf for shard in shards.map.shards.values() for leaf in shard.desired if leaf in shards.up)
    leads = Counter(shard.primary for shard in shards.map.shards.values())
    replicas = min(shards.map.replicas, len(shards.up))
    weights, zones = dict.fromkeys(shards.up, 1.0), dict.fromkeys(shards.up, "")
    fair = fair_shares(weights, zones, len(shards.map.shards), replicas, held).fair
    for leaf in shards.up:
        assert floor(fair[leaf]) - 1 <= held[leaf] <= ceil(fair[leaf]) + 1
        part = Fraction(held[leaf], replicas)
        assert floor(part) - 1 <= leads[leaf] <= ceil(part) + 1
