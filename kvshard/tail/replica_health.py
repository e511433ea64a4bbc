"""What a router knows of each leaf, and in which order the replicas of a shard are asked because of it.

Choosing well is the first defence, and cheaper than any hedge. States of a leaf, the worst that holds:

    unreachable  it could not be reached; until it answers a ping
    stalled      its oldest attempt without an answer is older than 0.7 x the delay of its kind, and none of that kind that was
                 sent later has overtaken it (if one has, the request is slow and not the leaf); or it is *silent*: attempts at
                 it were given up, and nothing has been heard of it since (then it is asked after those that are merely late)
    pushback     it has shed a request; for as long as it said
    probation    it is PROBATION_FACTOR times as slow as the others; it gets one first attempt a second
    new          seen for less than SLOW_START_S: its share grows from a tenth to the whole
    ok

A leaf gets no first attempt while another candidate is in a better state. (One on probation is worse than one that is stalled
for less than the slow one takes: in a hiccup of all the others the slow one would get whatever comes meanwhile.) Among equals:
of two by chance, the one that is markedly faster if both are cold, else the one with less in flight (Wydrowski et al., "Load is
not what you should balance: Introducing Prequal", NSDI 2024; Mitzenmacher, "The Power of Two Choices", 2001).

Slowness is relative: the median of (latency / median of its kind over all leaves), followed by small steps up and down, one a
sample. A step says which side of the estimate a sample lies on, not how far, so one pause of a second counts as little as one
of 10 ms; and at most one step is taken in STEP_INTERVAL_S, so that the many attempts that one pause holds up count as one.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Iterable
from math import inf
from random import Random

from kvshard.errors import DeadlineExceeded, KvShardError, NotReady, ResourceExhausted, StaleEpoch, Unavailable
from kvshard.tail.latency import REFRESH_S, LatencyPool
from kvshard.tail.leaf_health import FRESH_S, SLOW_START_S, Attempt, Leaf, LeafState, Outstanding

LEAVES_MAX = 1_024
"""Leaves remembered; the largest cluster has fewer."""

STALL_FRACTION = 0.7
"""Of the hedge delay: a leaf counts as stalled a little before its attempts are hedged, so that what follows avoids it."""

PROBATION_FACTOR = 3.0
RELEASE_FACTOR = 2.0
"""Of the others' slowness: where probation begins and where it ends. From the second on a leaf counts as known to be slow."""

PROBATION_SHARE = 1 / 3
"""Of the leaves at most on probation: if more are slow, slow is normal, and the rest would not carry the load."""

PROBATION_SILENT_S = 60.0
"""A leaf on probation that was not heard for so long (it left the cluster, or nobody reads what it holds) is taken off. Else it
would count among those on probation for good, and keep others from getting there."""

PROBE_INTERVAL_S = 1.0
"""A leaf on probation gets a first attempt that often: it can be hedged, so it costs its caller one delay at most."""

SAMPLES_MIN = 10
"""Samples before a leaf's slowness says something."""

STEP = 1.1
STEP_ON_PROBATION = 1.5
"""Factor of one step. Ten times as slow is found in about 24 steps, a recovery on probation, or from as far, in 4 probes."""

STEP_INTERVAL_S = 0.01
"""Shortest time between two steps of a leaf."""

SLOWNESS_MIN, SLOWNESS_MAX = 0.1, 100.0
"""The estimate stays within: from the end of a long outage it must come back."""

FASTER = 1.25
"""A leaf is markedly faster than another by this factor; less is noise, and would send all the load to one."""

SLOWNESS_KNOWN_S = 1.0
"""So long a leaf is passed over for being slower. Nobody would ever hear that it is as fast as the others again."""

SLOW_START_SHARE = 0.1
"""A leaf that is new to this router starts with a tenth of its share, and has the whole after SLOW_START_S."""

HOT_IN_FLIGHT = 2
"""A leaf with so many requests in flight is not hot, whatever the others have."""

LATE_RANK = (LeafState.NEW + LeafState.PROBATION) / 2
"""Of a leaf that is stalled, but for less than one on probation usually takes."""

ALIKE = 1.25
"""A leaf has not markedly more in flight than the others up to so many times their mean."""

HOT_FRACTION = 0.84
"""Of the known leaves: hot is who has more in flight than this part of them (mean and one deviation, were they normal)."""

UNREACHABLE_S = 60.0
"""A leaf that no ping has reached for so long is forgotten, and found out again by the next request."""

PUSHBACK_S = 0.05
PUSHBACK_MAX_S = 5.0
"""How long a leaf that has shed a request is left alone: where it does not say, and at most."""


class ReplicaHealth:
    """All leaves that were ever asked, at most LEAVES_MAX of them.

    late_until: until then answers may lie here unread, and what is overdue says nothing about a leaf: in an overloaded router
    all of them would count as stalled, and a choice among such costs it most.
    """

    def __init__(self, rng: Random) -> None:
        self.sheds = 0
        self.late_until = -inf
        self._unreachable = 0
        self._waiting = 0
        self._rng = rng
        self._leaves: dict[str, Leaf] = {}
        self._began_at: float | None = None
        self._last_id = 0
        self._hot = HOT_IN_FLIGHT
        self._hot_at = -inf
        self._typical = 1.0

    def leaf(self, name: str, now: float) -> Leaf:
        """The leaf of this name."""
        found = self._leaves.get(name)
        if found is None:
            if self._began_at is None:
                self._began_at = now
            if len(self._leaves) >= LEAVES_MAX:
                self._forget_one()
            # Those that a router meets at its own start are as new to it as it is to them: none is to be spared.
            found = self._leaves[name] = Leaf(name, now, is_new=now - self._began_at > SLOW_START_S)
        return found

    def _forget_one(self) -> None:
        idle = next((each for each in self._leaves.values() if not each.waiting), None)
        if idle is not None:
            self._reach(idle)
            del self._leaves[idle.name]

    def leaves(self) -> Iterable[Leaf]:
        """All of them."""
        return self._leaves.values()

    @property
    def has_unreachable(self) -> bool:
        """False while every leaf can be reached, as is usual."""
        return self._unreachable > 0

    def is_unreachable(self, name: str, now: float) -> bool:
        """Whether the leaf could not be reached lately."""
        leaf = self._leaves.get(name)
        return leaf is not None and now < leaf.unreachable_until

    # -- attempts

    def began(self, name: str, pool: LatencyPool, stalled_after: float, now: float, is_first: bool) -> Attempt:
        """An attempt is sent. stalled_after: seconds after which it is overdue."""
        leaf = self._leaves.get(name) or self.leaf(name, now)
        self._last_id = id = self._last_id + 1
        attempts = leaf.outstanding.get(pool)
        if attempts is None:
            attempts = leaf.outstanding[pool] = Outstanding(pool)
        stalled_at = now + stalled_after
        attempt = attempts.attempts[id] = Attempt(id, leaf, attempts, now, stalled_at, is_first)
        leaf.waiting += 1
        self._waiting += 1
        if stalled_at <= leaf.fine_at:
            leaf.fine_at = -inf
        if is_first:
            leaf.first_attempts += 1
            if leaf.is_probed:
                leaf.next_probe_at = now + PROBE_INTERVAL_S
        return attempt

    def answered(self, attempt: Attempt, now: float, in_flight: int) -> None:
        """It was answered."""
        leaf, outstanding = attempt.leaf, attempt.outstanding
        # What `_ended`, `_overtake` and `_heard` do, without three calls: every leg comes by here.
        leaf.waiting -= 1
        self._waiting -= 1
        leaf.fine_at = -inf
        del outstanding.attempts[attempt.id]
        if attempt.began > outstanding.overtaken_to:
            outstanding.overtaken_to = attempt.began
        if leaf.unreachable_until:
            self._back(leaf, now)
        leaf.heard_at = now
        leaf.is_silent = leaf.is_unproven = False
        leaf.in_flight = in_flight
        leaf.others = in_flight - leaf.waiting if in_flight > leaf.waiting else 0
        self._step(attempt, now)

    def failed(self, attempt: Attempt, error: KvShardError, now: float) -> bool:
        """It ended with an error. True when the leaf is to be pinged until it answers."""
        leaf = attempt.leaf
        if isinstance(error, DeadlineExceeded):
            return self.cancelled(attempt, now)
        self._ended(attempt)
        if is_unreachable(error):
            return self.unreachable(leaf.name, now)
        if isinstance(error, ResourceExhausted):
            asked = (error.details.retry_after_ms or 0) / 1_000 or PUSHBACK_S
            leaf.pushback_until = now + min(PUSHBACK_MAX_S, asked)
            self.sheds += 1
            return False  # The lane may have said that, full of what the leaf does not answer: that is no sign of life.
        self._overtake(attempt)
        self._heard(leaf, now)
        leaf.is_unproven = False
        return False

    def unreachable(self, name: str, now: float) -> bool:
        """The leaf could not be reached. True when it is to be pinged until it answers."""
        leaf = self.leaf(name, now)
        is_news = not leaf.unreachable_until
        leaf.fine_at = -inf
        self._unreachable += is_news
        leaf.unreachable_until = now + UNREACHABLE_S
        return is_news

    def cancelled(self, attempt: Attempt, now: float) -> bool:
        """It was given up. True when the leaf is to be pinged until it answers."""
        leaf = attempt.leaf
        self._ended(attempt)
        if now < attempt.stalled_at or leaf.is_silent:
            return False
        self._step(attempt, now, is_given_up=True)
        leaf.is_silent = leaf.heard_at <= attempt.began
        return leaf.is_silent

    def pinged(self, name: str, now: float) -> None:
        """The leaf has answered a ping. If it had fallen silent it gets one first attempt a second until it answers one: a leaf
        that answers pings alone would be asked again and again, and take the budget of all that wait for it."""
        leaf = self.leaf(name, now)
        if leaf.is_silent and not leaf.is_unproven:
            leaf.is_unproven, leaf.next_probe_at = True, now
        self._heard(leaf, now)

    def forget_silence(self, name: str) -> None:
        """No ping has reached the leaf for UNREACHABLE_S: the next request will find out."""
        leaf = self._leaves.get(name)
        if leaf is not None:
            leaf.is_silent = leaf.is_unproven = False
            self._reach(leaf)

    def _ended(self, attempt: Attempt) -> None:
        leaf = attempt.leaf
        leaf.waiting -= 1
        self._waiting -= 1
        leaf.fine_at = -inf  # What it has not answered yet, or why this one ended, may speak against it.
        del attempt.outstanding.attempts[attempt.id]

    def _overtake(self, attempt: Attempt) -> None:
        """It was answered: those of its kind that were sent before it, or with it, are slow for reasons of their own."""
        attempt.outstanding.overtaken_to = max(attempt.outstanding.overtaken_to, attempt.began)

    def _heard(self, leaf: Leaf, now: float) -> None:
        if leaf.unreachable_until:
            self._back(leaf, now)
        leaf.heard_at = now
        leaf.is_silent = False

    def _back(self, leaf: Leaf, now: float) -> None:
        leaf.known_since = now  # It was gone: it comes back with cold caches.
        self._reach(leaf)

    def _reach(self, leaf: Leaf) -> None:
        self._unreachable -= bool(leaf.unreachable_until)
        leaf.unreachable_until = 0.0

    # -- slowness

    def _step(self, attempt: Attempt, now: float, is_given_up: bool = False) -> None:
        leaf, median = attempt.leaf, attempt.pool.median
        if not median or now - leaf.stepped_at < STEP_INTERVAL_S:
            return
        is_slower = now - attempt.began > leaf.slowness * median
        if is_given_up and not is_slower:
            return  # It would have taken longer than that: it says nothing.
        leaf.stepped_at = now
        leaf.samples += 1
        # One that is passed over for its slowness, with no room on probation, is heard as seldom, and has as far to come back.
        is_returning = not is_slower and leaf.slowness >= PROBATION_FACTOR * self._typical
        factor = STEP_ON_PROBATION if leaf.is_on_probation or is_returning else STEP
        moved = leaf.slowness * factor if is_slower else leaf.slowness / factor
        leaf.slowness = min(SLOWNESS_MAX, max(SLOWNESS_MIN, moved))
        if leaf.is_on_probation:
            if leaf.slowness < RELEASE_FACTOR * self._typical_slowness():
                leaf.is_on_probation = False
        elif is_slower and leaf.slowness >= PROBATION_FACTOR * self._typical and leaf.samples >= SAMPLES_MIN:
            self._consider(leaf, now)

    def _consider(self, leaf: Leaf, now: float) -> None:
        self._typical = self._typical_slowness()
        if leaf.slowness < PROBATION_FACTOR * self._typical:
            return
        present = self._present(now)
        others = sum(each.is_on_probation for each in present)
        if others + 1 <= PROBATION_SHARE * len(present):
            leaf.is_on_probation = True
            leaf.next_probe_at = now + PROBE_INTERVAL_S

    def _present(self, now: float) -> list[Leaf]:
        """The leaves that were heard lately. Those that were not are no longer on probation; how slow they are is unknown."""
        present = []
        for leaf in self._leaves.values():
            if now - leaf.heard_at < PROBATION_SILENT_S:
                present.append(leaf)
            else:
                leaf.is_on_probation = False
                leaf.slowness, leaf.samples = 1.0, 0
        return present

    def _typical_slowness(self) -> float:
        known = sorted(each.slowness for each in self._leaves.values() if each.samples >= SAMPLES_MIN)
        return known[(len(known) - 1) // 2] if known else 1.0

    # -- choice

    def order(self, names: tuple[str, ...], now: float) -> tuple[int, ...]:
        """The places of these leaves in the order in which they are to be asked."""
        return self.after(names, self.first(names, now), now)

    def first(self, names: tuple[str, ...], now: float) -> int:
        """The place of the leaf that is to be asked first."""
        count = len(names)
        if count == 1:
            return 0
        random = self._rng.random
        leaves = [self._leaves.get(name) or self.leaf(name, now) for name in names]
        first, second = int(random() * count), int(random() * (count - 1))
        second += second >= first
        known = {first: self._rank(leaves[first], now), second: self._rank(leaves[second], now)}
        if not any(known.values()):
            return self._better(leaves, first, second, now)
        ranks = self._compared(
            leaves, [known[place] if place in known else self._rank(leaf, now) for place, leaf in enumerate(leaves)], now
        )
        least = min(ranks)
        equals = [place for place in range(count) if ranks[place] == least]
        start = int(random() * len(equals))
        best, rival = equals[start], equals[start - 1]
        return best if best == rival else self._better(leaves, best, rival, now)

    def is_slow(self, name: str) -> bool:
        """Whether the leaf is known to be slower than the others."""
        leaf = self._leaves.get(name)
        return leaf is not None and (leaf.is_on_probation or leaf.slowness >= RELEASE_FACTOR * self._typical)

    def takes_more(self, name: str, now: float) -> bool:
        """Whether a leaf that one leg of a request goes to may get further ones of it: it is ok, not hot (or not more than the
        others: where queues are long all of them are, by what they were a moment ago), and not slow."""
        leaf = self._leaves.get(name) or self.leaf(name, now)
        if leaf.is_probed or self._rank(leaf, now) or leaf.slowness > FASTER * self._typical:
            return False
        load = leaf.load(now)
        return load <= self.hot_limit(now) or load * len(self._leaves) <= ALIKE * self._waiting

    def after(self, names: tuple[str, ...], first: int, now: float) -> tuple[int, ...]:
        """The places of these leaves, one of which is asked first, in the order in which they are to be asked."""
        count = len(names)
        if count <= 2:
            return (first, 1 - first)[:count]
        leaves = [self.leaf(name, now) for name in names]
        ranks = self._compared(leaves, [self._rank(leaf, now) for leaf in leaves], now)
        rest = (place for place in range(count) if place != first)
        return (first, *sorted(rest, key=lambda place: (ranks[place], leaves[place].load(now))))

    @staticmethod
    def _compared(leaves: list[Leaf], ranks: list[int], now: float) -> list[float]:
        """The ranks, with those that are stalled compared with those that are probed: of one that has not answered a request
        yet nobody knows how long it takes."""
        if LeafState.STALLED not in ranks or LeafState.PROBATION not in ranks:
            return list(ranks)
        probed = [leaf for leaf, rank in zip(leaves, ranks, strict=True) if rank == LeafState.PROBATION]
        least = min(inf if leaf.is_unproven else leaf.slowness for leaf in probed)
        return [
            LATE_RANK if rank == LeafState.STALLED and leaf.lateness(now) < least else rank
            for leaf, rank in zip(leaves, ranks, strict=True)
        ]

    def _rank(self, leaf: Leaf, now: float) -> int:
        """The state as it matters for a first attempt: a probe, and the share of a new leaf, count as ok."""
        if leaf.fine_at == now:
            return LeafState.OK  # The legs of one request are ordered at one instant.
        if now < leaf.unreachable_until or leaf.is_silent:
            return LeafState.UNREACHABLE  # Silent is worse than late: those that are merely late are asked first.
        if leaf.waiting and now >= self.late_until and leaf.is_stalled(now):
            return LeafState.STALLED
        if now < leaf.pushback_until:
            return LeafState.PUSHBACK
        if leaf.is_probed:
            return LeafState.PROBATION if now < leaf.next_probe_at else LeafState.OK
        age = now - leaf.known_since
        if age >= SLOW_START_S:
            leaf.fine_at = now
        elif self._rng.random() > max(SLOW_START_SHARE, age / SLOW_START_S):
            return LeafState.NEW
        return LeafState.OK

    def _better(self, leaves: list[Leaf], one: int, other: int, now: float) -> int:
        """The better of two in equal state."""
        first, second = leaves[one], leaves[other]
        # A probe that is due is made, or a leaf would never get off; where both are stalled, none is that is not due.
        if second.is_on_probation or second.is_unproven:
            return other if now >= second.next_probe_at else one
        if first.is_on_probation or first.is_unproven:
            return one if now >= first.next_probe_at else other
        load, rival = first.load(now), second.load(now)
        hot = self.hot_limit(now)
        if load <= hot and rival <= hot:
            if first.slowness * FASTER < second.slowness and now - second.stepped_at < SLOWNESS_KNOWN_S:
                return one
            if second.slowness * FASTER < first.slowness and now - first.stepped_at < SLOWNESS_KNOWN_S:
                return other
        return one if load <= rival else other

    def hot_limit(self, now: float) -> int:
        """Requests in flight from which on a leaf counts as hot."""
        if now - self._hot_at > REFRESH_S:
            self._hot_at = now
            loads = sorted(leaf.load(now) for leaf in self._leaves.values() if now - leaf.heard_at < FRESH_S)
            self._hot = max(HOT_IN_FLIGHT, loads[int(HOT_FRACTION * (len(loads) - 1))]) if loads else HOT_IN_FLIGHT
            self._typical = self._typical_slowness()
        return self._hot


def is_unreachable(error: KvShardError) -> bool:
    """Whether the error means that the leaf could not be reached. What a leaf says itself about a shard names that shard."""
    return isinstance(error, Unavailable) and not isinstance(error, (StaleEpoch, NotReady)) and not error.details.shards
