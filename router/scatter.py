"""Legs: one shard's part of a request, sent alone (`ask`) or scattered and gathered (`gather`).

Owns the tasks of scattered legs: whatever happens, a cancelled call included, none is left behind. A leg that failed is data
(`LegResult.error`), never an exception, so that one dead leaf does not end the others. What a shortfall means is decided in
`coverage`, what is sent again when in `kvshard.tail.attempts`.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import structlog

from kvshard.clock import Clock
from kvshard.errors import DeadlineExceeded, ErrorDetails, Internal, KvShardError, NotReady, StaleEpoch, Unavailable, record_of
from kvshard.model import ShardRead, ShardScan, ShardSearch, ShardWrite
from kvshard.rpc.leaf_client import Answer
from kvshard.tail.attempts import Candidate, Config
from kvshard.tail.executor import LegRequest, run_leg
from kvshard.telemetry import RouterMetrics
from router.coverage import FailedLeg
from router.ledger import LegTime, micros
from router.routes import MapSource, candidates, known_map

LATE_LEG_GRACE_S = 0.01
"""A leg ends by itself at its deadline; only one whose leaf client fails to keep it is cancelled this much later."""

RequestT = TypeVar("RequestT", ShardRead, ShardWrite, ShardScan, ShardSearch)
ReplyT = TypeVar("ReplyT")
Ask = Callable[[str, RequestT, float], Awaitable[Answer[ReplyT]]]
"""A method of LeafClient: (leaf, request, deadline)."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LegResult(Generic[ReplyT]):
    """How a leg ended: with an answer, or with an error. leaf: who answered, or empty. ended_at: on the monotonic clock."""

    shard: int
    answer: Answer[ReplyT] | None
    error: KvShardError | None
    leaf: str
    replicas_tried: tuple[str, ...]
    attempts: int
    total_us: int
    ended_at: float

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
        queue_us, service_us = (self.answer.queue_us, self.answer.service_us) if self.answer else (0, 0)
        return LegTime(self.shard, self.leaf, self.attempts, self.total_us, queue_us, service_us, self.ended_at)


class Scatter:
    """Sends legs to leaves by the current map; holds no state of a request."""

    def __init__(self, maps: MapSource, clock: Clock, metrics: RouterMetrics) -> None:
        self._maps = maps
        self._clock = clock
        self._metrics = metrics
        self._counters: dict[tuple[str, str], Callable[[], None]] = {}
        self._histograms: dict[str, Callable[[float], None]] = {}

    async def ask(
        self,
        method: str,
        ask: Ask[RequestT, ReplyT],
        request: RequestT,
        deadline: float,
    ) -> LegResult[ReplyT]:
        """Send one leg and wait for its outcome. Raises nothing but what a cancelled task raises."""
        began = self._clock.monotonic()
        try:
            result = await self._ask(ask, request, deadline, began)
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
    ) -> list[LegResult[ReplyT]]:
        """Send one leg a request, all at once, and wait for all outcomes, at most until the deadline.

        The results are in the order of the requests. When this returns or is cancelled, no leg is under way any more.
        """
        if not requests:
            return []
        began = self._clock.monotonic()
        legs = [asyncio.create_task(self.ask(method, ask, request, deadline)) for request in requests]
        try:
            await asyncio.wait(legs, timeout=max(0.0, deadline - began) + LATE_LEG_GRACE_S)
        finally:
            late = [leg for leg in legs if not leg.done()]
            for leg in late:
                leg.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        return [
            self._late(method, request, began) if leg.cancelled() else leg.result()
            for request, leg in zip(requests, legs, strict=True)
        ]

    async def _ask(self, ask: Ask[RequestT, ReplyT], request: RequestT, deadline: float, began: float) -> LegResult[ReplyT]:
        config = known_map(self._maps).shards.get(request.shard)
        if config is None:
            return await self._run_machine(ask, request, deadline, began)
        may_ask = candidates(config, isinstance(request, ShardWrite))
        if len(may_ask) > 1:
            return await self._run_machine(ask, request, deadline, began)
        # With one candidate there is nothing to hedge: the attempt machine is needed only when the first try is refused.
        if request.epoch != config.epoch:
            request = replace(request, epoch=config.epoch)
        try:
            answer = await ask(config.primary, request, deadline)
        except (StaleEpoch, NotReady):
            with contextlib.suppress(Unavailable):
                await self._maps.refresh()
            return await self._run_machine(ask, request, deadline, began)
        ended = self._clock.monotonic()
        return LegResult(request.shard, answer, None, config.primary, may_ask, 1, micros(ended - began), ended)

    async def _run_machine(
        self, ask: Ask[RequestT, ReplyT], request: RequestT, deadline: float, began: float
    ) -> LegResult[ReplyT]:
        is_write = isinstance(request, ShardWrite)

        async def send(candidate: Candidate, deadline: float) -> Answer[ReplyT]:
            return await ask(candidate.leaf, replace(request, epoch=candidate.epoch), deadline)

        async def refresh() -> tuple[Candidate, ...]:
            await self._maps.refresh()
            return self._candidates(request.shard, is_write)

        leg = LegRequest(request.shard, self._candidates(request.shard, is_write), deadline, Config(is_idempotent=not is_write))
        outcome = await run_leg(leg, send, refresh, self._clock)
        ended = self._clock.monotonic()
        answer = None if outcome.reply is None else Answer(outcome.reply, outcome.queue_us, outcome.service_us)
        return LegResult(
            shard=request.shard,
            answer=answer,
            error=None if outcome.error is None else _naming(outcome.error, request.shard, outcome.replicas_tried),
            leaf=outcome.winner or "",
            replicas_tried=outcome.replicas_tried,
            attempts=outcome.attempts,
            total_us=micros(ended - began),
            ended_at=ended,
        )

    def _candidates(self, shard: int, is_write: bool) -> tuple[Candidate, ...]:
        config = self._maps.current.shards.get(shard)
        if config is None:
            return ()
        return tuple(Candidate(leaf, config.epoch) for leaf in candidates(config, is_write))

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
