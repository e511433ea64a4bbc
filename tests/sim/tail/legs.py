"""Requests and their legs, driven on virtual time as `kvshard/scatter` and the executor drive them."""

from dataclasses import dataclass

from sim.tail.oracle import FIRST, HEDGE, Oracle, SentAttempt
from sim.tail.world import Turn, World

from kvshard.errors import DeadlineExceeded, KvShardError, ResourceExhausted
from kvshard.tail.attempts import MAX_REPEATS, AttemptMachine
from kvshard.tail.defences import Defences, LegHedges
from kvshard.tail.hedging import HedgePolicy, HedgeSettings, ReplicaChoice
from kvshard.tail.leaf_health import Attempt
from kvshard.tail.leg_events import (
    Action,
    AttemptFailed,
    AttemptKind,
    AttemptSucceeded,
    Cancel,
    Candidate,
    Config,
    DeadlinePassed,
    Event,
    Finish,
    LookAtMap,
    Lost,
    MapRefreshed,
    MapSeen,
    RefreshMap,
    Send,
    SetTimer,
    TimerFired,
)
from kvshard.tail.replica_health import is_unreachable
from kvshard.tail.replica_plan import ReplicaPlan

REFRESH_S = 0.002
PING_TIMEOUT_S, PING_PAUSE_S = 1.0, 0.1
OVERRUN_S = 0.002


@dataclass(eq=False)
class Out:
    """An attempt under way. known: at the defences and at the oracle; None: of a write."""

    leaf: str
    known: tuple[Attempt, SentAttempt] | None
    is_ended: bool = False


class Router:
    """What the shell of a router does, on virtual time."""

    def __init__(self, world: World, settings: HedgeSettings) -> None:
        self.world = world
        self.defences = Defences(settings, world.rng)
        self.oracle = Oracle(self.defences)
        self.open: set[Request] = set()
        self.requests = 0
        self._pinged: set[str] = set()

    def watch(self, leaf: str) -> None:
        """As the prober does."""
        if leaf not in self._pinged:
            self._pinged.add(leaf)
            self._ping(leaf)

    def _ping(self, leaf: str) -> None:
        answer = self.world.leaves[leaf].answer(self.world.now)
        if answer is None or answer[0] > self.world.now + PING_TIMEOUT_S or is_unreachable(answer[1] or DeadlineExceeded("")):
            pause = PING_PAUSE_S if answer is not None else PING_TIMEOUT_S + PING_PAUSE_S
            self.world.at(self.world.now + pause, Turn.TIMER, lambda: self._ping(leaf))
            return
        self.world.at(answer[0], Turn.ANSWER, lambda: self._pong(leaf))

    def _pong(self, leaf: str) -> None:
        self._pinged.discard(leaf)
        self.defences.health.pinged(leaf, self.world.now)
        self.oracle.heard(leaf, self.world.now)


class Request:
    """A read with its legs, or a write with one (how is None)."""

    def __init__(self, router: Router, plans: list[ReplicaPlan], deadline_s: float, how: "How | None") -> None:
        now = router.world.now
        self.router = router
        self.number = router.requests = router.requests + 1
        self.how = how
        self.deadline = now + deadline_s
        self.hedges = None
        if how is not None:
            self.hedges = router.defences.request(how.policy, len(plans), now, how.settings)
            router.oracle.request(self.hedges.budget.budget, len(plans), now)
        self.hedged: set[LegRun] = set()
        self.legs = [LegRun(self, plan, number) for number, plan in enumerate(plans)]
        self.open = set(self.legs)
        router.open.add(self)
        for leg in self.legs:
            leg.start()

    def leg_ended(self, leg: "LegRun") -> None:
        """The request ends with its last leg."""
        self.open.discard(leg)
        if not self.open and self in self.router.open:
            self.router.open.discard(self)
            if self.hedges is not None:
                self.hedges.ended(self.router.world.now)

    def cancel(self) -> None:
        """The caller has gone."""
        self.router.open.discard(self)
        for leg in [leg for leg in self.legs if leg in self.open]:
            leg.give_up()


@dataclass(frozen=True)
class How:
    """How a read is done."""

    policy: HedgePolicy | None
    settings: HedgeSettings | None
    choice: ReplicaChoice
    kind: str = "Get"


class LegRun:
    """One leg: performs the actions of its machine."""

    def __init__(self, request: Request, plan: ReplicaPlan, number: int) -> None:
        self.request = request
        self.number = number
        self.router, self.world = request.router, request.router.world
        self.plan = plan
        self.gate: LegHedges | None = None
        self.out: dict[int, Out] = {}
        self.timer: float | None = None
        self.is_over = False
        self.late_by_s = 0.0
        self.late: set[str] = set()
        self.cause: KvShardError | None = None
        if request.hedges is not None:
            assert request.how is not None
            self.gate = request.hedges.leg(request.how.kind, self.world.now)

    def start(self) -> None:
        """Begin."""
        is_write, how = self.gate is None, self.request.how
        settings = self.router.defences.settings if how is None else how.settings or self.router.defences.settings
        config = Config(1 if is_write else settings.max_attempts, not is_write, True, MAX_REPEATS)
        self.machine = AttemptMachine(config, self.candidates(), self.request.deadline, self.world.rng, self.gate)
        self.world.at(self.request.deadline + OVERRUN_S, Turn.TIMER, lambda: self.happen(DeadlinePassed()))
        self.perform(self.machine.start(self.world.now))

    def candidates(self) -> tuple[Candidate, ...]:
        """Whom to ask by the map."""
        choice = ReplicaChoice.PRIMARY if self.request.how is None else self.request.how.choice
        return self.router.defences.order(self.plan, choice, self.world.now)

    def happen(self, event: Event) -> None:
        """An event comes to the machine."""
        if self.is_over:
            return
        self.cause = event.error if isinstance(event, AttemptFailed) else None
        self.perform(self.machine.step(event, self.world.now))

    def perform(self, actions: list[Action]) -> None:
        """What the executor does."""
        for action in actions:
            match action:
                case Send(attempt, candidate, kind):
                    self.timer = None
                    self.send(attempt, candidate, kind)
                case Cancel(attempt):
                    self.end_attempt(attempt, None, is_given_up=True)
                case SetTimer(at):
                    self.timer = at
                    self.world.at(at, Turn.TIMER, lambda at=at: self.fire(at))
                case RefreshMap():
                    self.world.at(self.world.now + REFRESH_S, Turn.ANSWER, lambda: self.happen(MapRefreshed(self.candidates())))
                case LookAtMap():
                    self.world.at(self.world.now, Turn.TIMER, lambda: self.happen(MapSeen(self.candidates())))
                case Finish(outcome):
                    self.finish(isinstance(outcome, Lost))
        self.machine.check_invariants()

    def fire(self, at: float) -> None:
        """The timer of that instant, unless it was replaced."""
        if self.timer == at:
            self.timer, self.late_by_s = None, self.world.now - at
            self.happen(TimerFired())

    def send(self, attempt: int, candidate: Candidate, kind: AttemptKind) -> None:
        """What `Leg.send` does."""
        world, oracle, now, leaf = self.world, self.router.oracle, self.world.now, candidate.leaf
        waiting = [Candidate(each.leaf) for each in self.out.values()]
        config, gate = self.machine.config, self.gate
        if gate is None:
            oracle.require(not self.out and kind is not HEDGE, "write hedged", f"{kind} while {self.out}")
            self.out[attempt] = Out(leaf, None)
        else:
            how = self.request.how
            oracle.require(len(self.out) < config.max_attempts, "too many attempts", self.machine)
            if kind is HEDGE:
                oracle.hedge(gate, leaf, waiting, self.late_by_s, now, self.request.deadline)
                self.late.update(each.leaf for each in waiting)
                if self not in self.request.hedged:
                    self.request.hedged.add(self)
                    late = set().union(*(leg.late for leg in self.request.hedged if not leg.is_over))
                    oracle.storm(len(self.request.hedged), len(self.request.legs), late)
            elif isinstance(self.cause, ResourceExhausted):
                oracle.extra(gate.request.budget.budget, now)
            if kind is FIRST and how is not None and how.choice is ReplicaChoice.ADAPTIVE:
                oracle.first(leaf, self.plan.leaves, now)
            known = self.router.defences.began(leaf, gate, now, kind)
            self.out[attempt] = Out(leaf, (known, oracle.sent(leaf, gate, kind, now)))
        model = world.leaves[leaf]
        model.in_work.add(self.out[attempt])
        answer = model.answer(now)
        if answer is None or answer[0] > self.request.deadline:
            late = DeadlineExceeded("no answer within the deadline")
            world.at(self.request.deadline, Turn.TIMER, lambda: self.failed(attempt, late))
        else:
            world.at(answer[0], Turn.ANSWER, lambda: self.answered(attempt, answer[1]))

    def answered(self, attempt: int, error: KvShardError | None) -> None:
        """An answer has arrived, unless its leaf has been paused meanwhile."""
        held = self.out.get(attempt)
        if held is None:
            return
        leaf = self.world.leaves[held.leaf]
        if self.world.now < leaf.paused_until:
            self.world.at(leaf.paused_until, Turn.ANSWER, lambda: self.answered(attempt, error))
        elif error is not None:
            self.failed(attempt, error)
        else:
            self.end_attempt(attempt, None)
            self.happen(AttemptSucceeded(attempt))

    def failed(self, attempt: int, error: KvShardError) -> None:
        """An attempt has failed."""
        if attempt in self.out:
            self.end_attempt(attempt, error, isinstance(error, DeadlineExceeded))
            self.happen(AttemptFailed(attempt, error))

    def end_attempt(self, attempt: int, error: KvShardError | None, is_given_up: bool = False) -> None:
        """What `Leg.send` tells the defences when an attempt ends in whatever way."""
        held, now, router = self.out.pop(attempt), self.world.now, self.router
        self.world.leaves[held.leaf].in_work.discard(held)
        if held.known is None:
            if error is not None and is_unreachable(error) and router.defences.health.unreachable(held.leaf, now):
                router.watch(held.leaf)
            return
        known, sent = held.known
        router.oracle.ended(sent, now, error, is_given_up)
        is_to_be_pinged = False
        if error is not None:
            is_to_be_pinged = router.defences.failed(known, error, now)
        elif is_given_up:
            is_to_be_pinged = router.defences.cancelled(known, now)
        else:
            in_flight = len(self.world.leaves[held.leaf].in_work)
            router.defences.answered(known, now, in_flight, 0.5 * (now - known.began))
        if is_to_be_pinged:
            router.watch(held.leaf)

    def finish(self, has_failed: bool) -> None:
        """The leg has an outcome."""
        oracle = self.router.oracle
        self.is_over = True
        oracle.counts["legs failed" if has_failed else "legs answered"] += 1
        oracle.require(not self.out, "loser not cancelled", self.out)
        oracle.require(self.world.now <= max(self.request.deadline, self.world.busy_until) + 0.01, "after the deadline", self)
        if self.gate is not None:
            self.gate.ended(self.machine.tries)
        self.request.leg_ended(self)

    def give_up(self) -> None:
        """What cancelling the leg's task does."""
        self.is_over = True
        for attempt in list(self.out):
            self.end_attempt(attempt, None, is_given_up=True)
        if self.gate is not None:
            self.gate.given_up()
        self.request.open.discard(self)
