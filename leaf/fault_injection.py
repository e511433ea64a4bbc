"""Performs what `leaf/faults.py` decides: takes orders, stops the lanes, and lets single requests wait, fail or vanish.

Timers and sleeping, no tasks of its own. The lanes look at its `Interference`, and where no fault is in force at nothing else.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

import structlog

from kvshard.clock import Clock
from kvshard.errors import FailedPrecondition, Unavailable
from kvshard.fault_model import FaultOrder, FaultRecord, FaultReport
from kvshard.faults import PAUSE, SLOW_FLOOR_S
from kvshard.rpc.codec import FAULT, READ, SCAN, SEARCH, TERM_STATS, WRITE, handler_of
from kvshard.rpc.interference import Interference, LeaveUnanswered
from kvshard.rpc.lane_handlers import Handler
from leaf.faults import ActiveFault, Effect, Faults, PauseSchedule

_NAMES = {
    READ.number: "read",
    SCAN.number: "scan",
    SEARCH.number: "search",
    TERM_STATS.number: "search",  # a part of one
    WRITE.number: "write",
}

_log = structlog.get_logger(__name__)


class FaultInjector:
    """The faults of a leaf. handlers: its methods, by number, which requests get once a fault is through with them.

    is_allowed False: every new fault is refused.
    """

    def __init__(self, leaf: str, handlers: Mapping[int, Handler], clock: Clock, *, is_allowed: bool) -> None:
        self.interference = Interference(orders=frozenset([FAULT.number]))
        self.handler: tuple[int, Handler] = handler_of(FaultOrder, self.order)
        self._leaf = leaf
        self._handlers = handlers
        self._clock = clock
        self._is_allowed = is_allowed
        self._faults = Faults(leaf)
        self._pauses: dict[str, _Pauses] = {}
        self._end_timer: asyncio.TimerHandle | None = None

    async def order(self, order: FaultOrder, deadline: float) -> FaultReport:
        """Carry out an order. Raises FailedPrecondition where no faults are allowed, InvalidArgument, ResourceExhausted."""
        now = self._clock.monotonic()
        self._faults.drop_ended(now)
        cleared = self._faults.clear(order.ids) if order.clear else 0
        if cleared:
            _log.warning("faults cleared", leaf=self._leaf, count=cleared)
        try:
            if order.inject is not None:
                self._inject(order.inject, now)
        finally:
            self._settle()
        return FaultReport(self._faults.report(now), cleared)

    def close(self) -> None:
        """End all faults, and what they hold up."""
        self._faults.clear([])
        self._settle()

    def _inject(self, record: FaultRecord, now: float) -> None:
        if not self._is_allowed:
            raise FailedPrecondition(f"leaf {self._leaf} takes no faults; start it with --allow-faults")
        fault = self._faults.inject(record, now)
        if record.kind == PAUSE:
            self._pauses[record.id] = _Pauses(fault, now, self._clock, self.interference)
        _log.warning("fault injected", leaf=self._leaf, fault=record)

    def _settle(self) -> None:
        """Bring the lanes into the state that the faults in force demand; again when the next of them ends."""
        now = self._clock.monotonic()
        self._faults.drop_ended(now)
        for id in self._pauses.keys() - self._faults.ids:
            self._pauses.pop(id).close()
        self.interference.detour = self._detour if self._faults.has_request_faults else None
        if self._end_timer is not None:
            self._end_timer.cancel()
            self._end_timer = None
        if (end := self._faults.next_end) is not None:
            self._end_timer = _call_at(end, now, self._settle)

    def _detour(self, method: int) -> Handler | None:
        name = _NAMES.get(method)
        effect = self._faults.draw(name, self._clock.monotonic()) if name is not None else None
        return None if effect is None else partial(self._serve, self._handlers[method], effect)

    async def _serve(self, serve: Handler, effect: Effect, payload: bytes, deadline: float) -> bytes:
        if effect.is_dropped:
            raise LeaveUnanswered
        if effect.delay_s > 0:
            await asyncio.sleep(effect.delay_s)
        if effect.is_failed:
            raise Unavailable(f"a fault that was injected into leaf {self._leaf}")
        started = self._clock.monotonic()
        reply = await serve(payload, deadline)
        if effect.factor > 1:
            service_s = self._clock.monotonic() - started
            await asyncio.sleep((effect.factor - 1) * max(service_s, SLOW_FLOOR_S))
        return reply


class _Pauses:
    """Stops the lanes for each pause of one fault."""

    def __init__(self, fault: ActiveFault, now: float, clock: Clock, interference: Interference) -> None:
        record = fault.record
        self._schedule = PauseSchedule(record.delay_s, record.probability, now, fault.ends_at, fault.rng)
        self._fault = fault
        self._clock = clock
        self._interference = interference
        self._is_stopping = False
        self._timer: asyncio.TimerHandle | None = None
        self._plan()

    def _plan(self) -> None:
        now = self._clock.monotonic()
        pause = self._schedule.next_pause()
        while pause is not None and pause[1] <= now:  # Missed: the event loop itself was held up.
            pause = self._schedule.next_pause()
        if pause is None:
            self._timer = None
        elif pause[0] <= now:
            self._begin(pause[1])
        else:
            self._timer = _call_at(pause[0], now, partial(self._begin, pause[1]))

    def _begin(self, end: float) -> None:
        now = self._clock.monotonic()
        if end <= now:
            self._plan()
            return
        self._fault.hits += 1
        self._is_stopping = True
        self._interference.stop()
        self._timer = _call_at(end, now, self._end)

    def _end(self) -> None:
        self._is_stopping = False
        self._interference.resume()
        self._plan()

    def close(self) -> None:
        """No more pauses; one that is under way ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_stopping:
            self._is_stopping = False
            self._interference.resume()


def _call_at(at: float, now: float, function: Callable[[], None]) -> asyncio.TimerHandle:
    """Call a function at an instant of the process's clock, which need not be the event loop's."""
    return asyncio.get_running_loop().call_later(max(0.0, at - now), function)
