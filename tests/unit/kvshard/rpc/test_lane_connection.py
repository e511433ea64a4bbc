"""When the answers of a lane leave; what else a lane does is tested over real ones."""

import asyncio
from collections.abc import Callable

import pytest
from fakes.clock import ManualClock
from fakes.message_stream import FakeStream

from kvshard.errors import InvalidArgument
from kvshard.rpc.codec import CANCEL
from kvshard.rpc.frames import RequestFrame, Requests, ResponseFrame, Responses
from kvshard.rpc.lane_connection import HOLD_AFTER_S, PART_AFTER_S
from kvshard.rpc.lane_handlers import Answer
from kvshard.rpc.lane_server import LaneServicer

AT_ONCE, REFUSED, LATER, BEGUN = 101, 102, 103, 104


class _Lane:
    """A lane whose requests take as long as their payload says, in microseconds."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        servicer = LaneServicer(
            {AT_ONCE: self._later, REFUSED: self._later, LATER: self._later, BEGUN: self._later},
            self.clock,
            immediate={AT_ONCE: self._at_once, REFUSED: self._refused},
            beginning={BEGUN: self._begin},
        )
        self.servicer = servicer
        self.begun: list[Answer] = []
        self.given_up = 0
        self.stream: FakeStream[Requests, Responses] = FakeStream()
        self.connection = servicer.serve(self.stream)
        self._last_id = 0

    async def _later(self, payload: bytes, deadline: float) -> bytes:
        return self._at_once(payload, deadline)

    def _begin(self, payload: bytes, deadline: float, answer: Answer) -> Callable[[], object] | None:
        """Begins what takes any time; refuses what takes 13 us, fails at 14, and leaves the rest to the handler."""
        if payload == b"13":
            raise InvalidArgument("no")
        if payload == b"14":
            raise ZeroDivisionError
        if payload == b"0":
            return None
        self.begun.append(answer)
        return self._give_up

    def _give_up(self) -> None:
        self.given_up += 1

    def _at_once(self, payload: bytes, deadline: float) -> bytes:
        self.clock.advance(int(payload) * 1e-6)
        return payload

    def _refused(self, payload: bytes, deadline: float) -> bytes:
        self._at_once(payload, deadline)
        raise InvalidArgument("no")

    def bring(self, *taking_us: int, method: int = AT_ONCE, sent_us: int = 0) -> None:
        frames = []
        for each in taking_us:
            self._last_id += 1
            frames.append(RequestFrame(self._last_id, method, 60_000_000, b"%d" % each))
        self.stream.bring(Requests(frames, sent_us))

    def answers(self) -> list[list[int]]:
        """The ids of the frames of each message that has left, from the last look on."""
        written, self.stream.written = self.stream.written, []
        return [[frame.id for frame in message.frames] for message in written]


@pytest.fixture
async def lane() -> _Lane:
    return _Lane()


PART_US = round(PART_AFTER_S * 1e6) + 1


async def test_what_is_answered_in_one_go_leaves_in_one_message(lane: _Lane) -> None:
    lane.bring(*[1] * 50)
    assert lane.answers() == [list(range(1, 51))]


async def test_what_is_answered_leaves_ahead_of_what_still_takes_long(lane: _Lane) -> None:
    third = PART_US // 3 + 1
    lane.bring(third, third, third, third, PART_US, third)
    assert lane.answers() == [[1, 2, 3], [4, 5], [6]]
    lane.bring(PART_US - third, third)
    assert lane.answers() == [[7, 8]], "each message begins anew, and none is left over for a second one"


async def test_parts_do_not_keep_what_follows_from_being_sent(lane: _Lane) -> None:
    lane.bring(PART_US, 1, method=REFUSED)
    lane.bring(PART_US, 1, method=LATER)
    assert lane.answers() == [[1, 2]], "only what is answered at once is looked at"
    while not (found := lane.answers()):
        await asyncio.sleep(0)
    assert found == [[3, 4]]
    lane.bring(1)
    assert lane.answers() == [[5]]


async def test_messages_that_lay_long_are_answered_in_parts_too(lane: _Lane) -> None:
    sent_us = round(lane.clock.monotonic() * 1e6)
    lane.bring(1, sent_us=sent_us)
    lane.clock.advance(2 * HOLD_AFTER_S)
    lane.bring(PART_US, 1, sent_us=sent_us + 1)
    assert lane.answers() == [[1]], "held, for the frame that might take them back"
    while not (found := lane.answers()):
        await asyncio.sleep(0)
    assert found == [[2], [3]]


async def test_what_was_held_is_answered_together_also_beside_a_request_in_work(lane: _Lane) -> None:
    sent_us = round(lane.clock.monotonic() * 1e6)
    lane.bring(1, method=BEGUN, sent_us=sent_us)
    lane.clock.advance(2 * HOLD_AFTER_S)
    lane.bring(1, 1, 1, sent_us=sent_us + 1)
    assert lane.answers() == []
    while not (found := lane.answers()):
        await asyncio.sleep(0)
    assert found == [[2, 3, 4]]


async def test_a_stream_that_takes_nothing_gets_it_later(lane: _Lane) -> None:
    lane.stream.is_writable = False
    lane.bring(PART_US, PART_US, 1)
    assert lane.answers() == []
    lane.stream.is_writable = True
    assert lane.stream.receiver is not None
    lane.stream.receiver.on_writable()
    frames: list[ResponseFrame] = [frame for message in lane.stream.written for frame in message.frames]
    assert [frame.id for frame in frames] == [1, 2, 3]


async def test_the_answer_to_the_only_request_in_work_waits_for_nothing(lane: _Lane) -> None:
    lane.bring(1, method=LATER)
    await asyncio.sleep(0)
    assert lane.answers() == [[1]]


async def test_answers_to_several_leave_together(lane: _Lane) -> None:
    lane.bring(1, 1, method=LATER)
    await asyncio.sleep(0)
    assert lane.answers() == []
    await asyncio.sleep(0)
    assert lane.answers() == [[1, 2]]


class TestRequestsThatAreBegun:
    async def test_the_answer_leaves_when_it_is_told(self, lane: _Lane) -> None:
        lane.bring(1, method=BEGUN)
        assert lane.answers() == []
        assert lane.servicer.load == 1
        lane.clock.advance(0.5)
        lane.begun[0](b"reply")
        ((frame,),) = (message.frames for message in lane.stream.written)
        assert (frame.payload, frame.is_error, frame.service_us, frame.in_flight) == (b"reply", False, 500_000, 0)
        assert lane.servicer.load == lane.servicer.admission.requests == lane.servicer.ending == 0

    async def test_answers_that_are_told_in_one_pass_leave_together(self, lane: _Lane) -> None:
        lane.bring(1, 1, 1, method=BEGUN)
        for answer in lane.begun:
            answer(b"reply")
        assert lane.answers() == []
        await asyncio.sleep(0)
        assert lane.answers() == [[1, 2, 3]]

    async def test_errors_are_told_like_answers(self, lane: _Lane) -> None:
        lane.bring(1, 13, 14, method=BEGUN)
        lane.begun[0](InvalidArgument("this one"))
        frames = [frame for message in lane.stream.written for frame in message.frames]
        assert [(frame.id, frame.is_error) for frame in frames] == [(2, True), (3, True), (1, True)]
        assert lane.servicer.admission.requests == 0

    async def test_what_is_not_begun_or_cannot_be_ended_so_is_done_by_the_handler(self, lane: _Lane) -> None:
        lane.bring(0, 1, method=BEGUN)
        lane.begun[0](None)
        assert lane.servicer.admission.requests == 2
        while not (found := lane.answers()):
            await asyncio.sleep(0)
        assert found == [[1, 2]]
        await asyncio.sleep(0)
        assert lane.servicer.admission.requests == 0

    async def test_one_that_is_taken_back_is_given_up_at_once(self, lane: _Lane) -> None:
        lane.bring(1, 1, method=BEGUN)
        lane.stream.bring(Requests([RequestFrame(1, CANCEL, 0, b"")]))
        assert (lane.given_up, lane.servicer.admission.requests) == (1, 1)
        lane.begun[1](b"reply")
        assert lane.answers() == [[2]]

    async def test_all_are_given_up_when_the_lane_ends(self, lane: _Lane) -> None:
        lane.bring(1, 1, method=BEGUN)
        lane.stream.abort()
        assert lane.given_up == 2
        assert lane.connection.ended.is_set()
        assert lane.servicer.admission.requests == 0

    async def test_a_lane_that_drains_waits_for_them(self, lane: _Lane) -> None:
        lane.bring(1, method=BEGUN)
        lane.connection.drain()
        assert not lane.stream.gone.done()
        lane.begun[0](b"reply")
        assert lane.answers() == [[1]]
        assert lane.stream.gone.done()

    async def test_one_whose_deadline_has_passed_is_not_begun(self, lane: _Lane) -> None:
        lane.stream.bring(Requests([RequestFrame(1, BEGUN, 0, b"1")]))
        assert lane.begun == []
        while not lane.stream.written:
            await asyncio.sleep(0)
        assert lane.stream.written[0].frames[0].is_error
