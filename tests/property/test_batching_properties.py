"""The batcher's decisions under any order of events: every call is sent once, the writes of a key one after the other."""

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from kvshard.client.batch_window import LATE_S
from kvshard.client.batching import ReadBatching
from kvshard.client.write_batching import WriteBatching, WriteCall, WriteFrame

KEYS = [b"a", b"b", b"c", b"d"]

events = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(KEYS), st.booleans()),
        st.tuples(st.just("take"), st.just(0), st.just(False)),
        st.tuples(st.just("wait"), st.integers(1, 3), st.just(False)),
        st.tuples(st.just("end"), st.integers(0, 5), st.just(False)),
        st.tuples(st.just("keep"), st.integers(0, 5), st.booleans()),
        st.tuples(st.just("forget"), st.integers(0, 30), st.just(False)),
    ),
    max_size=60,
)


class Call:
    """A caller, by the order of its call. is_gone: it gave up."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_gone = False
        self.is_settled = False

    def __repr__(self) -> str:
        return f"Call({self.number})"

    def done(self) -> bool:
        return self.is_gone or self.is_settled


class Writer:
    """Feeds a WriteBatching, and knows what was sent of each key and what is not settled."""

    def __init__(self) -> None:
        self.batching = WriteBatching()
        self.now = 0.0
        self.calls: list[tuple[bytes, Call]] = []
        self.sent: dict[bytes, list[int]] = defaultdict(list)
        self.unsettled: dict[bytes, WriteFrame] = {}

    def put(self, key: bytes, refresh: bool) -> None:
        call = Call(len(self.calls))
        self.calls.append((key, call))
        self.batching.add("c", WriteCall(key, b"%d" % call.number, 0, None, refresh, call, 1e9))

    def take(self) -> None:
        for frame in self.batching.take(self.now):
            assert frame.keys
            for key, caller in zip(frame.keys, frame.callers, strict=True):
                assert isinstance(caller, Call)
                assert self.unsettled.get(key, frame) is frame, "a key is in two frames at once"
                assert not caller.is_gone, "one who gave up before was sent"
                self.unsettled[key] = frame
                self.sent[key].append(caller.number)

    def settle(self, number: int, keep_half: bool | None) -> None:
        frames = list(self.batching.frames)
        if not frames:
            return
        frame = frames[number % len(frames)]
        kept = list(range(0, len(frame.keys), 2)) if keep_half else []
        for index, caller in enumerate(frame.callers):
            assert isinstance(caller, Call)
            caller.is_settled = caller.is_settled or index not in kept
        keys = set(frame.keys)
        self.batching.answered(frame)
        if keep_half:
            self.batching.keep(frame, kept)
        else:
            self.batching.end(frame)
        for key in keys - set(frame.keys):
            del self.unsettled[key]

    def forget(self, number: int) -> None:
        if number < len(self.calls) and not self.calls[number][1].done():
            self.calls[number][1].is_gone = True
            self.batching.forget(self.calls[number][1])

    def drain(self) -> None:
        for _ in range(len(self.calls) + 2):
            self.now += LATE_S
            self.take()
            while self.batching.frames:
                self.settle(0, None)
                self.batching.check_invariants()


@settings(max_examples=150, deadline=None)
@given(events)
def test_writes_of_a_key_go_out_one_after_the_other_in_order_and_none_is_lost(steps: list[tuple[str, object, bool]]) -> None:
    writer = Writer()
    for kind, argument, flag in steps:
        if kind == "put":
            assert isinstance(argument, bytes)
            writer.put(argument, flag)
        else:
            assert isinstance(argument, int)
            if kind == "take":
                writer.take()
            elif kind == "wait":
                writer.now += argument * LATE_S / 2
            elif kind == "forget":
                writer.forget(argument)
            else:
                writer.settle(argument, flag if kind == "keep" else None)
        writer.batching.check_invariants()
    writer.drain()
    assert writer.batching.waiting == 0
    assert not writer.batching.has_backlog
    for key in KEYS:
        called = [call for of, call in writer.calls if of == key]
        assert writer.sent[key] == sorted(writer.sent[key])
        assert len(set(writer.sent[key])) == len(writer.sent[key])
        assert {call.number for call in called if not call.is_gone} <= set(writer.sent[key])


@settings(max_examples=100, deadline=None)
@given(events)
def test_every_read_is_sent_once_unless_its_caller_gave_up(steps: list[tuple[str, object, bool]]) -> None:
    batching, now = ReadBatching(), 0.0
    calls: list[Call] = []
    sent: list[int] = []

    def take() -> None:
        for frame in batching.take(now):
            callers = [caller for caller in frame.callers if isinstance(caller, Call)]
            assert not [caller for caller in callers if caller.is_gone]
            sent.extend(caller.number for caller in callers)

    for kind, argument, flag in steps:
        if kind == "put":
            assert isinstance(argument, bytes)
            calls.append(Call(len(calls)))
            batching.add("c", b"o" if flag else b"", argument, calls[-1], 1e9)
        elif kind == "take":
            take()
        elif kind == "wait":
            assert isinstance(argument, int)
            now += argument * LATE_S / 2
        elif kind == "forget":
            assert isinstance(argument, int)
            if argument < len(calls) and not calls[argument].is_gone:
                calls[argument].is_gone = True
                batching.forget(calls[argument])
        elif batching.frames:
            batching.end(next(iter(batching.frames)))
        batching.window.check_invariants()
    for _ in range(len(calls) + 2):
        take()
        for frame in list(batching.frames):
            batching.end(frame)
    assert len(sent) == len(set(sent))
    assert {call.number for call in calls if not call.is_gone} <= set(sent)
    assert not batching.has_backlog
