"""Whatever the order of events: the budget holds, no write is hedged, and every attempt that began has ended exactly once."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from sim.tail.legs import How, LegRun, Request, Router
from sim.tail.world import World

from kvshard.clustermap import Replica, ShardConfig
from kvshard.errors import (
    DataLoss,
    DeadlineExceeded,
    ErrorDetails,
    InvalidArgument,
    KvShardError,
    NotReady,
    ResourceExhausted,
    StaleEpoch,
    Unavailable,
)
from kvshard.tail.hedging import Auto, FixedDelay, HedgeSettings, Off, Quantile, ReplicaChoice
from kvshard.tail.leg_events import AttemptSucceeded
from kvshard.tail.replica_plan import plan_read, plan_write

LEAVES = ("leaf-0", "leaf-1", "leaf-2", "leaf-3")
NAMED = ErrorDetails(shards=(0,))
ERRORS: tuple[KvShardError, ...] = (
    Unavailable("connection refused"),
    NotReady("no lease", NAMED),
    StaleEpoch("old", NAMED),
    ResourceExhausted("busy", NAMED),
    DataLoss("bad", NAMED),
    InvalidArgument("wrong", NAMED),
    DeadlineExceeded("late"),
)
PLANS = [
    plan_read(ShardConfig(s, 0, 0, 1, LEAVES[s % 4], tuple(Replica(LEAVES[(s + i) % 4], "i") for i in range(3))), False)
    for s in range(4)
]
WRITE = plan_write(PLANS[0].config)

READS = st.builds(
    How,
    st.sampled_from([None, None, Auto(), Off(), FixedDelay(0.0), FixedDelay(0.005), Quantile(0.5)]),
    st.sampled_from([None, None, HedgeSettings(budget=0.5), HedgeSettings(budget=0.0), HedgeSettings(max_attempts=1)]),
    st.sampled_from(ReplicaChoice),
    st.sampled_from(["Get", "Search"]),
)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), READS, st.integers(1, 12)),
        st.tuples(st.just("read"), READS, st.integers(1, 12)),
        st.tuples(st.just("write"), st.none(), st.just(0)),
        st.tuples(st.just("answer"), st.none(), st.integers(0, 100)),
        st.tuples(st.just("answer"), st.none(), st.integers(0, 100)),
        st.tuples(st.just("fail"), st.sampled_from(ERRORS), st.integers(0, 100)),
        st.tuples(st.just("cancel"), st.none(), st.integers(0, 100)),
        st.tuples(st.just("wait"), st.sampled_from([0.0005, 0.004, 0.02, 0.15, 1.1, 11.0]), st.just(0)),
        st.tuples(st.just("stall"), st.sampled_from([0.003, 0.05, 0.5]), st.just(0)),
    ),
    max_size=60,
)


class Silent(World):
    """Leaves that answer nothing of themselves: the test says what comes when."""

    def __init__(self) -> None:
        super().__init__(1, len(LEAVES))
        for leaf in self.leaves.values():
            leaf.deaf_until = 1e12


def attempts(router: Router) -> list[tuple[LegRun, int]]:
    """What is out, in a fixed order."""
    legs = [leg for request in router.open for leg in request.open]
    return sorted(
        ((leg, n) for leg in legs for n in leg.out), key=lambda each: (each[0].request.number, each[0].number, each[1])
    )


@settings(max_examples=120, deadline=None)
@given(EVENTS, st.sampled_from([None, 0.0, 0.05, 0.5]), st.sampled_from([0.02, 1.0, 5.0]))
def test_any_order_of_events(events: list, budget: float | None, deadline_s: float) -> None:
    world = Silent()
    router = Router(world, HedgeSettings(budget=budget))
    oracle = router.oracle
    for event, what, number in events:
        match event:
            case "read":
                Request(router, [PLANS[leg % 4] for leg in range(number)], deadline_s, what)
            case "write":
                Request(router, [WRITE], deadline_s, None)
            case "cancel":
                requests = sorted(router.open, key=lambda each: each.number)
                if requests:
                    requests[number % len(requests)].cancel()
            case "wait":
                world.run(world.now + what, oracle.check)
            case "stall":
                world.busy_until = world.now + what
            case _:
                out = attempts(router)
                if out:
                    leg, attempt = out[number % len(out)]
                    if what is None:
                        leg.end_attempt(attempt, None)
                        leg.happen(AttemptSucceeded(attempt))
                    else:
                        leg.failed(attempt, what)
        oracle.check()
    world.run(world.now + deadline_s + 1.0, oracle.check)
    oracle.require(not router.open, "request never ended", router.open)
    counters = router.defences.counters
    assert not oracle.out
    assert counters.hedges_sent == counters.hedges_won + counters.hedges_wasted == oracle.counts["hedges"]
    assert counters.first_attempts == oracle.counts["first attempts"]
    assert all(not leaf.in_work for leaf in world.leaves.values())
    assert sum(counters.refused.values()) >= 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.0, 0.5), st.integers(1, 64))
def test_no_request_has_more_hedges_than_its_legs_allow(seed: int, budget: float, legs: int) -> None:
    world = Silent()
    world.rng = Random(seed)
    router = Router(world, HedgeSettings(budget=budget))
    request = Request(router, [PLANS[leg % 4] for leg in range(legs)], 2.0, How(FixedDelay(0.001), None, ReplicaChoice.RANDOM))
    world.run(world.now + 3.0, router.oracle.check)
    assert len(request.hedged) <= max(4, legs / 4)  # Whose first attempts are at several leaves, so that many of them are late.
    assert all(len(leg.machine.tries) <= 3 for leg in request.legs)
    assert router.oracle.counts["legs failed"] == legs
