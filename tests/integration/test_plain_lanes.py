"""Lanes on plain connections: who is let in, what damaged bytes do, and how an end that is gone without a word is noticed."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import pytest
import uvloop
from harness.fault_doors import FaultDoors

from kvshard.clock import SystemClock
from kvshard.errors import FailedPrecondition, Unavailable
from kvshard.rpc.channel import aio_channel, aio_server, bind
from kvshard.rpc.codec import LANE_MARK, PING
from kvshard.rpc.frames import HEAD_BYTES, RequestFrame, Requests, encode_message
from kvshard.rpc.keepalive import Keepalive
from kvshard.rpc.lane import Lane
from kvshard.rpc.lane_listener import OFFER, Offer, read_offer
from kvshard.rpc.lane_port import ANY_PORT, NO_PORT, LanePort
from kvshard.rpc.lane_server import LaneServicer
from kvshard.rpc.socket_stream import GREETING, WELCOME, dial
from kvshard.v1 import lane_pb2_grpc

CLOCK = SystemClock()
ECHO = 1
FRONTED = LanePort(is_fronted=True)
"""Without a socket for this machine, which would be taken before any port."""
LARGE_ANSWER_BYTES = 24 * 1024 * 1024
"""More than the kernel holds for a connection."""
QUICK = Keepalive(0.05, 0.1)


async def echo(payload: bytes, deadline: float) -> bytes:
    return payload


@contextlib.asynccontextmanager
async def serving(where: LanePort = FRONTED, listen: str = "127.0.0.1:0") -> AsyncIterator[tuple[LaneServicer, str]]:
    """A process whose method ECHO gives back what it gets."""
    servicer, server = LaneServicer({ECHO: echo, PING: echo}, CLOCK), aio_server()
    lane_pb2_grpc.add_LanesServicer_to_server(servicer, server)
    address = bind(server, listen)
    await servicer.listen(address, where)
    await server.start()
    try:
        yield servicer, address
    finally:
        await servicer.drain(0.0)
        await asyncio.gather(servicer.close(), server.stop(None))


@contextlib.asynccontextmanager
async def lane_to(address: str) -> AsyncIterator[Lane]:
    lane = Lane(address, CLOCK)
    try:
        yield lane
    finally:
        await lane.close()


async def ask(lane: Lane, payload: bytes = b"hello") -> bytes:
    return (await lane.call(ECHO, payload, CLOCK.monotonic() + 10.0)).payload


async def offer_of(address: str) -> Offer:
    async with aio_channel(address) as channel:
        stream = lane_pb2_grpc.LanesStub(channel).Lane()
        metadata = dict(tuple(await stream.initial_metadata() or ()))
        stream.cancel()
    offer = read_offer(str(metadata[OFFER]))
    assert metadata[LANE_MARK[0]] == LANE_MARK[1]
    assert offer is not None
    return offer


@contextlib.asynccontextmanager
async def caller(offer: Offer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """The bare connection of one that has shown its ticket."""
    reader, writer = await asyncio.open_connection("127.0.0.1", offer.port)
    try:
        writer.write(GREETING + offer.ticket)
        assert await reader.readexactly(len(WELCOME)) == WELCOME
        yield reader, writer
    finally:
        writer.close()


async def until_no_lane_is_left(servicer: LaneServicer) -> None:
    """The stream of whoever looked for the offer ends a moment after it was cancelled."""
    async with asyncio.timeout(10):
        while "lanes=0" not in repr(servicer):
            await asyncio.sleep(0.001)


class TestWays:
    async def test_the_plain_one_is_taken_where_there_is_one(self) -> None:
        async with serving() as (_, address), lane_to(address) as lane:
            assert await ask(lane) == b"hello"
            assert lane.transport == "tcp"

    async def test_the_local_one_is_taken_first(self) -> None:
        async with serving(ANY_PORT) as (_, address), lane_to(address) as lane:
            assert await ask(lane, bytes(3_000_000)) == bytes(3_000_000)
            assert lane.transport == "unix"

    async def test_the_port_where_the_local_one_leads_to_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As from another machine."""
        monkeypatch.setattr("kvshard.rpc.socket_stream.abstract", lambda name: f"\0another-{name}")
        async with serving(ANY_PORT) as (_, address), lane_to(address) as lane:
            assert await ask(lane) == b"hello"
            assert lane.transport == "tcp"

    async def test_no_local_one_passes_by_what_stands_before_a_process(self) -> None:
        for where in (FRONTED, LanePort(advertised=1)):
            async with serving(where) as (_, address):
                assert (await offer_of(address)).local == ""

    @pytest.mark.parametrize(("where", "transport"), [(ANY_PORT, "unix"), (FRONTED, "tcp")])
    def test_it_is_under_uvloop_too(self, where: LanePort, transport: str) -> None:
        async def run() -> tuple[bytes, str]:
            async with serving(where) as (_, address), lane_to(address) as lane:
                return await ask(lane, bytes(3_000_000)), lane.transport

        assert uvloop.run(run()) == (bytes(3_000_000), transport)

    async def test_grpc_where_there_is_none(self) -> None:
        async with serving(LanePort(NO_PORT)) as (_, address), lane_to(address) as lane:
            assert await ask(lane) == b"hello"
            assert lane.transport == "grpc"

    async def test_grpc_where_it_leads_nowhere(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))  # It does not listen: connections are refused.
            nowhere = LanePort(advertised=unused.getsockname()[1])
            async with serving(nowhere) as (_, address), lane_to(address) as lane:
                assert await ask(lane) == b"hello"
                assert lane.transport == "grpc"

    async def test_grpc_where_it_leads_to_somebody_else(self) -> None:
        """As behind one address that several processes share."""
        async with serving() as (other, other_address):
            port = (await offer_of(other_address)).port
            async with serving(LanePort(advertised=port)) as (_, address), lane_to(address) as lane:
                assert await ask(lane) == b"hello"
                assert lane.transport == "grpc"
            await until_no_lane_is_left(other)

    async def test_over_ipv6(self) -> None:
        try:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6 loopback")
        async with serving(listen="[::1]:0") as (_, address), lane_to(address) as lane:
            assert await ask(lane) == b"hello"
            assert lane.transport == "tcp"

    async def test_a_port_in_use_is_said_so(self) -> None:
        servicer = LaneServicer({ECHO: echo}, CLOCK)
        with (
            socket.create_server(("127.0.0.1", 0)) as taken,
            pytest.raises(FailedPrecondition, match="cannot serve lanes on port"),
        ):
            await servicer.listen("127.0.0.1:1", LanePort(taken.getsockname()[1]))


class TestTheDoor:
    async def test_nobody_is_served_without_the_ticket(self) -> None:
        async with serving() as (servicer, address):
            offer = await offer_of(address)
            assert await dial("127.0.0.1", offer.port, b"f" * len(offer.ticket), QUICK) is None
            await until_no_lane_is_left(servicer)

    @pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: somebody\r\n\r\n", bytes(200)])
    async def test_who_speaks_another_language_is_shown_out(self, said: bytes) -> None:
        async with serving() as (_, address):
            reader, writer = await asyncio.open_connection("127.0.0.1", (await offer_of(address)).port)
            writer.write(said)
            with contextlib.suppress(ConnectionResetError):  # What the system makes of it, if not everything was read.
                assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()

    async def test_damaged_bytes_end_the_lane_and_nothing_else(self) -> None:
        async with serving() as (_, address), lane_to(address) as lane:
            await ask(lane)
            offer = await offer_of(address)
            reader, writer = await asyncio.open_connection("127.0.0.1", offer.port)
            writer.write(GREETING + offer.ticket)
            assert await reader.readexactly(len(WELCOME)) == WELCOME
            writer.write(b"\x00\x00\x00\x02\xc1\xc1")
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
            assert await ask(lane) == b"hello"

    async def test_a_greeting_in_pieces(self) -> None:
        async with serving() as (_, address):
            offer = await offer_of(address)
            reader, writer = await asyncio.open_connection("127.0.0.1", offer.port)
            for byte in GREETING + offer.ticket:
                writer.write(bytes([byte]))
                await writer.drain()
            assert await asyncio.wait_for(reader.readexactly(len(WELCOME)), 5) == WELCOME
            writer.close()


class TestAnEndThatIsGone:
    async def test_a_silent_one_is_given_up_soon_and_dialled_anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("kvshard.rpc.lane.PATIENCE", QUICK)
        doors = FaultDoors()
        async with serving(LanePort(doors.ports[1], doors.lane_port), f"127.0.0.1:{doors.ports[0]}"):
            await doors.start()
            async with lane_to(doors.address) as lane:
                await ask(lane)
                assert lane.transport == "tcp"
                doors.half_open()
                began = time.monotonic()
                with pytest.raises(Unavailable, match=r"nothing was heard of it for 0\.15 s"):
                    await ask(lane)
                assert time.monotonic() - began < 5.0
                assert await ask(lane) == b"hello"
            await doors.close()

    async def test_an_idle_one_that_answers_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("kvshard.rpc.lane.PATIENCE", QUICK)
        async with serving() as (_, address), lane_to(address) as lane:
            await ask(lane)
            session = lane._session
            await asyncio.sleep(6 * (QUICK.idle_s + QUICK.timeout_s))
            assert lane._session is session
            assert await ask(lane) == b"hello"


class TestAnEndThatStops:
    async def test_what_it_has_answered_arrives_whatever_was_sent_to_it_meanwhile(self) -> None:
        """A connection that is closed while something lies unread is reset, and what the kernel had not sent is lost."""
        async with serving() as (servicer, address):
            asked = b"".join(encode_message(Requests([RequestFrame(1, ECHO, 10_000_000, bytes(LARGE_ANSWER_BYTES))])))
            async with caller(await offer_of(address)) as (reader, writer):
                writer.write(asked)
                head = await reader.readexactly(HEAD_BYTES)
                stopping = asyncio.create_task(servicer.drain(1.0))
                await asyncio.sleep(0)
                writer.write(b"".join(encode_message(Requests([RequestFrame(2, ECHO, 10_000_000, b"late")]))))
                async with asyncio.timeout(10):
                    answer = await reader.read(-1)
                assert len(answer) == int.from_bytes(head, "big") > LARGE_ANSWER_BYTES
            await stopping

    async def test_a_caller_that_does_not_go_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("kvshard.rpc.lane_connection.FLUSH_TIMEOUT_S", 0.05)
        async with serving() as (servicer, address), caller(await offer_of(address)) as (reader, _):
            await asyncio.wait_for(servicer.drain(0.01), 5)
            async with asyncio.timeout(10):
                assert await reader.read(-1) == b""
