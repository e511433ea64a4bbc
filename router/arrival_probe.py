"""Measures how long a call waits before the router can look at it: by calls of the router's own, to its own port.

Nothing else shows that wait: gRPC's server has the calls that are not its turn yet inside, without a number or a time. A probe
goes the whole way of a call and stands in the same queue; what is measured is the time until its handler begins. One costs some
0.3 ms of work; none is sent while no calls come.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from typing import TypeAlias

import grpc
import grpc.aio

from kvshard.clock import Clock
from kvshard.rpc.channel import aio_channel

NoteWait: TypeAlias = Callable[[float, float], object]
"""Told of a measured wait in seconds, and when it was."""

INTERVAL_S = 0.1
"""Between two probes of a router that keeps up: 0.3 % of a core, and an overload is noticed within a tenth of a second."""

INTERVAL_LATE_S = 0.025
"""Between two looks while calls wait; then also at a probe that has not arrived yet, which has waited at least so long."""

LATE_S = 0.025
"""A wait that is worth looking closer at; a single pass of the event loop seldom takes so long."""

TIMEOUT_S = 5.0
"""A probe that has not arrived by then is given up, and the next one sent."""

SERVICE = "kvshard.internal.ArrivalProbe"
_METHOD = "Arrive"
_Ask: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"


class ArrivalProbe:
    """`handler` for the server; `run` while it serves. has_traffic: whether calls have come since it was last asked.

    note_late: told by how much the event loop was late with a timer, and when: all that this process measures is late then.

    Only a probe's own token counts: nobody else can make the router believe that calls wait.
    """

    def __init__(
        self, address: str, clock: Clock, has_traffic: Callable[[], bool], note_wait: NoteWait, note_late: NoteWait
    ) -> None:
        self._address = address
        self._clock = clock
        self._has_traffic = has_traffic
        self._note_wait = note_wait
        self._note_late = note_late
        self._token = b""
        self._sent_at = 0.0
        self._wait_s = 0.0
        self._has_arrived = asyncio.Event()

    def __repr__(self) -> str:
        return f"ArrivalProbe({self._address}, wait_s={self._wait_s})"

    @property
    def handler(self) -> grpc.GenericRpcHandler:
        """Serves the probes."""
        serve: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(self._arrive)
        return grpc.method_handlers_generic_handler(SERVICE, {_METHOD: serve})

    async def run(self) -> None:
        """Probe until it is cancelled."""
        async with aio_channel(self._address, is_internal=True) as channel:
            ask: _Ask = channel.unary_unary(f"/{SERVICE}/{_METHOD}")
            while True:
                is_late = self._wait_s >= LATE_S
                interval, slept_at = INTERVAL_LATE_S if is_late else INTERVAL_S, self._clock.monotonic()
                await asyncio.sleep(interval)
                woken_at = self._clock.monotonic()
                self._note_late(woken_at - slept_at - interval, woken_at)
                if is_late or self._has_traffic():
                    await self._probe(ask)

    async def _probe(self, ask: _Ask) -> None:
        self._token = secrets.token_bytes(16)
        self._has_arrived.clear()
        self._sent_at = self._clock.monotonic()
        call = ask(self._token, timeout=TIMEOUT_S)
        try:
            while not call.done() and not await self._arrived_within(INTERVAL_LATE_S):
                now = self._clock.monotonic()
                if now - self._sent_at > self._wait_s:  # Else it is not known to have changed.
                    self._note(now - self._sent_at, now)
        finally:
            self._token = b""
            call.cancel()
        try:
            await call
        except grpc.aio.AioRpcError:
            pass
        except asyncio.CancelledError:
            # That of the call looks like that of this task, and whoever stops the router waits for this one.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise

    async def _arrived_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._has_arrived.wait()
        return self._has_arrived.is_set()

    async def _arrive(self, token: bytes, context: object) -> bytes:
        if self._token and token == self._token:
            now = self._clock.monotonic()
            self._note(now - self._sent_at, now)
            self._has_arrived.set()
        return b""

    def _note(self, wait_s: float, now: float) -> None:
        self._wait_s = wait_s
        self._note_wait(wait_s, now)
