"""What must hold of the tail, by an account of its own: it counts what was really sent, and asks no counter of the router."""

from collections import Counter, deque
from collections.abc import Iterable

from kvshard.errors import KvShardError, ResourceExhausted
from kvshard.tail.budget import WINDOW_S, HedgeBudget
from kvshard.tail.defences import Defences, LegHedges
from kvshard.tail.hold_out import HOLD_OUT_S
from kvshard.tail.leg_events import AttemptKind, Candidate
from kvshard.tail.replica_health import PUSHBACK_MAX_S, PUSHBACK_S

LATE_S, LATE_SHARE = 0.002, 0.5
STORM_LEGS, STORM_SHARE = 4, 0.25
DEADLINE_SHARE = 0.5
PROBATION_SHARE = 1 / 3
PROBE_S = 1.0
PASSED_OVER_MAX = 25
"""First attempts that may go elsewhere while a probe is due. (It is one of the two that are drawn twice in three times, but the
legs of one request may all go where the first one went.)"""

HEDGE, FIRST = AttemptKind.HEDGE, AttemptKind.FIRST


class Violation(AssertionError):
    """A rule was broken."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


class SentAttempt:
    """An attempt of a read that is out. overdue_at: from then on its leaf counts as stalled."""

    def __init__(self, leaf: str, kind: str, began: float, overdue_at: float) -> None:
        self.leaf = leaf
        self.kind = kind
        self.began = began
        self.overdue_at = overdue_at


class Oracle:
    """Follows every attempt."""

    def __init__(self, defences: Defences) -> None:
        self.defences = defences
        self.out: dict[SentAttempt, None] = {}  # in the order of sending
        self.silent: set[str] = set()
        self.heard_at: dict[str, float] = {}
        self.overtaken_to: dict[tuple[str, str], float] = {}
        self.pushback_until: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        self.read_at = 0.0
        self._probe_due: dict[str, float] = {}
        self._passed_over: Counter[str] = Counter()
        self._first: dict[HedgeBudget, deque[tuple[float, int]]] = {}
        self._extra: dict[HedgeBudget, deque[float]] = {}

    def require(self, holds: bool, rule: str, text: object) -> None:
        """Raises Violation when it does not hold."""
        if not holds:
            raise Violation(rule, str(text))

    # -- the budget (I17)

    def request(self, budget: HedgeBudget, legs: int, now: float) -> None:
        """A read begins."""
        self.read_at = now
        self._first.setdefault(budget, deque()).append((now, legs))
        self.counts["first attempts"] += legs

    def extra(self, budget: HedgeBudget, now: float) -> None:
        """An extra request was sent."""
        spent, first = self._extra.setdefault(budget, deque()), self._first[budget]
        spent.append(now)
        while spent[0] <= now - WINDOW_S:
            spent.popleft()
        while first and first[0][0] <= now - WINDOW_S:
            first.popleft()
        allowed = budget.fraction * sum(count for _, count in first) + budget.reserve_per_s * WINDOW_S
        self.require(len(spent) <= allowed + 1e-6, "budget", f"{len(spent)} extra in 10 s, {allowed:.2f} allowed, {budget}")

    # -- attempts

    def first(self, chosen: str, candidates: Iterable[str], now: float) -> None:
        """A first attempt goes to `chosen`, by the adaptive choice."""
        self._probe(chosen, candidates, now)
        if self.is_stalled(chosen, now) and now >= self.defences.late_until:
            better = [leaf for leaf in candidates if not self.is_stalled(leaf, now) and not self.is_unreachable(leaf, now)]
            if any(self.is_slower(leaf, chosen, now) for leaf in better):
                # Better than a slow leaf, which is better than one that sheds.
                sheds = {leaf for leaf in better if now < self.pushback_until.get(leaf, 0.0)}
                better = [leaf for leaf in better if leaf not in sheds and not self.is_slower(leaf, chosen, now)]
            self.require(not better, "stalled leaf chosen", f"{chosen} at {now:.4f}, not {better}")

    def _probe(self, chosen: str, candidates: Iterable[str], now: float) -> None:
        for name in candidates:
            leaf = self.defences.health.leaf(name, now)
            if not leaf.is_probed:
                self._probe_due.pop(name, None)
                self._passed_over[name] = 0
            elif name != chosen and now >= self._probe_due.setdefault(name, now + PROBE_S):
                is_bad = self.is_stalled(name, now) or self.is_unreachable(name, now)
                self._passed_over[name] += not is_bad and now >= self.pushback_until.get(name, 0.0)
                self.require(self._passed_over[name] <= PASSED_OVER_MAX, "never probed", f"{leaf} at {now:.4f}")

    def hedge(
        self, leg: LegHedges, chosen: str, waiting: Iterable[Candidate], late_by_s: float, now: float, deadline: float
    ) -> None:
        """A hedge is sent."""
        request, delay = leg.request, leg.delay
        self.counts["hedges"] += 1
        half = request.began + DEADLINE_SHARE * (deadline - request.began)
        if request.is_held_out:
            self.require(now >= min(request.began + HOLD_OUT_S, half) - 1e-9, "hold-out hedged", request)
        self.require(delay is not None, "hedged although off", request.policy)
        assert delay is not None
        self.require(now >= min(request.began + delay, half) - 1e-9, "hedged too early", f"{now - request.began:.4f} s")
        allowed = LATE_S if request.is_held_out else max(LATE_S, LATE_SHARE * delay)
        self.require(late_by_s <= allowed + 1e-9, "late router", f"{late_by_s:.4f} s late")
        is_bad = self.is_stalled(chosen, now) or self.is_unreachable(chosen, now)
        self.require(not is_bad, "hedge to a bad candidate", chosen)
        self.require(now >= self.pushback_until.get(chosen, 0.0), "hedge to a leaf that sheds", chosen)
        self.require(chosen not in {each.leaf for each in waiting}, "hedge to a leaf that is asked", chosen)
        self.extra(request.budget.budget, now)

    def storm(self, hedged_legs: int, legs: int, late: set[str]) -> None:
        """So many legs of a request with so many are hedged; those under way wait for these leaves."""
        is_many = hedged_legs > max(STORM_LEGS, STORM_SHARE * legs)
        self.require(not is_many or len(late) <= 1, "storm", f"{hedged_legs} of {legs} legs hedged, late at {late}")

    def sent(self, leaf: str, leg: LegHedges, kind: AttemptKind, now: float) -> SentAttempt:
        """An attempt of a read is out."""
        if kind is FIRST:
            self._probe_due[leaf] = now + PROBE_S
            self._passed_over[leaf] = 0
        attempt = SentAttempt(leaf, leg.pool.name, now, now + leg.stalled_after)
        self.out[attempt] = None
        return attempt

    def ended(self, attempt: SentAttempt, now: float, error: KvShardError | None, is_given_up: bool) -> None:
        """It is not out any more. error: of the leaf."""
        self.require(attempt in self.out, "attempt ended twice", attempt.leaf)
        self.out.pop(attempt, None)
        if is_given_up:
            if now >= attempt.overdue_at and self.heard_at.get(attempt.leaf, 0.0) <= attempt.began:
                self.silent.add(attempt.leaf)
            return
        if isinstance(error, ResourceExhausted):
            asked = (error.details.retry_after_ms or 0) / 1_000 or PUSHBACK_S
            self.pushback_until[attempt.leaf] = now + min(PUSHBACK_MAX_S, asked)
            return
        if error is None or error.details.shards:
            of_kind = attempt.leaf, attempt.kind
            self.overtaken_to[of_kind] = max(attempt.began, self.overtaken_to.get(of_kind, -1.0))
            self.heard(attempt.leaf, now)

    def heard(self, leaf: str, now: float) -> None:
        """The leaf has given a sign of life."""
        self.heard_at[leaf] = now
        self.silent.discard(leaf)

    def oldest(self, leaf: str) -> list[SentAttempt]:
        """What speaks for it: of each kind the oldest that is out and that none has overtaken."""
        oldest: dict[str, SentAttempt] = {}
        for each in self.out:
            if each.leaf == leaf and each.began > self.overtaken_to.get((leaf, each.kind), -1.0):
                oldest.setdefault(each.kind, each)
        return list(oldest.values())

    def is_stalled(self, leaf: str, now: float) -> bool:
        """By the rule: something is overdue there."""
        return leaf in self.silent or any(each.overdue_at <= now for each in self.oldest(leaf))

    def is_slower(self, leaf: str, stalled: str, now: float) -> bool:
        """Whether a leaf that is probed takes longer than the stalled one has kept anybody waiting. Its slowness is what the
        router makes of it; it is no secret."""
        probed, pool = self.defences.health.leaf(leaf, now), self.defences.pool
        if not probed.is_probed or stalled in self.silent:
            return False
        waited = [(now - each.began) / (pool(each.kind).median or now) for each in self.oldest(stalled)]
        return probed.is_unproven or max(waited) < probed.slowness

    def is_unreachable(self, leaf: str, now: float) -> bool:
        """What the router knows itself; it is no secret."""
        return self.defences.health.is_unreachable(leaf, now)

    # -- after each step, and in the end

    def check(self) -> None:
        """After each step."""
        leaves = list(self.defences.health.leaves())
        out = Counter(each.leaf for each in self.out)
        for leaf in leaves:
            listed = sum(map(len, leaf.outstanding.values()))
            self.require(leaf.waiting == listed == out[leaf.name], "outstanding", f"{leaf}, really {out[leaf.name]}")
        on_probation = sum(leaf.is_on_probation for leaf in leaves)
        self.require(on_probation <= PROBATION_SHARE * max(3, len(leaves)), "probation", f"{on_probation} of {len(leaves)}")

    def check_end(self, now: float) -> None:
        """All requests have ended, and all leaves have been well for long."""
        counters = self.defences.counters
        self.require(not self.out, "attempt never ended", [each.leaf for each in self.out])
        ended = counters.hedges_won + counters.hedges_wasted
        self.require(counters.hedges_sent == ended, "hedge identity", f"{counters.hedges_sent} sent, {ended} ended")
        self.require(counters.hedges_sent == self.counts["hedges"], "hedges counted", counters.hedges_sent)
        for leaf in self.defences.health.leaves():
            # One that fell silent over the last reads, which may have had a millisecond each, could not prove itself any more.
            was_last = leaf.is_unproven and leaf.heard_at > self.read_at - PROBE_S
            self.require(leaf.state(now) <= 1 or was_last, "leaf never well again", f"{leaf} {leaf.state(now).name}")
