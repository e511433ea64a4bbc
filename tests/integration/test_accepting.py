"""A server that takes several new calls at once, over real gRPC: how many, and what becomes of them when it stops."""

import asyncio
import time
from collections import Counter

import grpc
import grpc.aio
import pytest

from kvshard.rpc.accepting import CALLS_AHEAD
from kvshard.rpc.channel import aio_channel, aio_server, bind

METHOD = "/kvshard.tests.Accepting/Call"
CALLS = 300
GRACE_S = 5.0


class Service(grpc.GenericRpcHandler):
    """Answers with the request a moment later. most_at_once: calls that were taken in one pass of the event loop.

    stop_at: with this call the server begins to stop; `stopping` ends with how long that took.
    """

    def __init__(self, server: grpc.aio.Server, stop_at: int = 0) -> None:
        self._server = server
        self._stop_at = stop_at
        self._taken = 0
        self.begun = 0
        self.ended = 0
        self.most_at_once = 0
        self.stopping: asyncio.Task[float] | None = None

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        if handler_call_details.method != METHOD:
            return None
        if not self._taken:
            asyncio.get_running_loop().call_soon(self._next_pass)
        self._taken += 1
        self.most_at_once = max(self.most_at_once, self._taken)
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _next_pass(self) -> None:
        self._taken = 0

    async def _answer(self, request: bytes, context: object) -> bytes:
        self.begun += 1
        if self.begun == self._stop_at:
            self.stopping = asyncio.create_task(self._stop())
        await asyncio.sleep(0.01)
        self.ended += 1
        return request

    async def _stop(self) -> float:
        began = time.monotonic()
        await self._server.stop(GRACE_S)
        return time.monotonic() - began


async def served(server: grpc.aio.Server, service: Service) -> str:
    server.add_generic_rpc_handlers((service,))
    address = bind(server, "127.0.0.1:0")
    await server.start()
    return address


async def call_all(address: str) -> Counter[grpc.StatusCode]:
    """How so many calls end that are made at once; each that is answered has its own answer."""
    async with aio_channel(address) as channel:
        call = channel.unary_unary(METHOD)

        async def one(number: int) -> grpc.StatusCode:
            try:
                assert await call(b"%d" % number, timeout=20.0) == b"%d" % number
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        return Counter(await asyncio.gather(*map(one, range(CALLS))))


async def test_several_calls_are_taken_in_one_pass_and_each_gets_its_answer() -> None:
    server = aio_server()
    service = Service(server)
    address = await served(server, service)
    assert await call_all(address) == {grpc.StatusCode.OK: CALLS}
    # Who asks for one call at a time takes one a pass: a new grpcio may have gone another way.
    assert 1 < service.most_at_once <= CALLS_AHEAD
    await server.stop(None)


async def test_an_unknown_method_is_told_so() -> None:
    server = aio_server()
    address = await served(server, Service(server))
    async with aio_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary("/kvshard.tests.Accepting/Other")(b"", timeout=20.0)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await server.stop(None)


@pytest.mark.parametrize("stop_at", [1, CALLS_AHEAD + 1, CALLS // 2])
async def test_a_stop_lets_those_end_that_have_begun_and_waits_for_nobody_else(stop_at: int) -> None:
    server = aio_server()
    service = Service(server, stop_at)
    outcomes = await call_all(await served(server, service))
    assert service.stopping is not None
    assert await service.stopping < GRACE_S / 2, "a call that nobody takes any more must not be waited for"
    assert outcomes.keys() <= {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}
    assert service.ended == service.begun >= stop_at
    # Not all of the answers need arrive: see the next test, and `DRAIN_S` of router/server.py.
    assert 0 < outcomes[grpc.StatusCode.OK] <= service.begun


async def test_all_that_was_answered_before_a_stop_arrives() -> None:
    """What routers rely on. What is answered while gRPC's server stops is lost with the connection now and then, with or
    without calls asked for beforehand: see `DRAIN_S` of router/server.py."""
    server = aio_server()
    all_begun, answer, all_ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    under_way = 0

    class Held(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
            return grpc.unary_unary_rpc_method_handler(self._answer)

        async def _answer(self, request: bytes, context: object) -> bytes:
            nonlocal under_way
            under_way += 1
            if under_way == CALLS:
                all_begun.set()
            await answer.wait()
            under_way -= 1
            if not under_way:
                all_ended.set()
            return request

    server.add_generic_rpc_handlers((Held(),))
    address = bind(server, "127.0.0.1:0")
    await server.start()
    outcomes = asyncio.create_task(call_all(address))
    await all_begun.wait()
    answer.set()
    await all_ended.wait()
    await server.stop(GRACE_S)
    assert await outcomes == {grpc.StatusCode.OK: CALLS}


async def test_a_server_that_is_idle_stops_without_a_complaint(caplog: pytest.LogCaptureFixture) -> None:
    server = aio_server()
    address = await served(server, Service(server))
    assert await call_all(address) == {grpc.StatusCode.OK: CALLS}
    await server.stop(GRACE_S)
    assert not caplog.records
