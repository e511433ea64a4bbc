"""One leg as it meets the leaves: whom it may ask by the present map, and what each answer teaches about shards and leaves.

What is sent when is decided in `kvshard.tail.attempts`; here is what one sending means.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from random import Random
from typing import Generic, TypeVar, cast

from kvshard.clock import Clock
from kvshard.clustermap import ShardConfig
from kvshard.errors import DeadlineExceeded, Expired, KvShardError, Unavailable, in_doubt
from kvshard.limits import SHARDS_MAX
from kvshard.model import ShardRead, ShardScan, ShardSearch, ShardWrite
from kvshard.rpc.leaf_client import Answer
from kvshard.tail.attempts import Candidate
from kvshard.tail.hedging import DEFAULT_DELAY_S, ReplicaChoice, fixed_delay
from kvshard.tail.replica_health import RecentTrouble, is_unreachable
from kvshard.tail.replica_plan import ReplicaPlan, plan_read, plan_write
from router.requests import ReadPolicy
from router.routes import MapSource
from router.watermarks import Repetition, Watermarks

MAP_READ_TIMEOUT_S = 0.25
"""How long a leg waits for the coordinator; after that it asks again by the map that is known, which the watch keeps new."""

PLANS_MAX = 4 * SHARDS_MAX
"""Plans kept: of every shard of the largest map those for writes, strong reads and what is left of an older map."""

RequestT = TypeVar("RequestT", bound=ShardRead | ShardWrite | ShardScan | ShardSearch)
ReplyT = TypeVar("ReplyT")
Ask = Callable[[str, RequestT, float], Awaitable[Answer[ReplyT]]]
"""A method of LeafClient: (leaf, request, deadline)."""


@dataclass(frozen=True, slots=True)
class How:
    """How the legs of a request are to be done.

    hedge_after_s: None: never; of no matter to a write. is_repetition: of a write that may have been sent by somebody before.
    """

    replica_choice: ReplicaChoice = ReplicaChoice.ADAPTIVE
    is_stale: bool = False
    hedge_after_s: float | None = DEFAULT_DELAY_S
    is_repetition: bool = False


USUALLY = How()
REPEATED = How(is_repetition=True)


@lru_cache(maxsize=256)
def how_to_read(policy: ReadPolicy) -> How:
    """What a read's policy means for its legs."""
    return How(policy.replica_choice, policy.is_stale, fixed_delay(policy.hedge))


@dataclass(frozen=True, slots=True)
class Heard:
    """What replies taught. committed: seen in any reply. refreshed: writes that a search was promised to see."""

    committed: Watermarks = field(default_factory=Watermarks)
    refreshed: Watermarks = field(default_factory=Watermarks)
    trouble: RecentTrouble = field(default_factory=RecentTrouble)


class Plans:
    """The replica plans of the present configurations. At most PLANS_MAX of them."""

    def __init__(self) -> None:
        self._plans: dict[tuple[int, bool, bool, bool], ReplicaPlan] = {}

    def of(self, config: ShardConfig, how: How, is_write: bool) -> ReplicaPlan:
        """The plan for such a request by this configuration."""
        kind = (config.id, is_write, how.is_stale, how.replica_choice is ReplicaChoice.PRIMARY)
        plan = self._plans.get(kind)
        if plan is None or plan.config is not config:
            plan = plan_write(config) if is_write else plan_read(config, how.replica_choice, how.is_stale)
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            self._plans[kind] = plan
        return plan


class Leg(Generic[RequestT, ReplyT]):
    """One leg. `send`, `refresh` and `look` are what the executor wants of it."""

    def __init__(
        self,
        ask: Ask[RequestT, ReplyT],
        request: RequestT,
        how: How,
        maps: MapSource,
        plans: Plans,
        heard: Heard,
        clock: Clock,
        rng: Random,
    ) -> None:
        self.request = request
        self.how = how
        self._ask = ask
        self._maps = maps
        self._plans = plans
        self._heard = heard
        self._clock = clock
        self._rng = rng
        self._repetition = Repetition(request, how.is_repetition) if isinstance(request, ShardWrite) else None

    def candidates(self, plan: ReplicaPlan) -> tuple[Candidate, ...]:
        """Whom to ask by this plan, in the order of asking."""
        trouble = self._heard.trouble
        return plan.candidates(self._rng, () if trouble.is_empty else trouble.leaves(self._clock.monotonic()))

    def look(self) -> tuple[Candidate, ...]:
        """The candidates by the map that is known."""
        config = self._maps.current.shards.get(self.request.shard)
        if config is None:
            return ()
        return self.candidates(self._plans.of(config, self.how, self._repetition is not None))

    async def refresh(self) -> tuple[Candidate, ...]:
        """The candidates by the newest map; while the coordinator does not answer, by the map that is known."""
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(MAP_READ_TIMEOUT_S):
                await self._maps.refresh()
        return self.look()

    async def send(self, candidate: Candidate, deadline: float) -> Answer[ReplyT]:
        """Ask a candidate. Raises KvShardError."""
        if self._repetition is not None:
            return await self._send_write(self._repetition, candidate, deadline)
        request = self.request if self.request.epoch == candidate.epoch else replace(self.request, epoch=candidate.epoch)
        began = self._clock.monotonic()
        try:
            answer = await self._ask(candidate.leaf, request, deadline)
        except KvShardError as error:
            if is_unreachable(error) or isinstance(error, DeadlineExceeded):
                self._heard.trouble.note(candidate.leaf, self._clock.monotonic())
            raise
        except asyncio.CancelledError:
            # Overtaken by a hedge, or the caller has lost patience. Scans and searches may take that long in good health.
            now = self._clock.monotonic()
            if isinstance(request, ShardRead) and now - began >= DEFAULT_DELAY_S:
                self._heard.trouble.note(candidate.leaf, now)
            raise
        self._learn(answer)
        return answer

    async def _send_write(self, repetition: Repetition, candidate: Candidate, deadline: float) -> Answer[ReplyT]:
        while True:
            request = repetition.next_sending(candidate.epoch)
            try:
                answer = await self._ask(candidate.leaf, cast(RequestT, request), deadline)
            except KvShardError as error:
                if is_unreachable(error):
                    self._heard.trouble.note(candidate.leaf, self._clock.monotonic())
                if repetition.may_send_at_once(error):
                    continue
                if isinstance(error, Expired) and repetition.may_be_done:
                    raise in_doubt(error) from None
                raise
            except BaseException:
                repetition.may_be_done = True
                raise
            self._learn(answer)
            return answer

    def _learn(self, answer: Answer[ReplyT]) -> None:
        seqno = getattr(answer.reply, "seqno", 0)  # A search's answer has none.
        if seqno:
            self._heard.committed.learn(self.request.shard, seqno)
