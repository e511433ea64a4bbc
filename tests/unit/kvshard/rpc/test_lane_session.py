"""When the requests of a lane leave; what else a session does is tested over real lanes."""

import asyncio

import pytest
from fakes.clock import ManualClock
from fakes.message_stream import FakeStream

from kvshard.rpc.frames import Requests, ResponseFrame, Responses
from kvshard.rpc.lane_session import LaneSession, LateAnswers, Outcome, OutstandingCall

METHOD = 101


class _Caller:
    """A session over a stream that keeps what is written."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.stream: FakeStream[Responses, Requests] = FakeStream()
        self.session = LaneSession(self.stream, self.clock, "a leaf", lambda session, reason: None, LateAnswers())

    def submit(self, *, is_last: bool) -> int:
        outlet: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        call = OutstandingCall(METHOD, b"r", self.clock.monotonic() + 60, outlet)
        return self.session.submit(call, is_last=is_last)

    def sent(self) -> list[list[int]]:
        """The ids of each message that has left, from the last look on."""
        written, self.stream.written = self.stream.written, []
        return [[frame.id for frame in message.frames] for message in written]


@pytest.fixture
async def caller() -> _Caller:
    return _Caller()


async def test_requests_of_one_pass_leave_together(caller: _Caller) -> None:
    for _ in range(3):
        caller.submit(is_last=False)
    assert caller.sent() == []
    await asyncio.sleep(0)
    assert caller.sent() == [[1, 2, 3]]


async def test_the_last_one_waits_for_nobody_and_takes_the_others_along(caller: _Caller) -> None:
    caller.submit(is_last=False)
    caller.submit(is_last=True)
    assert caller.sent() == [[1, 2]]
    await asyncio.sleep(0)
    assert caller.sent() == []


async def test_where_others_ask_too_the_last_one_leaves_with_theirs(caller: _Caller) -> None:
    """Else each caller of a busy lane would send a message of its own."""
    caller.submit(is_last=True)
    caller.submit(is_last=True)
    caller.submit(is_last=True)
    assert caller.sent() == [[1]]
    await asyncio.sleep(0)
    assert caller.sent() == [[2, 3]]
    caller.stream.bring(Responses([ResponseFrame(id, False, 0, 0, b"") for id in (1, 2, 3)]))
    caller.submit(is_last=True)
    assert caller.sent() == [[4]]


async def test_a_stream_that_takes_nothing_gets_it_later(caller: _Caller) -> None:
    caller.stream.is_writable = False
    caller.submit(is_last=True)
    await asyncio.sleep(0)
    assert caller.sent() == []
    caller.stream.is_writable = True
    caller.session.on_writable()
    assert caller.sent() == [[1]]
