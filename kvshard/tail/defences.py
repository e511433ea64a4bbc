"""All that keeps the tail short, put together for one router: budget, delays, gates, hold-out, choice of replicas, counters.

One `Defences` serves all requests of a process; the what-if model drives the same one on virtual time. A request with its legs
is a `RequestHedges`, one of its legs a `LegHedges`: the gate that the attempt machine asks. The gates, in the order in which
they are asked, each refusal counted under its own name (after Cassandra's speculative execution and mcrouter's
AllFastestRoute):

    late_router   the timer was late itself, or one was a moment ago: then this process is what is slow, and a hedge would add
    to it deadline      what is left is less than an answer takes
    no_candidate  every other replica has a late leg of this same request, or is stalled, or cannot be reached
    pushback      the spare replicas are shedding load
    queue         their queues are long
    storm         more than max(4, a quarter) of this request's legs are hedged already, and more than one leaf is late: then it
                  is not one leaf that is slow. (One leaf of few may hold most of the legs; the budget still bounds its cost.)
                  Or many legs of all requests are late, at most of the leaves
    budget        see `budget`; a leg that is late by URGENT_DELAYS may take what is kept for such

and `not_idempotent`, counted for writes that were late: a write is never hedged.

Hold-out (`hold_out`): a few of the requests that might be hedged are not, until long after the others would be (a hung leaf
must not eat a deadline even then). Their latency is what everybody's would be without hedging, so the difference is what
hedging saves, measured while it works.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Sequence
from math import inf
from random import Random
from typing import NamedTuple

from kvshard.errors import DeadlineExceeded, KvShardError
from kvshard.tail.budget import HedgeBudget
from kvshard.tail.cost_class import WRITE
from kvshard.tail.hedger import ASK_PAUSE_S, DOUBLINGS_MAX
from kvshard.tail.hedging import Auto, HedgePolicy, HedgeSettings, Off, Refusal, ReplicaChoice, policy_delay
from kvshard.tail.hold_out import HOLD_OUT_SHARE, Comparison, held_out_delay
from kvshard.tail.latency import LatencyPool
from kvshard.tail.leaf_health import Attempt, LeafState
from kvshard.tail.leg_events import AttemptKind, AttemptRecord, Candidate
from kvshard.tail.replica_health import STALL_FRACTION, ReplicaHealth
from kvshard.tail.replica_plan import ReplicaPlan
from kvshard.tail.tail_counters import TailCounters
from kvshard.tail.tuned_budget import TunedBudget
from kvshard.tail.tuning import SLOW_SHARE

STORM_LEGS = 4
STORM_SHARE = 0.25
"""Legs of one request that may be hedged: one sick leaf of four holds up to a quarter of them."""

STORM_LATE_LEGS = 8
STORM_LATE_SHARE = 0.25
"""Legs of all requests that are late at once, in number and as a part of those under way, from which on hedging stops if more
than half of the leaves in use have some: then everything is slow, or a burst stands in a queue that hedges only make longer."""

LATE_TIMER_S = 0.002
LATE_TIMER_SHARE = 0.5
"""A timer that is late by more than this, and by this part of the delay, says that the event loop is what is slow."""

LATE_MEMORY_MAX_S = 0.5
"""A router that was late counts as late for as long again, at most so long: its answers lie unread, those of legs that were
sent since too. (After a stall of half a second 43 of 400 legs were hedged without it, and none of the hedges won.)"""

QUEUE_MAX = 16
QUEUE_FACTOR = 2.0
"""Requests in flight at a leaf from which on it gets no hedge: so many, or twice what its like have."""

URGENT_DELAYS = 1.5
"""A leg that has waited for so many delays is no slow answer any more, but a straggler: it was refused once, and asks again."""

DEADLINE_SHARE = 0.5
"""Of what is left until the deadline: a hedge is sent by then, or it would come too late."""

TOGETHER_S = 0.001
"""So long what was seen of a leaf holds for the legs of one request: they begin together. What is sent again looks anew."""

POOLS_MAX = 64
"""Kinds of legs; there are twelve."""

BUDGETS_MAX = 256
"""Collections with a budget of their own; beyond that they share the router's."""


class Defences:
    """One router's. settings: what holds where neither request nor collection say anything."""

    def __init__(self, settings: HedgeSettings, rng: Random) -> None:
        self.settings = settings
        self.health = ReplicaHealth(rng)
        self.counters = TailCounters()
        self.late: dict[str, int] = {}
        self._rng = rng
        self._comparison = Comparison()
        self._pools: dict[str, LatencyPool] = {}
        self._budgets: dict[HedgeSettings | None, TunedBudget] = {}

    @property
    def late_until(self) -> float:
        """This process counts as late until then."""
        return self.health.late_until

    def pool(self, kind: str) -> LatencyPool:
        """The latency of this kind of leg."""
        found = self._pools.get(kind)
        if found is None:
            assert len(self._pools) < POOLS_MAX, "kinds of legs are few"
            found = self._pools[kind] = LatencyPool(kind)
        return found

    @property
    def pools(self) -> Sequence[LatencyPool]:
        """All kinds of legs that there have been."""
        return tuple(self._pools.values())

    def request(
        self, policy: HedgePolicy | None, legs: int, now: float, settings: HedgeSettings | None = None
    ) -> "RequestHedges":
        """A read begins that has so many legs. policy: the request's own. settings: the collection's; None: the router's."""
        held = self._budget(settings, now)
        if now >= held.next_look_at:
            held.look(self._pools.values(), self.health.sheds, now)
        held.budget.first_attempts(now, legs)
        counters = self.counters
        counters.requests += 1
        counters.first_attempts += legs
        if policy is None:
            policy = (settings or self.settings).policy
        if isinstance(policy, Off):
            return RequestHedges(self, held, policy, legs, False, False, now)
        part, drawn = self._comparison.part(legs, now), self._rng.random()
        return RequestHedges(self, held, policy, legs, drawn < HOLD_OUT_SHARE * part, drawn < part, now)

    def note_late(self, late_by_s: float, now: float) -> None:
        """A timer of this process was late by so much: of a leg, or any other."""
        if late_by_s > LATE_TIMER_S:
            self.health.late_until = max(self.late_until, now + min(LATE_MEMORY_MAX_S, late_by_s))

    def is_late(self, late_by_s: float, delay: float | None, now: float) -> bool:
        """Whether this process is what is slow. late_by_s: by how much a timer of a leg with this delay was late (None: of one
        whose delay is no measure of it)."""
        share = 0.0 if delay is None else LATE_TIMER_SHARE * delay
        if late_by_s > max(LATE_TIMER_S, share):
            self.note_late(late_by_s, now)
        return now < self.late_until

    def is_storm(self) -> bool:
        """Whether so many legs are late, and at so many leaves, that it is not a few leaves that are slow."""
        late = sum(self.late.values())
        if late <= STORM_LATE_LEGS:
            return False
        waiting = [leaf.waiting for leaf in self.health.leaves() if leaf.waiting]
        return 2 * len(self.late) > len(waiting) and late > STORM_LATE_SHARE * sum(waiting)

    def late_write(self, seconds: float, now: float) -> None:
        """A write has ended after so long. Were it a read, it might have been hedged."""
        pool = self.pool(WRITE)
        if seconds > pool.delay(1 - self.settings.budget_first, now):
            self.counters.refused[Refusal.NOT_IDEMPOTENT] += 1
        pool.record(seconds, now)

    def budget_now(self, now: float, settings: HedgeSettings | None = None) -> HedgeBudget:
        """The budget that requests with these settings share."""
        return self._budget(settings, now).budget

    def _budget(self, settings: HedgeSettings | None, now: float) -> TunedBudget:
        key = settings if settings is not None and settings.budget != self.settings.budget else None
        found = self._budgets.get(key)
        if found is None:
            if key is not None and len(self._budgets) >= BUDGETS_MAX:
                return self._budget(None, now)
            found = self._budgets[key] = TunedBudget(self.settings if key is None else key, self.health.sheds, now)
        return found

    # -- attempts

    def began(self, leaf: str, leg: "LegHedges | LegTiming", now: float, kind: AttemptKind) -> Attempt:
        """An attempt of a leg is sent."""
        return self.health.began(leaf, leg.pool, leg.stalled_after, now, kind is AttemptKind.FIRST)

    def answered(self, attempt: Attempt, now: float, in_flight: int, at_leaf_s: float) -> None:
        """It was answered. at_leaf_s: of its time, what the leaf accounts for."""
        if attempt.is_first:
            seconds = now - attempt.began
            attempt.pool.record(seconds, now, seconds - at_leaf_s)
        self.health.answered(attempt, now, in_flight)

    def failed(self, attempt: Attempt, error: KvShardError, now: float) -> bool:
        """It ended with an error. True when the leaf is to be pinged until it answers."""
        if attempt.is_first and isinstance(error, DeadlineExceeded):
            attempt.pool.record_censored(now - attempt.began, now)  # As if it were given up: only a bound is known.
        return self.health.failed(attempt, error, now)

    def cancelled(self, attempt: Attempt, now: float) -> bool:
        """It was given up. True when the leaf is to be pinged until it answers."""
        if attempt.is_first:
            attempt.pool.record_censored(now - attempt.began, now)
        return self.health.cancelled(attempt, now)

    def order(
        self, plan: ReplicaPlan, choice: ReplicaChoice, now: float, leg: "LegHedges | None" = None
    ) -> tuple[Candidate, ...]:
        """Whom to ask, in the order of asking. leg: for which; the light legs of one request go to few leaves."""
        if leg is None:
            return plan.order(choice, self.health, self._rng, now)
        return plan.behind(self.first(plan, choice, now, leg.request, leg.pool), choice, self.health, now)

    def first(
        self, plan: ReplicaPlan, choice: ReplicaChoice, now: float, request: "RequestHedges", pool: LatencyPool
    ) -> Candidate:
        """Whom to ask first, for a leg of this request and kind: most legs ask nobody else.

        Light legs of one request go to few leaves: their frames then share a message, a request that asks fewer leaves meets a
        slow one less often, and a leaf is looked at once for all of them.
        """
        if request.legs == 1 or not pool.is_light or choice is not ReplicaChoice.ADAPTIVE:
            return plan.first(choice, self.health, self._rng, now)
        joined = request.joined(now)
        for leaf in joined:
            found = plan.by_leaf.get(leaf)
            if found is not None:
                return found
        first = plan.first(choice, self.health, self._rng, now)
        if self.health.takes_more(first.leaf, now):
            joined.append(first.leaf)
        return first


class LegTiming(NamedTuple):
    """What the legs of one kind of a request share, which begin together. is_stretched: the budget makes their hedges wait
    longer than the least delay. The other fields: see `LegHedges`."""

    pool: LatencyPool
    delay: float | None
    stalled_after: float
    again_after: float
    is_stretched: bool

    def wait_s(self, now: float, deadline: float) -> float | None:
        """How long to wait for an answer: the delay, but at most half of what is left."""
        if self.delay is None:
            return None
        return min(self.delay, DEADLINE_SHARE * (deadline - now))


class RequestHedges:
    """A read under way, shared by its legs. late: how many late legs of it a leaf has; leaves without one are not in it."""

    __slots__ = (
        "_has_usual_delay",
        "_joined",
        "_joined_at",
        "_timing",
        "_timing_of",
        "began",
        "budget",
        "defences",
        "hedged_legs",
        "is_compared",
        "is_held_out",
        "late",
        "legs",
        "policy",
    )

    def __init__(
        self,
        defences: Defences,
        held: TunedBudget,
        policy: HedgePolicy,
        legs: int,
        is_held_out: bool,
        is_compared: bool,
        now: float,
    ) -> None:
        """is_compared: its latency counts in the comparison of those that are held out with those that are not."""
        self.defences = defences
        self.budget = held
        self.policy = policy
        self.legs = legs
        self.is_held_out = is_held_out
        self.is_compared = is_compared
        self.began = now
        self.hedged_legs = 0
        self.late: dict[str, int] = {}
        self._joined: list[str] = []
        self._joined_at = now
        self._has_usual_delay = True
        self._timing: LegTiming | None = None
        self._timing_of = ""

    def timing(self, kind: str, now: float) -> LegTiming:
        """Of its legs of one kind: worked out once for all of them."""
        if self._timing is None or self._timing_of != kind:
            self._timing_of, self._timing = kind, self._work_out(self.defences.pool(kind), now)
        return self._timing

    def _work_out(self, pool: LatencyPool, now: float) -> LegTiming:
        fraction = self.budget.budget.ordinary
        usual = pool.delay(1 - fraction, now)
        is_auto = isinstance(self.policy, Auto)
        delay = usual if is_auto else policy_delay(self.policy, pool, fraction, now)
        again_after = inf if delay is None else delay
        is_stretched = is_auto and usual > pool.least_delay
        if is_auto and delay is not None:
            delay = max(delay, self.budget.tuner.patience.delay(pool.least_delay, pool.quantile(1 - SLOW_SHARE, now)))
        # Within what is sensible for the kind of leg: one impatient caller would take the leaf from all the others.
        if delay is not None and delay < usual:
            usual = max(delay, pool.least_delay)
        late_for = self.defences.late_until - now
        if delay is not None and delay < late_for:
            delay, self._has_usual_delay = late_for, False  # Sooner it would be refused, and ask again and again.
        if self.is_held_out and delay is not None:
            delay = again_after = held_out_delay(delay)
            self._has_usual_delay = False
        return LegTiming(pool, delay, STALL_FRACTION * usual, again_after, is_stretched)

    def joined(self, now: float) -> list[str]:
        """The leaves that light legs of it were sent to just now, and which take more of them; in that order."""
        if now - self._joined_at > TOGETHER_S:
            self._joined, self._joined_at = [], now
        return self._joined

    def leg(self, kind: str, now: float) -> "LegHedges":
        """One of its legs."""
        return LegHedges(self, self.timing(kind, now))

    def postponed_s(self, legs: int, late_by_s: float, timing: LegTiming, before: int, now: float) -> float | None:
        """How long to wait before so many late legs ask for hedges, since it is this router that is late; None: they may ask.

        One look for all of them, and twice as long after each that they have had `before`: a gate for each costs as much as
        four answers, and a router that has fallen behind would spend on hedges that it refuses what it needs to catch up. (At
        70 % of the processors each hiccup of some milliseconds became one of a tenth of a second so.) late_by_s: by how much
        their timer was late.
        """
        defences = self.defences
        if not defences.is_late(late_by_s, self.measure(timing.delay), now):
            return None
        defences.counters.refused[Refusal.LATE_ROUTER] += legs
        return max(ASK_PAUSE_S, defences.late_until - now, timing.pool.least_delay * 2.0 ** min(before, DOUBLINGS_MAX))

    def measure(self, delay: float | None) -> float | None:
        """The delay by which a late timer of this request is judged: None if it is much longer than usual."""
        return delay if self._has_usual_delay else None

    def ended(self, now: float) -> None:
        """All of its legs have ended."""
        if isinstance(self.policy, Off):
            return
        counters = self.defences.counters
        if self.is_held_out:
            counters.held_out_requests += 1
            counters.held_out.record(now - self.began, now)
        else:
            counters.hedgeable_requests += 1
            if self.is_compared:
                counters.hedgeable.record(now - self.began, now)


class LegHedges:
    """One leg's gate; see `HedgeGate`. delay: seconds after which it is late; None: it is not hedged. again_after: how long
    after a refusal it asks again; patience is for the first time only."""

    __slots__ = ("_timing", "again_after", "delay", "is_hedged", "late_at", "pool", "request", "stalled_after", "under_way")

    def __init__(self, request: RequestHedges, timing: LegTiming) -> None:
        self.request = request
        self._timing = timing
        self.pool, self.delay, self.stalled_after, self.again_after, _ = timing
        self.is_hedged = False
        self.late_at: set[str] = set()
        self.under_way = 0

    def wait_s(self, now: float, deadline: float) -> float | None:
        """How long to wait for an answer: the delay, but at most half of what is left."""
        return self._timing.wait_s(now, deadline)

    def admit(
        self, spares: Sequence[Candidate], waiting: Sequence[Candidate], late_by_s: float, now: float, deadline: float
    ) -> Candidate | Refusal:
        """Whom of the spare candidates to ask now; or why nobody."""
        request = self.request
        chosen = self._chosen(spares, waiting, late_by_s, now, deadline)
        counters = request.defences.counters
        if isinstance(chosen, Refusal):
            counters.refused[chosen] += 1
            request.budget.seen.missed += chosen is Refusal.BUDGET
            return chosen
        if not self.is_hedged:
            self.is_hedged = True
            request.hedged_legs += 1
        counters.hedges_sent += 1
        request.budget.seen.stretched += self._timing.is_stretched
        self.under_way += 1
        return chosen

    def again_s(self, refusal: Refusal, now: float, deadline: float) -> float | None:
        """When to ask again: once the router is late no more, or the leg is urgent; else after a further delay."""
        wait = self.wait_s(now, deadline)
        if wait is None:
            return None
        wait = min(wait, self.again_after)
        if refusal is Refusal.LATE_ROUTER:
            return max(0.0, self.request.defences.late_until - now)
        if refusal is Refusal.BUDGET and not self._is_urgent(now):
            return min(wait, self._urgent_at - now)
        return wait

    def may_fail_over(self, now: float) -> bool:
        """Whether another replica may be asked because one has shed the request: that is extra load, too."""
        return self.request.budget.budget.try_take(now)

    def ended(self, tries: Sequence[AttemptRecord]) -> None:
        """The leg has ended, with these attempts (none: the first one was answered)."""
        counters, seen = self.request.defences.counters, self.request.budget.seen
        is_auto, is_slow = isinstance(self.request.policy, Auto), self.request.defences.health.is_slow
        self.under_way = 0
        self._forget_late()
        for each in tries:
            if each.kind is AttemptKind.HEDGE:
                has_won = each.outcome == "won"
                counters.hedges_won += has_won
                counters.hedges_wasted += not has_won
                seen.won += has_won
                seen.wasted += not has_won
                # One slow leaf is beaten by every hedge, however hasty: against hiccups of the others that haste loses.
                is_telling = is_auto and not any(is_slow(tried.leaf) for tried in tries)
                seen.telling_won += has_won and is_telling
                seen.telling_wasted += not has_won and is_telling
            elif each.kind is AttemptKind.FAILOVER:
                counters.failovers += 1

    def given_up(self) -> None:
        """The caller has gone: the leg ends without an outcome. That its hedges did not win says nothing about hedging."""
        self.request.defences.counters.hedges_wasted += self.under_way
        self.under_way = 0
        self._forget_late()

    def _note_late(self, waiting: Sequence[Candidate]) -> None:
        for each in waiting:
            if each.leaf not in self.late_at:
                self.late_at.add(each.leaf)
                for late in (self.request.late, self.request.defences.late):
                    late[each.leaf] = late.get(each.leaf, 0) + 1

    def _forget_late(self) -> None:
        """The leg has ended: where it was late another one may be hedged to again, unless the leaf is stalled."""
        for leaf in self.late_at:
            for late in (self.request.late, self.request.defences.late):
                late[leaf] -= 1
                if not late[leaf]:
                    del late[leaf]
        self.late_at.clear()

    def _chosen(
        self, spares: Sequence[Candidate], waiting: Sequence[Candidate], late_by_s: float, now: float, deadline: float
    ) -> Candidate | Refusal:
        request = self.request
        assert self.delay is not None, "a leg without a delay has no timer"
        if request.defences.is_late(late_by_s, request.measure(self.delay), now):
            return Refusal.LATE_ROUTER  # It does not even say that the leaf is late.
        self._note_late(waiting)
        if deadline - now < (self.pool.median or 0.0):
            return Refusal.DEADLINE
        candidate = self._spare(spares, now)
        if isinstance(candidate, Refusal):
            return candidate
        is_many = request.hedged_legs >= max(STORM_LEGS, STORM_SHARE * request.legs)
        if (is_many and not self.is_hedged and len(request.late) > 1) or request.defences.is_storm():
            return Refusal.STORM
        return candidate if request.budget.budget.try_take(now, self._is_urgent(now)) else Refusal.BUDGET

    def _is_urgent(self, now: float) -> bool:
        return now >= self._urgent_at

    @property
    def _urgent_at(self) -> float:
        return inf if self.delay is None else self.request.began + URGENT_DELAYS * self.delay

    def _spare(self, spares: Sequence[Candidate], now: float) -> Candidate | Refusal:
        """The best of the spare candidates: the least loaded of those in the best state."""
        health, late = self.request.defences.health, self.request.late
        reason = Refusal.NO_CANDIDATE
        best: Candidate | None = None
        best_rank = (inf, inf)
        for each in spares:
            leaf = health.leaf(each.leaf, now)
            if each.leaf in late:
                continue
            state, load = leaf.state(now), leaf.load(now)
            if state is LeafState.PUSHBACK:
                reason = Refusal.PUSHBACK
            elif load > max(QUEUE_MAX, QUEUE_FACTOR * health.hot_limit(now)):
                reason = Refusal.QUEUE
            elif state < LeafState.STALLED and (state, load) < best_rank:
                best, best_rank = each, (state, load)
        return reason if best is None else best
