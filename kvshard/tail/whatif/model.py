"""The event loop of the model: requests come, are scattered into legs, and the real attempt machines ask the model's leaves.

The service's own code decides, `Defences` and `AttemptMachine` with all that they hold: delays, budget, gates, hold-out, choice
of the replica, probation, stalled leaves and their pings. Modelled are arrivals, leaves, and a network whose time is part of
the leaf's. The router takes no time beyond `overhead_s`; its timers are never late.

Pure: imports only the standard library and other pure files.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from kvshard.clustermap import Replica, ShardConfig
from kvshard.errors import ErrorDetails, ResourceExhausted
from kvshard.tail.attempts import AttemptMachine
from kvshard.tail.deadlines import leg_deadline
from kvshard.tail.defences import Defences, LegHedges, RequestHedges
from kvshard.tail.hedging import HedgeSettings, Off, ReplicaChoice
from kvshard.tail.histogram import LogHistogram
from kvshard.tail.leaf_health import Attempt
from kvshard.tail.leg_events import (
    Action,
    AttemptFailed,
    AttemptKind,
    AttemptSucceeded,
    Cancel,
    Config,
    DeadlinePassed,
    Event,
    Send,
    SetTimer,
    TimerFired,
    Won,
)
from kvshard.tail.replica_plan import ReplicaPlan, plan_read
from kvshard.tail.whatif.latency import Latency, RequestTimes
from kvshard.tail.whatif.model_leaf import Events, Job, ModelLeaf, faults_of
from kvshard.tail.whatif.scenario import Arm, Scenario, Setting, check

LIGHT_KIND, HEAVY_KIND = "Get", "Search"
"""All legs of a model are of one kind; it matters for where they are sent, see `kvshard.tail.cost_class`."""

WARM_UP_S = 10.0
"""Before the first request that counts: the defences look back over ten seconds."""

WARM_UP_LEAST = 500
"""Requests that warm up at least, so that a slow cluster has latencies to learn from."""

WARM_UP_PART = 0.25
"""No more than this part of the counted requests: at a high rate the defences have learned long before ten seconds."""


@dataclass(slots=True)
class Tally:
    """What a run counted, in seconds and attempts, of the requests that count.

    first_attempts: how long first attempts took, or would have, had nobody cancelled them. wasted: attempts that a leaf had
    begun when they were cancelled.
    """

    gathered: LogHistogram = field(default_factory=LogHistogram)
    legs: LogHistogram = field(default_factory=LogHistogram)
    first_attempts: LogHistogram = field(default_factory=LogHistogram)
    requests: int = 0
    failures: int = 0
    firsts: int = 0
    hedges: int = 0
    wasted: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class _Request:
    __slots__ = ("began", "hedges", "is_counted", "is_failed", "legs", "pending", "times")

    def __init__(self, began: float, hedges: RequestHedges, times: RequestTimes, is_counted: bool) -> None:
        self.began = began
        self.hedges = hedges
        self.times = times
        self.is_counted = is_counted
        self.is_failed = False
        self.legs: list[_Leg] = []
        self.pending = 0


class _Leg:
    __slots__ = ("asked", "gate", "machine", "number", "request")

    def __init__(self, request: _Request, number: int, gate: LegHedges, machine: AttemptMachine) -> None:
        self.request = request
        self.number = number
        self.gate = gate
        self.machine = machine
        self.asked: dict[int, tuple[ModelLeaf, Job, Attempt]] = {}


class Model:
    """One run. Arrivals, faults and latencies have generators of their own: arms with the same seed meet the same weather."""

    def __init__(self, latency: Latency, scenario: Scenario, arm: Arm, setting: Setting, requests: int, seed: int) -> None:
        check(scenario, arm, setting)
        self.tally = Tally()
        self._latency = latency
        self._setting = setting
        self._requests = requests
        self._warm_up = min(max(int(setting.rate * WARM_UP_S), WARM_UP_LEAST), max(1, int(requests * WARM_UP_PART)))
        self._events = Events()
        names = ("arrivals", "others", "latencies", "policy")
        self._arrivals, self._others, self._draws, self._chance = (Random(f"{seed}/{name}") for name in names)
        self._plans = [plan_read(config, is_stale=False) for config in shard_configs(setting)]
        self._choice = arm.choice
        self._config = Config(max_attempts=arm.max_attempts)
        self._defences = Defences(HedgeSettings(arm.hedge, arm.budget, arm.max_attempts), self._chance)
        self._refused_before: Counter[str] = Counter()
        is_plain = isinstance(arm.hedge, Off) and arm.choice is not ReplicaChoice.ADAPTIVE
        # Where there are queues, a leg that is given up at its deadline makes room in one.
        self._has_decisions = not is_plain or setting.busy_s > 0 or setting.queue_max is not None
        zero = self._warm_up / setting.rate
        self._leaves = {
            _leaf_name(index): ModelLeaf(
                self._events,
                faults_of(index, scenario.faults),
                setting,
                zero,
                Random(f"{seed}/leaf/{index}"),
                index,
            )
            for index in range(setting.leaves)
        }
        self._arrived = 0
        self._ended = 0

    def run(self) -> Tally:
        """Until every request has ended."""
        self._events.at(self._arrivals.expovariate(self._setting.rate), self._arrive)
        for fan_out, rate in self._setting.background:
            self._events.at(self._others.expovariate(rate), self._arrive_other, fan_out, rate)
        self._events.run(lambda: self._ended == self._requests)
        self.tally.refused = self._refused() - self._refused_before
        return self.tally

    def _refused(self) -> Counter[str]:
        return Counter({reason.value: count for reason, count in self._defences.counters.refused.items()})

    # -- requests

    def _arrive(self) -> None:
        self._arrived += 1
        if self._arrived < self._warm_up + self._requests:
            self._events.at(self._events.now + self._arrivals.expovariate(self._setting.rate), self._arrive)
        if self._arrived == self._warm_up + 1:
            self._refused_before = self._refused()
        self._begin(self._setting.fan_out, is_counted=self._arrived > self._warm_up)

    def _arrive_other(self, fan_out: int, rate: float) -> None:
        self._events.at(self._events.now + self._others.expovariate(rate), self._arrive_other, fan_out, rate)
        self._begin(fan_out, is_counted=False)

    def _begin(self, fan_out: int, is_counted: bool) -> None:
        now, setting = self._events.now, self._setting
        times = self._latency.request(self._draws, fan_out)
        request = _Request(now, self._defences.request(None, fan_out, now), times, is_counted)
        shards: Sequence[int] = range(setting.shards)
        if fan_out < setting.shards or setting.is_light:
            shards = self._draws.sample(shards, fan_out)
        deadline = leg_deadline(now, now + setting.deadline_s)
        request.pending = fan_out
        for number, shard in enumerate(shards):
            if self._has_decisions:
                self._begin_leg(request, number, self._plans[shard], deadline)
            else:
                self._begin_plain_leg(request, number, self._plans[shard])
        if request.pending:
            self._events.at(deadline, self._deadline, request)

    def _begin_leg(self, request: _Request, number: int, plan: ReplicaPlan, deadline: float) -> None:
        now = self._events.now
        gate = request.hedges.leg(LIGHT_KIND if self._setting.is_light else HEAVY_KIND, now)
        candidates = self._defences.order(plan, self._choice, now, gate)
        machine = AttemptMachine(self._config, candidates, deadline, self._chance, gate)
        leg = _Leg(request, number, gate, machine)
        request.legs.append(leg)
        self._perform(leg, machine.start(now))

    def _begin_plain_leg(self, request: _Request, number: int, plan: ReplicaPlan) -> None:
        """A leg of an arm without defences: one attempt, which nothing follows, and from which nobody learns.

        It gives what `_begin_leg` would give, in a fifth of the time.
        """
        (candidate, *_) = self._defences.order(plan, self._choice, self._events.now)
        self.tally.firsts += request.is_counted
        leaf = self._leaves[candidate.leaf]
        latency = request.times.first(number, leaf.index)
        leaf.submit(Job(latency, self._events.now, lambda job: self._plain_answered(request, job)))

    def _plain_answered(self, request: _Request, job: Job) -> None:
        seconds = min(self._events.now - job.arrived, self._setting.deadline_s)
        if request.is_counted:
            self.tally.first_attempts.record(seconds)
        if request.pending:
            self._count_leg(request, seconds, has_answer=True)

    def _deadline(self, request: _Request) -> None:
        for leg in request.legs:
            self._step(leg, DeadlinePassed())
        while request.pending:
            self._count_leg(request, self._setting.deadline_s, has_answer=False)

    def _end_leg(self, leg: _Leg) -> None:
        leg.gate.ended(leg.machine.tries)
        self._count_leg(leg.request, self._events.now - leg.request.began, isinstance(leg.machine.outcome, Won))

    def _count_leg(self, request: _Request, seconds: float, has_answer: bool) -> None:
        if request.is_counted:
            self.tally.legs.record(seconds if has_answer else self._setting.deadline_s)
        request.is_failed |= not has_answer
        request.pending -= 1
        if not request.pending:
            self._end_request(request, seconds)

    def _end_request(self, request: _Request, slowest_s: float) -> None:
        request.hedges.ended(self._events.now)
        request.legs.clear()
        if not request.is_counted:
            return
        self._ended += 1
        tally, deadline_s = self.tally, self._setting.deadline_s
        beyond_s = self._setting.overhead_s + request.times.beyond_s
        tally.requests += 1
        tally.failures += request.is_failed
        tally.gathered.record(deadline_s if request.is_failed else min(slowest_s + beyond_s, deadline_s))

    # -- attempts

    def _step(self, leg: _Leg, event: Event) -> None:
        self._perform(leg, leg.machine.step(event, self._events.now))

    def _perform(self, leg: _Leg, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(attempt, candidate, kind):
                    self._send(leg, attempt, candidate.leaf, kind)
                case SetTimer(at):
                    self._events.at(at, self._timer, leg, at)
                case Cancel(attempt):
                    self._cancel(leg, attempt)
                case _:
                    pass
        if leg.machine.outcome is not None and actions:
            self._end_leg(leg)

    def _send(self, leg: _Leg, number: int, name: str, kind: AttemptKind) -> None:
        now, leaf, tally = self._events.now, self._leaves[name], self.tally
        is_first = kind is AttemptKind.FIRST
        times, age_s = leg.request.times, now - leg.request.began
        latency = times.first(leg.number, leaf.index) if is_first else times.further(self._draws, leaf.index, age_s)
        if leg.request.is_counted:
            tally.firsts += is_first
            tally.hedges += not is_first
        job = Job(latency, now, lambda job: self._answered(leg, number, job))
        leg.asked[number] = leaf, job, self._defences.began(name, leg.gate, now, kind)
        retry_after_s = leaf.retry_after_s(kind is AttemptKind.HEDGE)
        if retry_after_s is None:
            leaf.submit(job)
        else:
            self._events.at(now, self._shed, leg, number, retry_after_s)

    def _shed(self, leg: _Leg, number: int, retry_after_s: float) -> None:
        _, _, attempt = leg.asked[number]
        if number not in leg.machine.outstanding:
            return
        details = ErrorDetails(retry_after_ms=round(retry_after_s * 1000) or 1)
        error = ResourceExhausted("the leaf's queue is full", details)
        self._defences.failed(attempt, error, self._events.now)
        self._step(leg, AttemptFailed(number, error))

    def _cancel(self, leg: _Leg, number: int) -> None:
        leaf, job, attempt = leg.asked[number]
        leaf.cancel(job)
        if leg.request.is_counted:
            self.tally.wasted += job.is_begun
        if self._defences.cancelled(attempt, self._events.now):
            leaf.ping(lambda: self._defences.health.pinged(attempt.leaf.name, self._events.now))

    def _answered(self, leg: _Leg, number: int, job: Job) -> None:
        now = self._events.now
        if number == 1 and leg.request.is_counted:
            self.tally.first_attempts.record(min(now - job.arrived, self._setting.deadline_s))
        if job.is_cancelled:
            return
        leaf, _, attempt = leg.asked[number]
        self._defences.answered(attempt, now, leaf.in_flight, max(0.0, now - job.arrived - self._setting.network_s))
        self._step(leg, AttemptSucceeded(number))

    def _timer(self, leg: _Leg, at: float) -> None:
        if leg.machine.timer_at == at:
            self._step(leg, TimerFired())


def shard_configs(setting: Setting) -> list[ShardConfig]:
    """The shards on their leaves: every leaf holds as many replicas as every other, give or take one, and no two pair up more
    than they must."""
    configs = []
    for shard in range(setting.shards):
        turn, first = divmod(shard, setting.leaves)
        stride = 1 + turn % max(1, (setting.leaves - 1) // max(1, setting.replicas - 1))
        leaves = [_leaf_name((first + step * stride) % setting.leaves) for step in range(setting.replicas)]
        assert len(set(leaves)) == setting.replicas, "replicas of a shard live on different leaves"
        replicas = tuple(Replica(leaf) for leaf in leaves)
        configs.append(ShardConfig(shard, shard, shard, 1, leaves[0], replicas, desired=tuple(leaves)))
    return configs


def _leaf_name(index: int) -> str:
    return f"leaf-{index}"
