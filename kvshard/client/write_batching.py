"""Which single writes travel together, and which must wait: those of one key take effect in the order of their calls.

A frame is written in its order, so calls of one key may share it. Across frames only the outcome tells that a write is over: a
call whose key has a write in another frame waits behind it. What waits behind a key goes into one frame together, as far as it
fits, so that a key that everybody writes does not cost a round trip a call.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, takewhile
from typing import NamedTuple

from kvshard.client.batching import (
    CALLS_WAITING_MAX,
    FRAME_BYTES_MAX,
    FRAME_KEYS_MAX,
    Batching,
    Caller,
    Frame,
    Queue,
    QueueName,
    too_many_waiting,
)
from kvshard.lane_messages import KeysWrite
from kvshard.model import Refresh


class WriteCall(NamedTuple):
    """One write. value None deletes. ttl_ms, condition: as in `KeysWrite`."""

    key: bytes
    value: bytes | None
    ttl_ms: int
    condition: int | None
    refresh: Refresh
    caller: Caller
    deadline: float


class WriteFrame(Frame):
    """Writes that travel together, under one request id, in order.

    places: where its keys stand in the frame as it was cut, which had `total` of them. doubtful: the places of keys of which a
    sending may have taken effect.
    """

    __slots__ = ("conditions", "doubtful", "places", "refresh", "total", "ttl_ms", "values")

    def __init__(self, collection: str, refresh: Refresh, bucket: int | None, calls: Sequence[WriteCall]) -> None:
        keys, callers = [call.key for call in calls], [call.caller for call in calls]
        super().__init__(collection, bucket, keys, callers, [call.deadline for call in calls])
        self.refresh = refresh
        self.values = [call.value for call in calls]
        ttl_ms, conditions = [call.ttl_ms for call in calls], [call.condition for call in calls]
        self.ttl_ms = ttl_ms if any(ttl_ms) else []
        self.conditions = conditions if any(condition is not None for condition in conditions) else []
        self.total = len(keys)
        self.places: Sequence[int] = range(self.total)
        self.doubtful: set[int] = set()

    def request(self) -> KeysWrite:
        """The frame as it travels, without its id."""
        columns = self.keys, self.values, self.ttl_ms, self.conditions
        is_patient = self.refresh == "wait"
        return KeysWrite(self.collection, *columns, bool(self.refresh), is_each_alone=True, next_refresh=is_patient)

    def keep(self, indices: Sequence[int]) -> None:
        """Keep only the calls at these indices, in order."""
        super().keep(indices)
        self.values = [self.values[index] for index in indices]
        self.ttl_ms = [self.ttl_ms[index] for index in indices] if self.ttl_ms else []
        self.conditions = [self.conditions[index] for index in indices] if self.conditions else []
        self.places = [self.places[index] for index in indices]


class WriteQueue(Queue):
    """Writes of one collection that may go: of each key a run of calls, in order. count: calls of all runs."""

    __slots__ = ("bucket", "collection", "count", "ready", "refresh")

    def __init__(self, collection: str, refresh: Refresh, bucket: int | None) -> None:
        self.collection = collection
        self.refresh = refresh
        self.bucket = bucket
        self.ready: dict[bytes, list[WriteCall]] = {}
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def waiting(self) -> Iterator[tuple[Caller, float]]:
        """Every caller with its deadline."""
        return ((call.caller, call.deadline) for run in self.ready.values() for call in run)


class _Order:
    """The keys of a collection that have unsettled writes.

    busy: key -> what holds the oldest of them: a queue, or the frame in which it travels. behind: key -> the calls that wait
    for that. Invariants: a key that has calls behind it is busy; the calls of a key lie in one queue or one frame, and the
    younger ones behind.
    """

    __slots__ = ("behind", "busy")

    def __init__(self) -> None:
        self.busy: dict[bytes, WriteQueue | WriteFrame] = {}
        self.behind: dict[bytes, list[WriteCall]] = {}


class WriteBatching(Batching[WriteQueue, WriteFrame]):
    """Single writes."""

    def __init__(self) -> None:
        super().__init__()
        self._orders: dict[str, _Order] = {}
        self._behind = 0

    @property
    def waiting(self) -> int:
        """Calls that are in no frame, those whose callers have gone meanwhile included."""
        return super().waiting + self._behind

    def add(self, collection: str, call: WriteCall) -> None:
        """A call is made. Raises ResourceExhausted."""
        order = self._orders.get(collection)
        if order is None:
            order = self._orders[collection] = _Order()
        key = call.key
        holder = order.busy.get(key)
        if holder is None:
            queue = self._queue_of(collection, call.refresh, key)
            if queue.count >= CALLS_WAITING_MAX:
                raise too_many_waiting()
            order.busy[key] = queue
            queue.ready[key] = [call]
            queue.count += 1
        elif self._behind >= CALLS_WAITING_MAX:
            raise too_many_waiting()
        elif isinstance(holder, WriteQueue) and holder.refresh == call.refresh and key not in order.behind:
            if holder.count >= CALLS_WAITING_MAX:
                raise too_many_waiting()
            holder.ready[key].append(call)
            holder.count += 1
        else:
            order.behind.setdefault(key, []).append(call)
            self._behind += 1
        if call.deadline < self.next_deadline:
            self.next_deadline = call.deadline

    def keep(self, frame: WriteFrame, indices: Sequence[int]) -> None:
        """Only these calls of the frame will be sent again; the other keys are settled."""
        before = frame.keys
        frame.keep(indices)
        self._settle(frame, before)

    def end(self, frame: WriteFrame) -> None:
        """Nothing of the frame will be sent any more."""
        super().end(frame)
        before, frame.keys = frame.keys, []
        self._settle(frame, before)

    def clear(self) -> list[Caller]:
        """The callers whose calls are in no frame; they leave."""
        callers = super().clear()
        self._behind = 0
        for order in self._orders.values():
            order.behind.clear()
            order.busy = {key: holder for key, holder in order.busy.items() if isinstance(holder, WriteFrame)}
        return callers

    def _settle(self, frame: WriteFrame, before: Sequence[bytes]) -> None:
        kept = set(frame.keys)
        for key in before:
            order = self._orders.get(frame.collection)
            # A key that occurs twice is released once; after a close there is nothing to release.
            if key not in kept and order is not None and order.busy.get(key) is frame:
                self._release(frame.collection, order, key)

    def _release(self, collection: str, order: _Order, key: bytes) -> None:
        """The oldest writes of a key are over: those that wait behind them may go."""
        run = order.behind.pop(key, None)
        if run is None:
            del order.busy[key]
            if not order.busy:
                del self._orders[collection]
            return
        refresh = run[0].refresh
        alike = list(takewhile(lambda call: call.refresh == refresh, run))
        queue = order.busy[key] = self._queue_of(collection, refresh, key)
        queue.ready[key] = alike
        queue.count += len(alike)
        self._behind -= len(alike)
        if len(alike) < len(run):
            order.behind[key] = run[len(alike) :]

    def _new_queue(self, name: QueueName) -> WriteQueue:
        collection, refresh, bucket = name
        assert not isinstance(refresh, bytes), "writes differ by their refresh"
        return WriteQueue(collection, refresh, bucket)

    def _scatter(self, queue: WriteQueue) -> None:
        order = self._orders[queue.collection]
        for key, run in queue.ready.items():
            target = order.busy[key] = self._queue_of(queue.collection, queue.refresh, key)
            target.ready[key] = run
            target.count += len(run)

    def _cut(self, queue: WriteQueue, keys: int) -> WriteFrame:
        order = self._orders[queue.collection]
        calls: list[WriteCall] = []
        taken: list[bytes] = []
        size = 0
        for key, run in queue.ready.items():
            if len(calls) >= keys:
                break
            fit, added = _fitting(run, FRAME_KEYS_MAX - len(calls), FRAME_BYTES_MAX - size)
            if not fit:
                if calls:
                    break
                fit = 1  # A value that is too large for any frame has one of its own.
                added = FRAME_BYTES_MAX
            size += added
            taken.append(key)
            if fit == len(run):
                calls += run
            else:
                calls += run[:fit]
                order.behind[key] = run[fit:] + order.behind.get(key, [])
                self._behind += len(run) - fit
        frame = WriteFrame(queue.collection, queue.refresh, queue.bucket, calls)
        for key in taken:
            queue.count -= len(queue.ready.pop(key))
            order.busy[key] = frame
        return frame

    def _all_waiting(self) -> Iterator[tuple[Caller, float]]:
        behind = (
            (call.caller, call.deadline) for order in self._orders.values() for run in order.behind.values() for call in run
        )
        return chain(super()._all_waiting(), behind)

    def _drop_gone(self) -> None:
        self._gone = 0
        for order in self._orders.values():
            for key in [key for key, run in order.behind.items() if any(call.caller.done() for call in run)]:
                live = [call for call in order.behind[key] if not call.caller.done()]
                self._behind -= len(order.behind[key]) - len(live)
                order.behind[key] = live
                if not order.behind[key]:
                    del order.behind[key]
        for queue in list(self._queues.values()):
            for key in [key for key, run in queue.ready.items() if any(call.caller.done() for call in run)]:
                live = [call for call in queue.ready[key] if not call.caller.done()]
                queue.count -= len(queue.ready[key]) - len(live)
                queue.ready[key] = live
                if not live:
                    del queue.ready[key]
                    self._release(queue.collection, self._orders[queue.collection], key)

    def check_invariants(self) -> None:
        """Raise AssertionError unless the invariants of this file hold."""
        self.window.check_invariants()
        behind = sum(len(run) for order in self._orders.values() for run in order.behind.values())
        assert behind == self._behind, repr(self)
        for order in self._orders.values():
            assert order.behind.keys() <= order.busy.keys(), repr(self)
        for queue in self._queues.values():
            assert queue.count == sum(map(len, queue.ready.values())), repr(self)
            busy = self._orders[queue.collection].busy if queue.ready else {}
            assert all(busy[key] is queue and run for key, run in queue.ready.items()), repr(self)
        for frame in self.frames:
            busy = self._orders[frame.collection].busy if frame.keys else {}
            assert all(busy[key] is frame for key in frame.keys), repr(self)


def _fitting(run: Sequence[WriteCall], keys: int, size: int) -> tuple[int, int]:
    """How many calls of a run, from the first on, fit into so many keys and bytes, and the bytes that they have."""
    count = taken = 0
    for call in run:
        added = len(call.key) + len(call.value or b"")
        if count == keys or taken + added > size:
            break
        taken += added
        count += 1
    return count, taken
