"""One leaf as a router sees it: what it was asked and has not answered, and the state that this means.

What the states are and what follows from them is said in `replica_health`, which moves them.

Pure: imports only the standard library and other pure files.
"""

from enum import IntEnum
from math import inf

from kvshard.tail.latency import LatencyPool

SLOW_START_S = 5.0
"""A leaf that is new to a router counts as that for so long: its caches are cold."""

FRESH_S = 1.0
"""A load report counts for so long."""


class LeafState(IntEnum):
    """From good to bad; see the module's docstring."""

    OK = 0
    NEW = 1
    PROBATION = 2
    PUSHBACK = 3
    STALLED = 4
    UNREACHABLE = 5


class Outstanding:
    """The attempts of one kind at one leaf that have no answer, oldest first. overtaken_to: when the latest one of those that
    were answered was sent."""

    __slots__ = ("attempts", "overtaken_to", "pool")

    def __init__(self, pool: LatencyPool) -> None:
        self.pool = pool
        self.attempts: dict[int, Attempt] = {}
        self.overtaken_to = -inf

    def __len__(self) -> int:
        return len(self.attempts)

    def is_overdue(self, now: float) -> bool:
        """Whether they say that the leaf is stalled: the oldest one that none has overtaken speaks for them."""
        for attempt in self.attempts.values():
            if attempt.began > self.overtaken_to:
                return attempt.stalled_at <= now
        return False

    def lateness(self, now: float) -> float:
        """For how many medians of its kind that one has waited."""
        median = self.pool.median
        for attempt in self.attempts.values():
            if attempt.began > self.overtaken_to:
                return (now - attempt.began) / median if median else inf
        return 0.0


class Leaf:
    """One leaf as this router sees it.

    outstanding: by kind of leg, the attempts without an answer. waiting: how many there are. in_flight: requests that it had in
    work besides the one it answered last. others: those of them that are not of this router. fine_at: the last instant at which
    nothing spoke against it; nothing has happened to it since.
    is_silent: an attempt was given up, and nothing has been heard of the leaf since it began. is_unproven: it has answered a
    ping since, but no request yet.
    """

    __slots__ = (
        "fine_at", "first_attempts", "heard_at", "in_flight", "is_on_probation", "is_silent", "is_unproven", "known_since",
        "name", "next_probe_at", "others", "outstanding", "pushback_until", "samples", "slowness", "stepped_at",
        "unreachable_until", "waiting",
    )  # fmt: skip

    def __init__(self, name: str, now: float, is_new: bool) -> None:
        self.name = name
        self.known_since = now if is_new else -inf
        self.outstanding: dict[LatencyPool, Outstanding] = {}
        self.waiting = 0
        self.fine_at = -inf
        self.in_flight = 0
        self.others = 0
        self.heard_at = -inf
        self.slowness = 1.0
        self.samples = 0
        self.stepped_at = -inf
        self.is_silent = False
        self.is_unproven = False
        self.is_on_probation = False
        self.next_probe_at = 0.0
        self.pushback_until = 0.0
        self.unreachable_until = 0.0
        self.first_attempts = 0

    def __repr__(self) -> str:
        return f"Leaf({self.name}, waiting={self.waiting}, in_flight={self.in_flight}, slowness={self.slowness:.2f})"

    def is_stalled(self, now: float) -> bool:
        """Whether what it has not answered is overdue."""
        if self.is_silent:
            return True
        if self.waiting:
            for attempts in self.outstanding.values():
                if attempts.is_overdue(now):
                    return True
        return False

    def lateness(self, now: float) -> float:
        """For how many medians of its kind what it has not answered has waited; as its `slowness` is counted."""
        return max((attempts.lateness(now) for attempts in self.outstanding.values()), default=0.0)

    @property
    def is_probed(self) -> bool:
        """It gets single first attempts, to see how it is."""
        return self.is_on_probation or self.is_unproven

    def state(self, now: float) -> LeafState:
        """How it stands now."""
        if now < self.unreachable_until:
            return LeafState.UNREACHABLE
        if self.is_stalled(now):
            return LeafState.STALLED
        if now < self.pushback_until:
            return LeafState.PUSHBACK
        if self.is_probed:
            return LeafState.PROBATION
        return LeafState.NEW if now - self.known_since < SLOW_START_S else LeafState.OK

    def load(self, now: float) -> int:
        """Requests in flight there: those of this router, and what others had there when it reported last, if that is fresh."""
        return self.waiting + self.others if now - self.heard_at < FRESH_S else self.waiting


class Attempt:
    """An attempt under way; handed back when it has ended. stalled_at: from then on it is overdue."""

    __slots__ = ("began", "id", "is_first", "leaf", "outstanding", "pool", "stalled_at")

    def __init__(self, id: int, leaf: Leaf, outstanding: Outstanding, began: float, stalled_at: float, is_first: bool) -> None:
        self.id = id
        self.leaf = leaf
        self.outstanding = outstanding
        self.pool = outstanding.pool
        self.began = began
        self.stalled_at = stalled_at
        self.is_first = is_first
