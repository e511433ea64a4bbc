"""A grpc.aio server that takes several new calls in one pass of the event loop.

grpcio's own asks its core for one new call, and for the next one when that has come. So calls that came together go through the
process one by one, and each pays alone for passes of the event loop, for wake-ups of threads, and for a message to each leaf
and back. This server always has some calls asked for beforehand: with 64 callers a unary Get costs a router over 40 % less.

grpcio has no setting for it: overridden is a method of its server that it calls itself. A version that waits for one call in
another way, or has another server, takes one after the other, as without this file (1.85 does).
`tests/integration/test_accepting.py` tells.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine, Generator
from typing import Any

import grpc.aio
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # compiled, and without types

CALLS_AHEAD = 32
"""New calls that are taken in one pass at most: some 4 ms of a router's event loop, as a full message of a lane. With 64
callers 16 save less, and 64 no more."""


class _Asked:
    """A call asked for. answer: what the coroutine that asks waits for. A task for each would cost a pass of the event loop."""

    __slots__ = ("_asking", "answer")

    def __init__(self, asking: Coroutine[Any, Any, Any]) -> None:
        self._asking = asking
        self.answer: asyncio.Future[Any] = asking.send(None)

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            while True:
                if not self.answer.done():
                    yield self.answer
                self.answer = self._asking.send(None)
        except StopIteration as taken:
            return taken.value


_CORE_SERVER: Any = getattr(cygrpc, "AioServer", None)


class _ServerAhead(_CORE_SERVER or object):  # type: ignore[misc]
    """The core's server, with up to CALLS_AHEAD new calls asked for."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._asked: deque[_Asked] = deque()

    async def _request_call(self) -> Any:
        """The next new call. The core serves those who ask in the order of asking."""
        asked = self._asked
        while len(asked) < CALLS_AHEAD:
            asked.append(_Asked(super()._request_call()))
        return await asked.popleft()

    async def _start_shutting_down(self) -> None:
        """As usual; what was asked for has failed then. Calls that have come all the same are let go, as those are that wait
        inside of the core: nobody takes them any more, and the server would wait for them as long as they are held."""
        await super()._start_shutting_down()
        await asyncio.gather(*(asked.answer for asked in self._asked), return_exceptions=True)
        self._asked.clear()


def server_ahead(**settings: Any) -> grpc.aio.Server:
    """`grpc.aio.server` of these settings, which takes several new calls at once."""
    if _CORE_SERVER is None:
        return grpc.aio.server(**settings)
    # The only way to have it made of another class: its constructor takes no server of the core.
    cygrpc.AioServer = _ServerAhead
    try:
        return grpc.aio.server(**settings)
    finally:
        cygrpc.AioServer = _CORE_SERVER
