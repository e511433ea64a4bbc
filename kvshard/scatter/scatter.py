"""Legs: one shard's part of a request, sent alone (`ask`) or scattered and gathered (`gather`).

Owns the tasks of scattered legs: whatever happens, a cancelled call included, none is left behind. A leg that failed is data
(`LegResult.error`), never an exception, so that one dead leaf does not end the others. What a shortfall means is decided in
`coverage`, what is sent again when in `kvshard.tail.attempts`.

A shard that has, or is meant to have, several replicas gets over the loss of one: its legs go on until their deadline, reads at
the other replicas, writes with a request id at whoever becomes primary. Where there is nothing to fail over to, the caller is
told at once and decides whether to wait.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Generic, NamedTuple

import structlog

from kvshard.clock import Clock
from kvshard.clustermap import Collection
from kvshard.errors import (
    DeadlineExceeded,
    ErrorDetails,
    Internal,
    KvShardError,
    NotReady,
    ShardMoved,
    StaleEpoch,
    Unavailable,
    record_of,
)
from kvshard.hedge_settings import settings_in
from kvshard.model import ShardWrite
from kvshard.rpc.leaf_client import Answer
from kvshard.scatter.coverage import FailedLeg
from kvshard.scatter.ledger import LegTime, micros, network_of
from kvshard.scatter.leg import USUALLY, Ask, How, Leg, ReplyT, RequestT, Shared, how_to_read
from kvshard.scatter.prober import Ping, Prober
from kvshard.scatter.requests import ReadPolicy
from kvshard.scatter.routes import MapSource, known_map
from kvshard.tail.attempts import MAX_REPEATS
from kvshard.tail.cost_class import leg_kind
from kvshard.tail.defences import Defences, LegHedges, RequestHedges
from kvshard.tail.executor import LegRequest, run_leg
from kvshard.tail.hedging import HedgeSettings, Refusal
from kvshard.tail.leg_events import MAX_REFRESHES, AttemptKind, AttemptRecord, Candidate, Config
from kvshard.telemetry import RouterMetrics

LATE_LEG_GRACE_S = 0.01
"""A leg ends by itself at its deadline; only one whose leaf client fails to keep it is cancelled this much later."""

log = structlog.get_logger(__name__)


class LegResult(NamedTuple, Generic[ReplyT]):
    """How a leg ended: with an answer, or with an error. leaf: who answered, or empty. ended_at: on the monotonic clock.

    tries: the attempts one by one; empty when the first one was answered and nothing else happened. refused: why hedges were
    not sent.

    A named tuple, since every request makes some, and a frozen dataclass takes four times as long to make.
    """

    shard: int
    answer: Answer[ReplyT] | None
    error: KvShardError | None
    leaf: str
    replicas_tried: tuple[str, ...]
    attempts: int
    total_us: int
    ended_at: float
    tries: tuple[AttemptRecord, ...] = ()
    refused: tuple[Refusal, ...] = ()

    @property
    def reply(self) -> ReplyT:
        """What the leaf answered; raises the leg's error when it failed."""
        if self.answer is None:
            raise self.error or Internal("the leg has neither an answer nor an error")
        return self.answer.reply

    def as_failed(self) -> FailedLeg:
        """The leg for the coverage; only of one that failed."""
        return FailedLeg(self.shard, record_of(self.error or Internal("the leg has no error")), self.replicas_tried)

    def as_time(self) -> LegTime:
        """The leg for the ledger."""
        tries = self.tries
        if not tries and self.error is not None and len(self.replicas_tried) == 1:
            # Nobody kept a record of a single attempt, but why it failed is worth a row.
            reason = self.error.reason.lower()
            tries = (AttemptRecord(self.replicas_tried[0], AttemptKind.FIRST, 0.0, self.total_us / 1e6, reason),)
        queue_us, service_us = (self.answer.queue_us, self.answer.service_us) if self.answer else (0, 0)
        network_us = network_of(self.total_us, queue_us, service_us, tries) if self.answer else 0
        return LegTime(
            self.shard,
            self.leaf,
            self.attempts,
            self.total_us,
            queue_us,
            service_us,
            self.ended_at,
            network_us,
            tries,
            tuple(sorted(reason.value for reason in self.refused)),
        )


class Scatter:
    """Sends legs to leaves by the current map; remembers what it heard of shards and leaves, nothing of a request."""

    def __init__(
        self,
        maps: MapSource,
        clock: Clock,
        metrics: RouterMetrics,
        ping: Ping,
        rng: Random | None = None,
        settings: HedgeSettings = HedgeSettings(),  # noqa: B008  # frozen
    ) -> None:
        """ping: LeafClient.ping. settings: how reads are hedged that do not say it."""
        self._rng = rng or Random()
        self.defences = Defences(settings, self._rng)
        self._prober = Prober(ping, self.defences.health, clock)
        self._shared = Shared(maps, clock, self.defences, self._prober)
        self.heard = self._shared.heard
        self._maps = maps
        self._clock = clock
        self._metrics = metrics
        self._configs: dict[tuple[bool, bool, int], Config] = {}
        self._counters: dict[tuple[str, str], Callable[[], None]] = {}
        self._histograms: dict[str, Callable[[float], None]] = {}

    def how_to_read(self, policy: ReadPolicy, collection: Collection) -> How:
        """What a read's policy means for its legs in this collection."""
        return how_to_read(policy, settings_in(collection, self.defences.settings))

    async def ask(
        self,
        method: str,
        ask: Ask[RequestT, ReplyT],
        request: RequestT,
        deadline: float,
        how: How = USUALLY,
    ) -> LegResult[ReplyT]:
        """Send one leg and wait for its outcome. Raises nothing but what a cancelled task raises."""
        began = self._clock.monotonic()
        if isinstance(request, ShardWrite):
            return await self._leg(method, ask, request, deadline, how, None)
        hedges = self.defences.request(how.hedge, 1, began, how.settings)
        result = await self._leg(method, ask, request, deadline, how, hedges)
        hedges.ended(result.ended_at)
        return result

    async def _leg(
        self,
        method: str,
        ask: Ask[RequestT, ReplyT],
        request: RequestT,
        deadline: float,
        how: How,
        hedges: RequestHedges | None,
    ) -> LegResult[ReplyT]:
        began = self._clock.monotonic()
        try:
            result = await self._ask(ask, request, deadline, how, hedges, began)
        except KvShardError as error:
            result = self._failed(request, error, began)
        except Exception as defect:
            log.exception("leg failed in an unforeseen way", method=method, shard=request.shard)
            details = ErrorDetails(shards=(request.shard,), maybe_applied=isinstance(request, ShardWrite))
            result = self._failed(request, Internal(f"{type(defect).__name__}: {defect}", details), began)
        self._observe(method, result)
        return result

    async def gather(
        self,
        method: str,
        ask: Ask[RequestT, ReplyT],
        requests: Sequence[RequestT],
        deadline: float,
        how: How = USUALLY,
    ) -> list[LegResult[ReplyT]]:
        """Send one leg a request, all at once, and wait for all outcomes, at most until the deadline.

        The results are in the order of the requests. When this returns or is cancelled, no leg is under way any more.
        """
        if not requests:
            return []
        began = self._clock.monotonic()
        is_write = isinstance(requests[0], ShardWrite)
        hedges = None if is_write else self.defences.request(how.hedge, len(requests), began, how.settings)
        # Light legs follow the first one to its leaf: were that always the same shard's, its leaves would get the most.
        first = int(self._rng.random() * len(requests))
        turned = [*requests[first:], *requests[:first]]
        started = [asyncio.create_task(self._leg(method, ask, request, deadline, how, hedges)) for request in turned]
        legs = started[len(requests) - first :] + started[: len(requests) - first]
        try:
            await asyncio.wait(legs, timeout=max(0.0, deadline - began) + LATE_LEG_GRACE_S)
        finally:
            late = [leg for leg in legs if not leg.done()]
            for leg in late:
                leg.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if hedges is not None:
            hedges.ended(self._clock.monotonic())
        return [
            self._late(method, request, began) if leg.cancelled() else leg.result()
            for request, leg in zip(requests, legs, strict=True)
        ]

    async def _ask(
        self,
        ask: Ask[RequestT, ReplyT],
        request: RequestT,
        deadline: float,
        how: How,
        hedges: RequestHedges | None,
        began: float,
    ) -> LegResult[ReplyT]:
        config = known_map(self._maps).shards.get(request.shard)
        gate = None if hedges is None else hedges.leg(leg_kind(request), began)
        leg = Leg(ask, request, how, gate, self._shared)
        plan = None if config is None else self._shared.plans.of(config, how, hedges is None)
        candidates = () if plan is None else leg.candidates(plan)
        has_failover = plan is not None and plan.has_failover
        if len(candidates) != 1 or gate is None:
            return await self._run(leg, gate, candidates, has_failover, deadline, began)
        # With one candidate there is nothing to hedge: a leg is needed only when the first try fails.
        try:
            answer = await leg.send(candidates[0], deadline, AttemptKind.FIRST)
        except Unavailable as error:
            is_refusal = isinstance(error, (StaleEpoch, NotReady))
            if isinstance(error, ShardMoved) or not (is_refusal or has_failover):
                raise
        else:
            ended = self._clock.monotonic()
            leaf = candidates[0].leaf
            return LegResult(request.shard, answer, None, leaf, (leaf,), 1, micros(ended - began), ended)
        result = await self._run(leg, gate, await leg.refresh(), has_failover, deadline, began)
        tried = tuple(dict.fromkeys((candidates[0].leaf, *result.replicas_tried)))
        return result._replace(attempts=result.attempts + 1, replicas_tried=tried)

    async def _run(
        self,
        leg: Leg[RequestT, ReplyT],
        gate: LegHedges | None,
        candidates: tuple[Candidate, ...],
        has_failover: bool,
        deadline: float,
        began: float,
    ) -> LegResult[ReplyT]:
        shard = leg.request.shard
        request = LegRequest(shard, candidates, deadline, self._config(leg, has_failover), self._rng, gate)
        try:
            outcome = await run_leg(request, leg.send, leg.refresh, self._clock, leg.look)
        except BaseException:
            if gate is not None:
                gate.given_up()
            raise
        ended = self._clock.monotonic()
        if gate is None:
            self.defences.late_write(ended - began, ended)
        elif outcome.tries:
            gate.ended(outcome.tries)
        return LegResult(
            shard=shard,
            answer=outcome.answer,
            error=None if outcome.error is None else _naming(outcome.error, shard, outcome.replicas_tried),
            leaf=outcome.winner or "",
            replicas_tried=outcome.replicas_tried,
            attempts=outcome.attempts,
            total_us=micros(ended - began),
            ended_at=ended,
            tries=outcome.tries,
            refused=outcome.refused,
        )

    def _config(self, leg: Leg[RequestT, ReplyT], has_failover: bool) -> Config:
        """Made once for each kind of leg: there are few."""
        is_write = isinstance(leg.request, ShardWrite)
        may_repeat = has_failover and (not isinstance(leg.request, ShardWrite) or bool(leg.request.client))
        max_attempts = 1 if is_write else (leg.how.settings or self.defences.settings).max_attempts
        kind = (is_write, may_repeat, max_attempts)
        made = self._configs.get(kind)
        if made is None:
            made = self._configs[kind] = Config(
                max_attempts=max_attempts,
                is_idempotent=not is_write,
                may_repeat=may_repeat,
                max_refreshes=MAX_REPEATS if may_repeat else MAX_REFRESHES,
            )
        return made

    async def close(self) -> None:
        """Stop what runs beside the requests."""
        await self._prober.close()

    def _failed(self, request: RequestT, error: KvShardError, began: float) -> LegResult[ReplyT]:
        ended = self._clock.monotonic()
        config = self._maps.current.shards.get(request.shard)
        tried = error.details.replicas_tried or (() if config is None else (config.primary,))
        error = _naming(error, request.shard, tried)
        return LegResult(request.shard, None, error, "", tried, 1, micros(ended - began), ended)

    def _late(self, method: str, request: RequestT, began: float) -> LegResult[ReplyT]:
        details = ErrorDetails(shards=(request.shard,), maybe_applied=isinstance(request, ShardWrite))
        result: LegResult[ReplyT] = self._failed(
            request, DeadlineExceeded(f"shard {request.shard} did not answer in time", details), began
        )
        self._observe(method, result)
        return result

    def _observe(self, method: str, result: LegResult[ReplyT]) -> None:
        outcome = "ok" if result.error is None else result.error.reason.lower()
        count = self._counters.get((method, outcome))
        if count is None:
            count = self._counters[method, outcome] = self._metrics.legs.labels(method, outcome).inc
        count()
        observe = self._histograms.get(method)
        if observe is None:
            observe = self._histograms[method] = self._metrics.leg_seconds.labels(method).observe
        observe(result.total_us / 1_000_000)


def _naming(error: KvShardError, shard: int, tried: tuple[str, ...]) -> KvShardError:
    """The error with the shard it concerns and the leaves that were asked, where the leaf did not say so itself."""
    details = error.details
    named = replace(details, shards=details.shards or (shard,), replicas_tried=details.replicas_tried or tried)
    return error if named == details else type(error)(error.message, named)
