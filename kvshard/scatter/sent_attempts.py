"""Attempts of reads that were sent without awaiting anything: what the defences know of each, and the first one of a leg.

The lane tells each attempt what became of it; nobody waits for it in a task.
"""

from math import inf
from typing import Any, Generic

from kvshard.errors import KvShardError
from kvshard.rpc.leaf_client import Answer, TakeBack
from kvshard.scatter.leg import RequestT, Shared
from kvshard.tail.defences import LegHedges, LegTiming, RequestHedges
from kvshard.tail.hedger import Hedger
from kvshard.tail.hedging import Refusal
from kvshard.tail.leaf_health import Attempt
from kvshard.tail.leg_events import Candidate
from kvshard.tail.replica_plan import ReplicaPlan


class SentAttempt:
    """One that is under way. attempt: what the defences hold it for; None once it has ended. take_back: does so at the leaf."""

    __slots__ = ("attempt", "candidate", "take_back")

    attempt: Attempt | None
    take_back: TakeBack

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.candidate.leaf}, {'ended' if self.attempt is None else 'under way'})"

    def told(self, outcome: Answer[Any] | KvShardError, shard: int, shared: Shared, now: float) -> None:
        """What became of it: the defences learn it, and the watermarks of its shard do."""
        attempt, self.attempt = self.attempt, None
        assert attempt is not None, "what was taken back is not heard of"
        if isinstance(outcome, KvShardError):
            if shared.defences.failed(attempt, outcome, now):
                shared.prober.watch(self.candidate.leaf)
            return
        shared.defences.answered(attempt, now, outcome.in_flight, (outcome.queue_us + outcome.service_us) * 1e-6)
        shared.learn(shard, outcome)

    def give_up(self, shared: Shared, now: float) -> None:
        """Take it back; of no effect once it has ended."""
        attempt, self.attempt = self.attempt, None
        if attempt is None:
            return
        self.take_back()
        if shared.defences.cancelled(attempt, now):
            shared.prober.watch(self.candidate.leaf)


class FirstAttempt(SentAttempt, Generic[RequestT]):
    """That of one leg. place: of the leg in its read. began, due: when it was sent, and when it is late.

    gate, hedger: once it was late, and no hedge has been sent yet. postponed: how often it was late, and the router too.
    """

    __slots__ = ("began", "due", "gate", "hedger", "place", "plan", "postponed", "request", "timing")

    def __init__(
        self, place: int, request: RequestT, plan: ReplicaPlan, candidate: Candidate, timing: LegTiming, now: float
    ) -> None:
        # Not by super(): every leg of every read makes one.
        self.candidate = candidate
        self.place = place
        self.request = request
        self.plan = plan
        self.timing = timing
        self.began = now
        self.due = inf
        self.gate: LegHedges | None = None
        self.hedger: Hedger | None = None
        self.postponed = 0

    def ended(self) -> tuple[Refusal, ...]:
        """It was answered, late as it was. Returns why no hedge was sent."""
        if self.gate is not None:
            self.gate.ended(())
        refused: set[Refusal] = set() if self.hedger is None else self.hedger.refused
        return tuple({*refused, Refusal.LATE_ROUTER} if self.postponed else refused)

    def ask(self, hedges: RequestHedges, now: float, deadline: float) -> Candidate | float | None:
        """Whom to ask beside; or when to ask again: see `Hedger.ask`."""
        if self.hedger is None or self.gate is None:
            self.gate = LegHedges(hedges, self.timing)
            self.hedger = Hedger(self.gate)
        mine = self.candidate
        spares = [each for each in self.plan.candidates if each is not mine]
        return self.hedger.ask(spares, (mine,), now - self.due, now, deadline)
