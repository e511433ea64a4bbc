"""Which calls travel together in which frame: what reads and writes have in common, and the reads.

Calls that may share a frame wait in a queue: of the same collection and the same options, and while the window is careful (see
`batch_window`) of the same bucket. `take` cuts frames from the queues, in turn, as many as the window has places for. Time
comes in as an argument; whoever acts (`batcher`) carries the frames and gives the callers their outcomes.

Pure: imports only the standard library and other pure files.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Generic, Protocol, Self, TypeAlias, TypeVar

from kvshard.client.batch_window import Window, bucket_of
from kvshard.errors import ErrorDetails, KvShardError, ResourceExhausted
from kvshard.lane_messages import KeysRead
from kvshard.model import Refresh

FRAME_KEYS_MAX = 1_000
"""Keys of a frame: the cost of a frame is long amortised, and whoever decodes one holds up its event loop for a millisecond."""

FRAME_KEYS_SPREAD = 256
"""A backlog is spread over the free places in frames of at least this many keys, so that one is answered while the next is
asked. Smaller ones cost more than they hide: on two busy cores, frames of 64, 128, 256 and 512 of 512 concurrent gets took 36,
30, 24 and 19 us of processor time a get, over all processes."""

FRAME_BYTES_MAX = 4 * 1024 * 1024
"""Keys and values of a frame, and values of the answer that is to be expected: what one message of a lane carries. One value
may be larger."""

CALLS_WAITING_MAX = 250_000
"""Calls of one kind that wait for a place. A program that has begun so many does not wait for answers; each holds about a
kilobyte, and its value. Further ones are refused at once."""

REFUSED_RETRY_MS = 100
"""Thousands of those that wait have gone by then."""

COLLECTIONS_MEASURED = 256
"""Collections of which the size of values is remembered; a program that uses more of them at once starts anew."""

COMPACT_AFTER = 1_024
"""Calls given up while they waited, beyond which the queues are cleared of them: they hold their keys and values."""

SIZE_WEIGHT = 0.25
"""Of the newest answer in the remembered size of values: a few frames of large values are enough to make frames small."""

_NEVER = float("inf")

Variant: TypeAlias = bytes | Refresh
"""What the calls of a queue have in common beside the collection: the options of reads, the refresh of writes."""
QueueName: TypeAlias = tuple[str, Variant, int | None]


class Caller(Protocol):
    """Who waits for the outcome of a call: a future, as far as it matters here."""

    def done(self) -> bool:
        """It has its outcome, or does not want it any more."""
        ...


class Frame:
    """Calls that travel together; the columns are parallel. bucket: of all keys, None: of any.

    live: callers that still wait. is_out: a sending is under way. After `keep` the frame is what is left to be sent again.
    causes: what the earlier sendings of callers failed with.
    """

    __slots__ = ("_members", "bucket", "callers", "causes", "collection", "deadlines", "is_out", "keys", "live")

    def __init__(
        self, collection: str, bucket: int | None, keys: list[bytes], callers: list[Caller], deadlines: list[float]
    ) -> None:
        self.collection = collection
        self.bucket = bucket
        self.keys = keys
        self.callers = callers
        self.deadlines = deadlines
        self.live = len(callers)
        self.is_out = False
        self.causes: dict[Caller, KvShardError] = {}
        self._members: set[Caller] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.collection!r}, bucket={self.bucket}, keys={len(self.keys)}, live={self.live})"

    @property
    def deadline(self) -> float:
        """Of the caller who waits the longest."""
        return max(self.deadlines)

    def has(self, caller: Caller) -> bool:
        """Whether one of these calls is the caller's. The first question costs a set of them, the others nothing."""
        if self._members is None:
            self._members = set(self.callers)
        return caller in self._members

    def keep(self, indices: Sequence[int]) -> None:
        """Keep only the calls at these indices, in order."""
        self._members = None
        self.keys = [self.keys[index] for index in indices]
        self.callers = [self.callers[index] for index in indices]
        self.deadlines = [self.deadlines[index] for index in indices]
        self.live = sum(not caller.done() for caller in self.callers)


class Queue(ABC):
    """Calls that wait for a frame of their own kind, in order."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def waiting(self) -> Iterator[tuple[Caller, float]]:
        """Every caller with its deadline, those that are gone included."""


QueueT = TypeVar("QueueT", bound=Queue)
FrameT = TypeVar("FrameT", bound=Frame)


class ReadFrame(Frame):
    """Reads that travel together, with the same options."""

    __slots__ = ("options",)

    def __init__(
        self,
        collection: str,
        options: bytes,
        bucket: int | None,
        keys: list[bytes],
        callers: list[Caller],
        deadlines: list[float],
    ) -> None:
        super().__init__(collection, bucket, keys, callers, deadlines)
        self.options = options

    def request(self) -> KeysRead:
        """The frame as it travels."""
        return KeysRead(self.collection, self.keys, self.options, is_each_alone=True)

    def part(self, indices: Sequence[int]) -> Self:
        """A frame of only these calls."""
        part = type(self)(self.collection, self.options, self.bucket, self.keys, self.callers, self.deadlines)
        part.keep(indices)
        return part


class ReadQueue(Queue):
    """Reads of one collection with the same options, in columns."""

    __slots__ = ("bucket", "callers", "collection", "deadlines", "keys", "options")

    def __init__(self, collection: str, options: bytes, bucket: int | None) -> None:
        self.collection = collection
        self.options = options
        self.bucket = bucket
        self.keys: list[bytes] = []
        self.callers: list[Caller] = []
        self.deadlines: list[float] = []

    def __len__(self) -> int:
        return len(self.keys)

    def waiting(self) -> Iterator[tuple[Caller, float]]:
        """Every caller with its deadline."""
        return zip(self.callers, self.deadlines, strict=True)

    def cut(self, keys: int) -> ReadFrame:
        """The frame of the first so many calls."""
        if keys >= len(self.keys):  # All of it: the columns themselves, without a copy.
            columns = self.keys, self.callers, self.deadlines
            self.keys, self.callers, self.deadlines = [], [], []
            return ReadFrame(self.collection, self.options, self.bucket, *columns)
        frame = ReadFrame(
            self.collection, self.options, self.bucket, self.keys[:keys], self.callers[:keys], self.deadlines[:keys]
        )
        del self.keys[:keys], self.callers[:keys], self.deadlines[:keys]
        return frame

    def drop_gone(self) -> None:
        """Forget the calls whose callers are gone."""
        kept = [index for index, caller in enumerate(self.callers) if not caller.done()]
        if len(kept) < len(self.callers):
            self.keys = [self.keys[index] for index in kept]
            self.callers = [self.callers[index] for index in kept]
            self.deadlines = [self.deadlines[index] for index in kept]


class Batching(ABC, Generic[QueueT, FrameT]):
    """The queues, the frames that are not settled yet, and the window.

    `frames` holds every frame from its cut to its `end`: in flight, or between two sendings. Invariants: a call is in one queue
    or in one frame; what is in flight in the window is in `frames`.
    """

    def __init__(self) -> None:
        self.window = Window()
        self.frames: dict[FrameT, None] = {}
        self.next_deadline = _NEVER
        self._queues: dict[QueueName, QueueT] = {}
        self._is_careful = False
        self._gone = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(waiting={self.waiting}, frames={len(self.frames)}, {self.window!r})"

    @property
    def waiting(self) -> int:
        """Calls in the queues, those whose callers have gone meanwhile included."""
        return sum(map(len, self._queues.values()))

    @property
    def has_backlog(self) -> bool:
        """Whether calls wait that may be sent when there is a place."""
        return bool(self._queues)

    @abstractmethod
    def _new_queue(self, name: QueueName) -> QueueT: ...

    @abstractmethod
    def _scatter(self, queue: QueueT) -> None:
        """Move the calls of a queue to those of their buckets."""

    @abstractmethod
    def _cut(self, queue: QueueT, keys: int) -> FrameT:
        """The frame of the first calls, about so many; they leave the queue, which is not empty."""

    def _frame_keys_max(self, name: QueueName) -> int:
        return FRAME_KEYS_MAX

    def _queue_of(self, collection: str, variant: Variant, key: bytes) -> QueueT:
        name = (collection, variant, bucket_of(key) if self._is_careful else None)
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = self._new_queue(name)
        return queue

    def may_send(self, now: float) -> bool:
        """Whether `take` may find a frame to send."""
        return self.window.places(None, now) > 0

    def take(self, now: float) -> list[FrameT]:
        """The frames that are to be sent now, in order. Each is in flight until `answered`, and held until `end`."""
        is_careful = self.window.is_careful(now)
        if is_careful and not self._is_careful:
            self._is_careful = True
            for name in [name for name in self._queues if name[2] is None]:
                self._scatter(self._queues.pop(name))
        self._is_careful = is_careful
        if self._gone:
            self._drop_gone()
        frames: list[FrameT] = []
        blocked: dict[QueueName, QueueT] = {}
        while self._queues:
            name = next(iter(self._queues))
            queue = self._queues.pop(name)
            places, waiting = self.window.places(name[2], now), len(queue)
            if not waiting:
                continue
            if places <= 0:
                blocked[name] = queue
                continue
            share = max(-(-waiting // places), FRAME_KEYS_SPREAD)
            frame = self._cut(queue, min(share, self._frame_keys_max(name)))
            if len(frame.keys) < waiting:
                self._queues[name] = queue  # Behind the others: its turn comes again when they had theirs.
            self.window.sent(frame, name[2], now)
            self.frames[frame] = None
            frames.append(frame)
        self._queues = blocked
        return frames

    def look_again_at(self) -> float:
        """When to call `take` again although no frame has ended; infinity: there is no need to."""
        window = self.window
        is_hopeful = any(len(queue) and not window.is_full_for(name[2]) for name, queue in self._queues.items())
        return window.look_again_at() if is_hopeful else _NEVER

    def answered(self, frame: FrameT) -> None:
        """A frame is no longer in flight. If something of it is sent again, that needs no place."""
        self.window.ended(frame)

    def keep(self, frame: FrameT, indices: Sequence[int]) -> None:
        """Only these calls of the frame will be sent again."""
        frame.keep(indices)

    def end(self, frame: FrameT) -> None:
        """Nothing of the frame will be sent any more."""
        self.window.ended(frame)
        self.frames.pop(frame, None)

    def forget(self, caller: Caller) -> FrameT | None:
        """A caller has given up. Returns the frame of which it was the last live one: nobody wants its answer."""
        for frame in self.frames:
            if frame.has(caller):
                frame.live -= 1
                return frame if frame.live <= 0 else None
        self._gone += 1
        if self._gone >= COMPACT_AFTER and 2 * self._gone >= self.waiting:
            self._drop_gone()
        return None

    def expire(self, now: float) -> list[tuple[Caller, FrameT | None, int]]:
        """The callers whose deadlines have passed, each with its frame and the index in it; `next_deadline` is the next one.

        Who asks lets each of them go, and then gives up the frames of which none is live any more.
        """
        expired: list[tuple[Caller, FrameT | None, int]] = []
        following = _NEVER
        for frame in self.frames:
            for index, (caller, deadline) in enumerate(zip(frame.callers, frame.deadlines, strict=True)):
                if caller.done():
                    continue
                if deadline <= now:
                    frame.live -= 1
                    expired.append((caller, frame, index))
                else:
                    following = min(following, deadline)
        for caller, deadline in self._all_waiting():
            if caller.done():
                continue
            if deadline <= now:
                self._gone += 1
                expired.append((caller, None, 0))
            else:
                following = min(following, deadline)
        self.next_deadline = following
        return expired

    def clear(self) -> list[Caller]:
        """The callers whose calls are in no frame; they leave. For when nothing is sent any more."""
        callers = [caller for caller, _ in self._all_waiting() if not caller.done()]
        self._queues.clear()
        return callers

    def _all_waiting(self) -> Iterator[tuple[Caller, float]]:
        return chain.from_iterable(queue.waiting() for queue in self._queues.values())

    @abstractmethod
    def _drop_gone(self) -> None:
        """Forget the calls that were given up while they waited."""


def too_many_waiting() -> ResourceExhausted:
    """The error of a call for which there is no room."""
    details = ErrorDetails(limit=CALLS_WAITING_MAX, retry_after_ms=REFUSED_RETRY_MS)
    return ResourceExhausted(f"{CALLS_WAITING_MAX:,} calls of this client wait already", details)


class ReadBatching(Batching[ReadQueue, ReadFrame]):
    """Single reads. The values that a collection's reads found set how many of its keys go into a frame."""

    def __init__(self) -> None:
        super().__init__()
        self._value_bytes: dict[str, float] = {}

    def add(self, collection: str, options: bytes, key: bytes, caller: Caller, deadline: float) -> None:
        """A call is made. Raises ResourceExhausted."""
        queue = None if self._is_careful else self._queues.get((collection, options, None))
        if queue is None:
            queue = self._queue_of(collection, options, key)
        if len(queue.keys) >= CALLS_WAITING_MAX:
            raise too_many_waiting()
        queue.keys.append(key)
        queue.callers.append(caller)
        queue.deadlines.append(deadline)
        if deadline < self.next_deadline:
            self.next_deadline = deadline

    def learn(self, collection: str, values: Sequence[bytes | None]) -> None:
        """An answer has come: the sizes of (some of) its values count for the next frames."""
        found = [len(value) for value in values if value is not None]
        if not found:
            return
        size = sum(found) / len(found)
        known = self._value_bytes.get(collection)
        if known == size:
            return
        known = size if known is None else known
        if len(self._value_bytes) >= COLLECTIONS_MEASURED:
            self._value_bytes.clear()
        self._value_bytes[collection] = known + SIZE_WEIGHT * (size - known)

    def _frame_keys_max(self, name: QueueName) -> int:
        size = self._value_bytes.get(name[0], 0.0)
        return max(1, min(FRAME_KEYS_MAX, int(FRAME_BYTES_MAX / size))) if size else FRAME_KEYS_MAX

    def _new_queue(self, name: QueueName) -> ReadQueue:
        collection, options, bucket = name
        assert isinstance(options, bytes), "reads differ by their options"
        return ReadQueue(collection, options, bucket)

    def _cut(self, queue: ReadQueue, keys: int) -> ReadFrame:
        return queue.cut(keys)

    def _scatter(self, queue: ReadQueue) -> None:
        for key, (caller, deadline) in zip(queue.keys, queue.waiting(), strict=True):
            self.add(queue.collection, queue.options, key, caller, deadline)

    def _drop_gone(self) -> None:
        self._gone = 0
        for queue in self._queues.values():
            queue.drop_gone()

    def split(self, frame: ReadFrame, indices: Sequence[int]) -> list[ReadFrame]:
        """Frames of half of these calls each: their answer was too large for one. They are held, without places.

        The second half is to be asked when the first one is answered, so that no more than one answer is under way.
        """
        middle = (len(indices) + 1) // 2
        halves = [frame.part(part) for part in (indices[:middle], indices[middle:]) if part]
        self.frames.update(dict.fromkeys(halves))
        return halves
