"""The network that the process tests make bad: each fault seen from both ends of a connection."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from harness import socket_owner
from harness.fault_proxy import FINE, Direction, Fault, FaultProxy, Mode
from harness.socket_owner import owner_of

STALLED = Fault(Mode.STALL)
DROPPED = Fault(Mode.DROP)
LOSS = (ConnectionResetError, BrokenPipeError, asyncio.IncompleteReadError)


class Echo:
    """A server that gives back what it gets. heard: all that came, of all connections."""

    def __init__(self) -> None:
        self.heard = b""
        self.lost = 0
        self.changed = asyncio.Event()
        self.server: asyncio.Server | None = None
        self.writers: list[asyncio.StreamWriter] = []

    async def start(self) -> tuple[str, int]:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self.server.sockets[0].getsockname()
        return host, port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while data := await reader.read(65536):
                self.heard += data
                self.changed.set()
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self.lost += 1
            self.changed.set()
            writer.close()

    async def until(self, condition) -> None:
        async with asyncio.timeout(5.0):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def close(self) -> None:
        assert self.server is not None
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()
        await self.until(lambda: self.lost == len(self.writers))


@pytest_asyncio.fixture
async def echo() -> AsyncIterator[Echo]:
    server = Echo()
    yield server
    await server.close()


@pytest_asyncio.fixture
async def proxy(echo: Echo) -> AsyncIterator[FaultProxy]:
    made = FaultProxy()
    made.upstream = await echo.start()
    await made.start()
    yield made
    await made.close()


class Dialler:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def hear(self, count: int) -> bytes:
        async with asyncio.timeout(5.0):
            return await self.reader.readexactly(count)

    async def is_silent(self) -> bool:
        """Nothing comes; the wait only makes the test sharper, it cannot make it fail wrongly."""
        try:
            async with asyncio.timeout(0.05):
                await self.reader.readexactly(1)
        except TimeoutError:
            return True
        return False


Dial = Callable[[FaultProxy], Awaitable[Dialler]]


@pytest_asyncio.fixture
async def dial() -> AsyncIterator[Dial]:
    made: list[Dialler] = []

    async def open_one(proxy: FaultProxy) -> Dialler:
        made.append(Dialler(*await asyncio.open_connection("127.0.0.1", proxy.port)))
        return made[-1]

    yield open_one
    for each in made:
        each.writer.close()
        with contextlib.suppress(OSError):
            await each.writer.wait_closed()


async def test_passes_bytes_both_ways_and_closes_with_either_end(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    caller = await dial(proxy)
    caller.say(b"hello")
    assert await caller.hear(5) == b"hello"
    big = os.urandom(4_000_000)
    caller.say(big)
    assert await caller.hear(len(big)) == big
    caller.writer.close()
    await echo.until(lambda: echo.lost == 1)
    assert proxy.sources == []
    other = await dial(proxy)
    other.say(b"x")
    assert await other.hear(1) == b"x"
    echo.writers[-1].close()
    assert await other.reader.read() == b""


async def test_delay_keeps_the_order(proxy: FaultProxy, dial: Dial) -> None:
    caller = await dial(proxy)
    proxy.set(Fault(delay_s=0.05), directions=[Direction.TO_SERVER])
    began = time.monotonic()
    for number in range(50):
        caller.say(b"%03d" % number)
        await asyncio.sleep(0)
    assert await caller.hear(150) == b"".join(b"%03d" % number for number in range(50))
    assert time.monotonic() - began >= 0.05
    proxy.set(Fault(delay_s=3600.0))
    caller.say(b"late")
    assert await caller.is_silent()
    proxy.heal()
    assert await caller.hear(4) == b"late"


async def test_stall_holds_everything_and_loses_nothing(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    caller = await dial(proxy)
    proxy.set(STALLED)
    big = os.urandom(3_000_000)
    caller.say(big)
    assert await caller.is_silent()
    late = await dial(proxy)
    late.say(b"late")
    assert await late.is_silent()
    assert echo.heard == b""
    proxy.heal()
    assert await caller.hear(len(big)) == big
    assert await late.hear(4) == b"late"


async def test_a_stall_of_one_direction(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    caller = await dial(proxy)
    proxy.set(STALLED, directions=[Direction.TO_DIALLER])
    caller.say(b"one way")
    await echo.until(lambda: echo.heard == b"one way")
    assert await caller.is_silent()
    proxy.set(FINE)
    assert await caller.hear(7) == b"one way"


async def test_drop_loses_bytes_and_resets_what_has_a_hole(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    caller, quiet = await dial(proxy), await dial(proxy)
    for each in (caller, quiet):
        each.say(b"a")
        assert await each.hear(1) == b"a"
    proxy.set(DROPPED)
    caller.say(b"lost")
    assert await caller.is_silent()
    proxy.heal()
    with pytest.raises(LOSS):
        await caller.hear(1)
    quiet.say(b"b")
    assert await quiet.hear(1) == b"b"
    assert echo.heard == b"aab"


async def test_the_end_of_one_side_is_not_heard_through_a_cut(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    caller = await dial(proxy)
    caller.say(b"a")
    assert await caller.hear(1) == b"a"
    proxy.set(STALLED, directions=[Direction.TO_DIALLER])
    echo.writers[0].close()
    await echo.until(lambda: echo.lost == 1 or echo.writers[0].is_closing())
    assert await caller.is_silent()
    proxy.heal()
    with pytest.raises(LOSS):
        await caller.hear(1)


async def test_bytes_for_one_who_has_gone_behind_a_cut_are_thrown_away(
    proxy: FaultProxy, echo: Echo, dial: Dial, caplog: pytest.LogCaptureFixture
) -> None:
    caller = await dial(proxy)
    caller.say(b"a")
    assert await caller.hear(1) == b"a"
    proxy.set(STALLED, directions=[Direction.TO_SERVER])
    caller.writer.transport.abort()
    await asyncio.sleep(0.05)
    for _ in range(20):  # More than the loop bears before it complains.
        echo.writers[0].write(b"to nobody")
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    assert not caplog.records
    assert proxy.sources == [""]
    proxy.heal()
    await echo.until(lambda: echo.lost == 1)


async def test_half_open_tells_the_server_only(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    caller = await dial(proxy)
    caller.say(b"a")
    assert await caller.hear(1) == b"a"
    proxy.half_open()
    await echo.until(lambda: echo.lost == 1)
    caller.say(b"into nothing")
    assert await caller.is_silent()
    fresh = await dial(proxy)
    fresh.say(b"b")
    assert await fresh.hear(1) == b"b"
    proxy.heal()
    with pytest.raises(LOSS):
        await caller.hear(1)
    assert echo.heard == b"ab"


async def test_reset_ends_both_sides_and_refuses_new_ones(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    caller = await dial(proxy)
    caller.say(b"a")
    assert await caller.hear(1) == b"a"
    proxy.reset()
    with pytest.raises(LOSS):
        await caller.hear(1)
    await echo.until(lambda: echo.lost == 1)
    with pytest.raises(LOSS):
        await (await dial(proxy)).hear(1)
    proxy.heal()
    fresh = await dial(proxy)
    fresh.say(b"b")
    assert await fresh.hear(1) == b"b"


async def test_faults_of_one_source_leave_the_others_alone(echo: Echo, dial: Dial) -> None:
    names = iter(["leaf-1", "leaf-2", "leaf-1"])
    proxy = FaultProxy(lambda local, remote: next(names))
    proxy.upstream = await echo.start()
    await proxy.start()
    try:
        one, two = await dial(proxy), await dial(proxy)
        for each in (one, two):
            each.say(b"a")
            assert await each.hear(1) == b"a"
        assert proxy.sources == ["leaf-1", "leaf-2"]
        proxy.set(STALLED, "leaf-1")
        one.say(b"1")
        two.say(b"2")
        assert await two.hear(1) == b"2"
        assert await one.is_silent()
        again = await dial(proxy)
        again.say(b"3")
        assert await again.is_silent()
        proxy.heal()
        assert await one.hear(1) == b"1"
        assert await again.hear(1) == b"3"
    finally:
        await proxy.close()


async def test_a_server_that_is_not_there(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    await echo.close()
    with pytest.raises(LOSS):
        await (await dial(proxy)).hear(1)
    assert proxy.sources == []


@pytest.mark.parametrize("way", ["asked", "looked up"])
async def test_finds_the_process_that_dialled(echo: Echo, dial: Dial, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(socket_owner, "_looked_up" if way == "asked" else "_asked", lambda local, remote: None)

    def who(local: int, remote: int) -> str:
        seen.append(owner_of(local, remote, {"nobody": 1 << 22, "us": os.getpid()}))
        return seen[-1]

    proxy = FaultProxy(who)
    proxy.upstream = await echo.start()
    await proxy.start()
    try:
        caller = await dial(proxy)
        caller.say(b"a")
        assert await caller.hear(1) == b"a"
        assert seen == ["us"]
        assert owner_of(caller.writer.get_extra_info("sockname")[1], proxy.port, {"nobody": 1 << 22}) == ""
    finally:
        await proxy.close()
