"""Legs: one shard's part of a request, sent alone (`ask`) or scattered and gathered (`gather`).

Owns the tasks of scattered legs: whatever happens, a cancelled call included, none is left behind. A leg of a read has one only
if it needs it (`first_attempts`). A leg that failed is data (`LegResult.error`), never an exception, so that one dead leaf does
not end the others. What a shortfall means is decided in `coverage`, what is sent again when in `kvshard.tail.attempts`.

A shard that has, or is meant to have, several replicas gets over the loss of one: its legs go on until their deadline, reads at
the other replicas, writes with a request id at whoever becomes primary. Where there is nothing to fail over to, the caller is
told at once and decides whether to wait.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from random import Random
from typing import Any, NamedTuple

import structlog

from kvshard.clock import Clock
from kvshard.clustermap import Collection
from kvshard.errors import DeadlineExceeded, ErrorDetails, Internal, KvShardError
from kvshard.hedge_settings import settings_in
from kvshard.model import ShardWrite
from kvshard.rpc.leaf_client import Start, TakeBack
from kvshard.scatter.first_attempts import LATE_LEG_GRACE_S, FirstAttempts, LegRunner, Sending
from kvshard.scatter.ledger import micros
from kvshard.scatter.leg import USUALLY, Ask, How, Leg, Prepared, ReplyT, RequestT, Shared, how_to_read, prepare
from kvshard.scatter.leg_result import LegResult as LegResult
from kvshard.scatter.leg_result import leg_result, naming
from kvshard.scatter.prober import Ping, Prober
from kvshard.scatter.requests import ReadPolicy
from kvshard.scatter.routes import MapSource, known_map
from kvshard.tail.attempts import MAX_REPEATS, AttemptMachine
from kvshard.tail.defences import Defences, RequestHedges
from kvshard.tail.executor import BegunLeg, LegRequest, run_leg
from kvshard.tail.hedger import Hedger
from kvshard.tail.hedging import HedgeSettings
from kvshard.tail.leg_events import MAX_REFRESHES, Config
from kvshard.telemetry import RouterMetrics

log = structlog.get_logger(__name__)


class _Ended(NamedTuple):
    """What counts the legs of one method that were answered."""

    ok: Callable[[int], None]
    seconds: Callable[[float], None]
    seconds_all: Callable[[Sequence[int]], None]


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
        max_repeats: int = MAX_REPEATS,
    ) -> None:
        """ping: LeafClient.ping. settings: how reads are hedged that do not say it. max_repeats: refreshes of the map that a
        leg makes which may go on until its deadline; fewer, where somebody else may be asked instead.
        """
        self._rng = rng or Random()
        self.defences = Defences(settings, self._rng)
        self._prober = Prober(ping, self.defences.health, clock)
        self._shared = Shared(maps, clock, self.defences, self._prober)
        self.heard = self._shared.heard
        self._maps = maps
        self._clock = clock
        self._metrics = metrics
        self._max_repeats = max_repeats
        self._configs: dict[tuple[bool, bool, int], Config] = {}
        self._observers: dict[str, _Ended] = {}
        self._runner = LegRunner(self._leg_of, self._machine_of, self._observe, self._observe_answered)

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
        start: Start | None = None,
    ) -> LegResult[ReplyT]:
        """Send one leg and wait for its outcome. Raises nothing but what a cancelled task raises.

        start: `LeafClient.start`, which spares a read a task and a timer; None: it is sent by `ask`.
        """
        if isinstance(request, ShardWrite):
            return await self._leg(method, ask, request, deadline, how)
        began = self._clock.monotonic()
        hedges = self.defences.request(how.hedge, 1, began, how.settings)
        if start is not None:
            firsts: FirstAttempts[RequestT, ReplyT] = self._first_attempts(method, ask, start, how, hedges, began, deadline)
            results = await firsts.run((request,))
            result = results[0] or self._late(method, request, began)
        else:
            result = await self._leg(method, ask, request, deadline, how, hedges)
        hedges.ended(result.ended_at)
        return result

    def begin(
        self,
        method: str,
        ask: Ask[RequestT, ReplyT],
        request: RequestT,
        deadline: float,
        how: How,
        start: Start,
        ended: Callable[[LegResult[ReplyT]], None],
    ) -> TakeBack:
        """Send one leg of a read without awaiting anything; `ended` is told its outcome, not before this returns.

        Returns what gives the leg up: nothing of it is left then but tasks that come to their end, and `ended` is not told.
        """
        began = self._clock.monotonic()
        hedges = self.defences.request(how.hedge, 1, began, how.settings)
        firsts: FirstAttempts[RequestT, ReplyT] = self._first_attempts(method, ask, start, how, hedges, began, deadline)

        def has_ended() -> None:
            firsts.end()
            result = firsts.results[0] or self._late(method, request, began)
            hedges.ended(result.ended_at)
            ended(result)

        firsts.begin((request,), 0, has_ended)
        return firsts.end

    async def gather(
        self,
        method: str,
        ask: Ask[RequestT, ReplyT],
        requests: Sequence[RequestT],
        deadline: float,
        how: How = USUALLY,
        start: Start | None = None,
    ) -> list[LegResult[ReplyT]]:
        """Send one leg a request, all at once, and wait for all outcomes, at most until the deadline.

        When it returns or is cancelled, no leg is under way any more. start: as in `ask`.
        """
        if not requests:
            return []
        if isinstance(requests[0], ShardWrite):
            return await self._gather_tasks(method, ask, requests, deadline, how, None)
        began = self._clock.monotonic()
        hedges = self.defences.request(how.hedge, len(requests), began, how.settings)
        if start is not None:
            firsts: FirstAttempts[RequestT, ReplyT] = self._first_attempts(method, ask, start, how, hedges, began, deadline)
            found = await firsts.run(requests, self._first_place(len(requests)))
            results = [result or self._late(method, requests[place], began) for place, result in enumerate(found)]
        else:
            results = await self._gather_tasks(method, ask, requests, deadline, how, hedges)
        hedges.ended(self._clock.monotonic())
        return results

    def _first_attempts(
        self,
        method: str,
        ask: Ask[RequestT, ReplyT],
        start: Start,
        how: How,
        hedges: RequestHedges,
        began: float,
        deadline: float,
    ) -> FirstAttempts[RequestT, ReplyT]:
        """Those of a read that begins."""
        may_hedge = (how.settings or self.defences.settings).max_attempts > 1
        sending = Sending(method, ask, start, how, hedges, may_hedge, began, deadline)
        return FirstAttempts(self._shared, sending, self._runner)

    def _observe_answered(self, method: str, answered_us: Sequence[int]) -> None:
        """So many legs were answered at once, after so long."""
        observer = self._observer(method)
        observer.ok(len(answered_us))
        observer.seconds_all(answered_us)

    def _leg_of(
        self, sending: Sending, request: RequestT, prepared: Prepared | None, begun: BegunLeg[ReplyT] | None
    ) -> Coroutine[Any, Any, LegResult[ReplyT]]:
        ask, deadline, how = sending.ask, sending.deadline, sending.how
        return self._leg(sending.method, ask, request, deadline, how, sending.hedges, prepared, begun)

    def _machine_of(self, sending: Sending, request: RequestT, prepared: Prepared, hedger: Hedger | None) -> AttemptMachine:
        config = self._config(request, sending.how, prepared.has_failover)
        return AttemptMachine(config, prepared.candidates, sending.deadline, self._rng, prepared.gate, hedger)

    def _first_place(self, count: int) -> int:
        """Which leg is sent first. Light legs follow it to its leaf: were that always the same shard's, its leaves would get
        the most."""
        return int(self._rng.random() * count) if count > 1 else 0

    async def _gather_tasks(
        self,
        method: str,
        ask: Ask[RequestT, ReplyT],
        requests: Sequence[RequestT],
        deadline: float,
        how: How,
        hedges: RequestHedges | None,
    ) -> list[LegResult[ReplyT]]:
        """Legs with a task each."""
        began = self._clock.monotonic()
        first = self._first_place(len(requests))
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
        return [
            self._late(method, request, began) if leg.cancelled() else leg.result()
            for request, leg in zip(requests, legs, strict=True)
        ]

    async def _leg(
        self,
        method: str,
        ask: Ask[RequestT, ReplyT],
        request: RequestT,
        deadline: float,
        how: How,
        hedges: RequestHedges | None = None,
        prepared: Prepared | None = None,
        begun: BegunLeg[ReplyT] | None = None,
    ) -> LegResult[ReplyT]:
        """One leg to its end. hedges: None of a write. prepared, begun: what was done of it before."""
        began = self._clock.monotonic() if begun is None else begun.began
        try:
            if prepared is None:
                config = known_map(self._maps).shards.get(request.shard)
                prepared = prepare(self._shared, config, request, how, hedges, began)
            result = await self._run(Leg(ask, request, how, prepared.gate, self._shared), prepared, deadline, began, begun)
        except KvShardError as error:
            result = self._failed(request, error, began)
        except Exception as defect:
            log.exception("leg failed in an unforeseen way", method=method, shard=request.shard)
            details = ErrorDetails(shards=(request.shard,), maybe_applied=isinstance(request, ShardWrite))
            result = self._failed(request, Internal(f"{type(defect).__name__}: {defect}", details), began)
        self._observe(method, result)
        return result

    async def _run(
        self,
        leg: Leg[RequestT, ReplyT],
        prepared: Prepared,
        deadline: float,
        began: float,
        begun: BegunLeg[ReplyT] | None,
    ) -> LegResult[ReplyT]:
        shard, gate = leg.request.shard, prepared.gate
        config = self._config(leg.request, leg.how, prepared.has_failover)
        request = LegRequest(shard, prepared.candidates, deadline, config, self._rng, gate)
        try:
            outcome = await run_leg(request, leg.send, leg.refresh, self._clock, leg.look, begun)
        except BaseException:
            if gate is not None:
                gate.given_up()
            raise
        ended = self._clock.monotonic()
        if gate is None:
            self.defences.late_write(ended - began, ended)
        elif outcome.tries:
            gate.ended(outcome.tries)
        return leg_result(outcome, ended)

    def _config(self, request: RequestT, how: How, has_failover: bool) -> Config:
        """Made once for each kind of leg: there are few."""
        is_write = isinstance(request, ShardWrite)
        may_repeat = has_failover and (not isinstance(request, ShardWrite) or bool(request.client))
        max_attempts = 1 if is_write else (how.settings or self.defences.settings).max_attempts
        kind = (is_write, may_repeat, max_attempts)
        made = self._configs.get(kind)
        if made is None:
            made = self._configs[kind] = Config(
                max_attempts=max_attempts,
                is_idempotent=not is_write,
                may_repeat=may_repeat,
                max_refreshes=self._max_repeats if may_repeat else MAX_REFRESHES,
            )
        return made

    async def close(self) -> None:
        """Stop what runs beside the requests."""
        await self._prober.close()
        self._shared.timers.close()

    def _failed(self, request: RequestT, error: KvShardError, began: float) -> LegResult[ReplyT]:
        ended = self._clock.monotonic()
        config = self._maps.current.shards.get(request.shard) if self._maps.has_map else None
        tried = error.details.replicas_tried or (() if config is None else (config.primary,))
        error = naming(error, request.shard, tried)
        return LegResult(request.shard, None, error, "", tried, 1, micros(ended - began), ended)

    def _late(self, method: str, request: RequestT, began: float) -> LegResult[ReplyT]:
        details = ErrorDetails(shards=(request.shard,), maybe_applied=isinstance(request, ShardWrite))
        result: LegResult[ReplyT] = self._failed(
            request, DeadlineExceeded(f"shard {request.shard} did not answer in time", details), began
        )
        self._observe(method, result)
        return result

    def _observer(self, method: str) -> _Ended:
        found = self._observers.get(method)
        if found is None:
            ok = self._metrics.legs.labels(method, "ok").inc
            durations = self._metrics.leg_seconds.labels(method)
            found = self._observers[method] = _Ended(ok, durations.observe, durations.observe_all_us)
        return found

    def _observe(self, method: str, result: LegResult[ReplyT]) -> None:
        observer = self._observer(method)
        if result.error is None:
            observer.ok(1)
        else:
            self._metrics.legs.labels(method, result.error.reason.lower()).inc()
        observer.seconds(result.total_us * 1e-6)
