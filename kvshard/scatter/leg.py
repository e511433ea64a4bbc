"""One leg as it meets the leaves: whom it may ask by the present map, and what each answer teaches about shards and leaves.

What is sent when is decided in `kvshard.tail.attempts`; here is what one sending means.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Concatenate, Generic, TypeVar, cast

from kvshard.clock import Clock
from kvshard.clustermap import ShardConfig
from kvshard.errors import Expired, KvShardError, Unavailable, in_doubt
from kvshard.limits import SHARDS_MAX
from kvshard.model import ShardRead, ShardScan, ShardSearch, ShardTerms, ShardWrite, changed
from kvshard.rpc.leaf_client import Answer
from kvshard.scatter.leg_timers import LegTimers
from kvshard.scatter.prober import Prober
from kvshard.scatter.requests import ReadPolicy, is_usual
from kvshard.scatter.routes import MapSource
from kvshard.scatter.watermarks import Repetition, Watermarks
from kvshard.tail.cost_class import leg_kind
from kvshard.tail.defences import Defences, LegHedges, RequestHedges
from kvshard.tail.hedging import HedgePolicy, HedgeSettings, ReplicaChoice
from kvshard.tail.leg_events import AttemptKind, Candidate
from kvshard.tail.replica_health import is_unreachable
from kvshard.tail.replica_plan import ReplicaPlan, plan_read, plan_write

MAP_READ_TIMEOUT_S = 0.25
"""How long a leg waits for the coordinator; after that it asks again by the map that is known, which the watch keeps new."""

PLANS_MAX = 4 * SHARDS_MAX
"""Plans kept: of every shard of the largest map those for writes, strong reads and what is left of an older map."""

RequestT = TypeVar("RequestT", bound=ShardRead | ShardWrite | ShardScan | ShardSearch | ShardTerms)
ReplyT = TypeVar("ReplyT")
Ask = Callable[Concatenate[str, RequestT, float, ...], Awaitable[Answer[ReplyT]]]
"""A method of LeafClient: (leaf, request, deadline), and of reads is_hedge."""


@dataclass(frozen=True, slots=True)
class How:
    """How the legs of a request are to be done.

    hedge: the request's own policy; settings: those of its collection; None: what the next one says. Of no matter to a write.
    is_repetition: of a write that may have been sent by somebody before.
    """

    replica_choice: ReplicaChoice = ReplicaChoice.ADAPTIVE
    is_stale: bool = False
    hedge: HedgePolicy | None = None
    settings: HedgeSettings | None = None
    is_repetition: bool = False


USUALLY = How()
REPEATED = How(is_repetition=True)


def how_to_read(policy: ReadPolicy, settings: HedgeSettings | None = None) -> How:
    """What a read's policy means for its legs, in a collection with these settings."""
    if settings is None and is_usual(policy):
        return USUALLY  # Without a look-up that hashes all of the policy.
    return _how_to_read(policy, settings)


@lru_cache(maxsize=256)
def _how_to_read(policy: ReadPolicy, settings: HedgeSettings | None) -> How:
    return How(policy.replica_choice, policy.is_stale, policy.hedge, settings)


@dataclass(frozen=True, slots=True)
class Heard:
    """What replies taught. committed: seen in any reply. refreshed: writes that a search was promised to see."""

    committed: Watermarks = field(default_factory=Watermarks)
    refreshed: Watermarks = field(default_factory=Watermarks)


class Plans:
    """The replica plans of the present configurations. At most PLANS_MAX of them."""

    def __init__(self) -> None:
        self._plans: dict[tuple[int, bool, bool], ReplicaPlan] = {}

    def of(self, config: ShardConfig, how: How, is_write: bool) -> ReplicaPlan:
        """The plan for such a request by this configuration."""
        kind = (config.id, is_write, how.is_stale)
        plan = self._plans.get(kind)
        if plan is None or plan.config is not config:
            plan = plan_write(config) if is_write else plan_read(config, how.is_stale)
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            self._plans[kind] = plan
        return plan


@dataclass(frozen=True, slots=True)
class Shared:
    """What all legs of a process share."""

    maps: MapSource
    clock: Clock
    defences: Defences
    prober: Prober
    timers: LegTimers = field(default_factory=LegTimers)
    plans: Plans = field(default_factory=Plans)
    heard: Heard = field(default_factory=Heard)

    def learn(self, shard: int, answer: Answer[Any]) -> None:
        """An answer tells how far its shard has committed."""
        seqno = getattr(answer.reply, "seqno", 0)  # A search's answer has none.
        if seqno:
            self.heard.committed.learn(shard, seqno)


def addressed(request: RequestT, candidate: Candidate) -> RequestT:
    """The request as it is sent to a replica: by the epoch of the set that this was taken from."""
    return request if request.epoch == candidate.epoch else changed(request, epoch=candidate.epoch)


class Prepared:
    """A leg before its first attempt: whom it may ask, in which order. gate: None for a write.

    has_failover: see `ReplicaPlan`.
    """

    __slots__ = ("candidates", "gate", "has_failover")

    def __init__(self, gate: LegHedges | None, candidates: tuple[Candidate, ...], has_failover: bool) -> None:
        self.gate = gate
        self.candidates = candidates
        self.has_failover = has_failover


def prepare(
    shared: Shared, config: ShardConfig | None, request: RequestT, how: How, hedges: RequestHedges | None, now: float
) -> Prepared:
    """Look up whom a leg may ask. config: of its shard, by the map that is known. hedges: None for a write."""
    gate = None if hedges is None else hedges.leg(leg_kind(request), now)
    if config is None:
        return Prepared(gate, (), False)
    plan = shared.plans.of(config, how, hedges is None)
    return Prepared(gate, shared.defences.order(plan, how.replica_choice, now, gate), plan.has_failover)


class Leg(Generic[RequestT, ReplyT]):
    """One leg. `send`, `refresh` and `look` are what the executor wants of it."""

    def __init__(
        self,
        ask: Ask[RequestT, ReplyT],
        request: RequestT,
        how: How,
        hedges: LegHedges | None,
        shared: "Shared",
    ) -> None:
        """hedges: None for a write."""
        self.request = request
        self.how = how
        self._ask = ask
        self._hedges = hedges
        self._shared = shared
        self._clock = shared.clock
        self._repetition = Repetition(request, how.is_repetition) if isinstance(request, ShardWrite) else None

    def look(self) -> tuple[Candidate, ...]:
        """The candidates by the map that is known."""
        shared = self._shared
        config = shared.maps.current.shards.get(self.request.shard)
        if config is None:
            return ()
        plan = shared.plans.of(config, self.how, self._repetition is not None)
        return shared.defences.order(plan, self.how.replica_choice, self._clock.monotonic(), self._hedges)

    async def refresh(self) -> tuple[Candidate, ...]:
        """The candidates by the newest map; while the coordinator does not answer, by the map that is known."""
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(MAP_READ_TIMEOUT_S):
                await self._shared.maps.refresh()
        return self.look()

    async def send(self, candidate: Candidate, deadline: float, kind: AttemptKind) -> Answer[ReplyT]:
        """Ask a candidate. Raises KvShardError."""
        if self._repetition is not None or self._hedges is None:
            assert self._repetition is not None, "only a write has no hedges"
            return await self._send_write(self._repetition, candidate, deadline)
        request = addressed(self.request, candidate)
        defences, clock = self._shared.defences, self._clock
        attempt = defences.began(candidate.leaf, self._hedges, clock.monotonic(), kind)
        try:
            answer = await self._ask(candidate.leaf, request, deadline, kind is AttemptKind.HEDGE)
        except KvShardError as error:
            if defences.failed(attempt, error, clock.monotonic()):
                self._shared.prober.watch(candidate.leaf)
            raise
        except BaseException:
            if defences.cancelled(attempt, clock.monotonic()):
                self._shared.prober.watch(candidate.leaf)
            raise
        at_leaf_s = (answer.queue_us + answer.service_us) * 1e-6
        defences.answered(attempt, clock.monotonic(), answer.in_flight, at_leaf_s)
        self._shared.learn(self.request.shard, answer)
        return answer

    async def _send_write(self, repetition: Repetition, candidate: Candidate, deadline: float) -> Answer[ReplyT]:
        while True:
            request = repetition.next_sending(candidate.epoch)
            try:
                answer = await self._ask(candidate.leaf, cast(RequestT, request), deadline)
            except KvShardError as error:
                if is_unreachable(error) and self._shared.defences.health.unreachable(candidate.leaf, self._clock.monotonic()):
                    self._shared.prober.watch(candidate.leaf)
                if repetition.may_send_at_once(error):
                    continue
                if isinstance(error, Expired) and repetition.may_be_done:
                    raise in_doubt(error) from None
                raise
            except BaseException:
                repetition.may_be_done = True
                raise
            self._shared.learn(self.request.shard, answer)
            return answer
