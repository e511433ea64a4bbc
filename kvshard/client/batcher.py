"""Single operations of concurrent callers, put together within one pass of the event loop: no timer, no added wait.

What travels with what, and when, is decided in `batching` and `write_batching`; here frames are carried, each by a task of its
own, and their callers told: what reads (`read_batcher`) and writes (`write_batcher`) have in common. A caller holds a future:
its outcome, or its own error. The deadline of a frame is that of its most patient caller; each caller's own ends only that
caller's wait. One who gives up leaves nothing: what is not sent yet is not sent, what is sent is dropped when it comes, and a
frame that nobody waits for any more is taken back.

A frame that fails as a whole, or in some keys, is sent again like any other call, with what failed for a while and is still
wanted; it needs no place in the window then, and nobody whose key was answered waits for it.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

from kvshard.client.batch_retry import why_to_pause
from kvshard.client.batching import Batching, Caller, Frame
from kvshard.client.frame_slices import FrameSlices
from kvshard.client.retries import may_retry, told
from kvshard.client.routers import closed_during_call
from kvshard.errors import Cancelled, DeadlineExceeded, Internal, KvShardError
from kvshard.lane_messages import KeysReadReply

if TYPE_CHECKING:
    from kvshard.client.key_calls import KeyCalls

EXPIRY_SLACK_S = 0.002
"""By so much later than its deadline is a caller told that it has passed: what carries the frame keeps the deadline too, and
knows better what has become of the call."""

LOOK_AGAIN_MIN_S = 0.001
"""Between two looks of the timer: the event loop counts whole milliseconds, and may be early."""

FrameT = TypeVar("FrameT", bound=Frame)
_NEVER = float("inf")


class Begun(NamedTuple):
    """A sending that was made without a task, and what came of it: at which router, from when on, and the end of its slice."""

    router: int
    began: float
    until: float
    outcome: KeysReadReply | KvShardError


class Batcher(ABC, Generic[FrameT]):
    """Carries the frames of a `Batching`. It starts a task for each frame, keeps it, and cancels and awaits it at the end."""

    def __init__(self, calls: "KeyCalls", batching: Batching[Any, FrameT], slices: FrameSlices) -> None:
        self._calls = calls
        self._connection = calls.connection
        self._now = calls.connection.clock.monotonic
        self._batching = batching
        self._slices = slices
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_due = False
        self._is_blocked = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._carriers: dict[FrameT, asyncio.Task[None] | None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = _NEVER

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._batching!r}, tasks={len(self._tasks)})"

    def forget(self, future: asyncio.Future[Any]) -> None:
        """The caller has stopped waiting, since its task was cancelled."""
        if future.cancelled():
            self.give_up(future)

    def give_up(self, caller: Caller) -> None:
        """A caller who had no outcome yet does not want one any more; it is done already."""
        frame = self._batching.forget(caller)
        if frame is not None:
            self._give_up(frame)

    async def close(self) -> None:
        """Take everything back; callers get Cancelled. A second close does nothing."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for frame in list(self._batching.frames):
            self._drop(frame)
        for caller in self._batching.clear():
            _fail(caller, self._cancelled())

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the client. It is looked up once: each look-up asks the kernel for the process's id."""
        loop = self._loop
        if loop is None or loop.is_closed():
            loop = self._loop = asyncio.get_running_loop()
        return loop

    def _added(self, deadline: float, now: float) -> None:
        """A call has been added: see that it is sent, and that it does not wait beyond its deadline."""
        if deadline + EXPIRY_SLACK_S < self._timer_at:
            self._set_timer(deadline + EXPIRY_SLACK_S, now)
        if not (self._is_due or self._is_blocked):
            self._go_on(now)

    def _go_on(self, now: float) -> None:
        """Something has changed: send what waits, or see that it is looked at again."""
        self._is_blocked = False
        if self._is_due or not self._batching.has_backlog or self._connection.routers.is_closed:
            return
        if self._batching.may_send(now):
            self._is_due = True
            self._begin_sending()
        else:
            self._wait_for_a_place(now)

    def _begin_sending(self) -> None:
        """Have sent, in the next pass of the event loop, what this one brings."""
        self._start(self._send(), self._on_sender_ended)

    def _wait_for_a_place(self, now: float) -> None:
        """Until a frame has ended, or the timer goes off."""
        self._is_blocked = True
        at = self._batching.look_again_at()
        if at < self._timer_at:
            self._set_timer(at, now)

    async def _send(self) -> None:
        """Everything that the last pass of the event loop brought. This task carries one of the frames."""
        frames = self._take(self._now())
        for frame in frames[1:]:
            self._start_carrying(frame)
        if frames:
            await self._carry(frames[0])

    def _take(self, now: float) -> list[FrameT]:
        """The frames that have to be carried now, each by a task."""
        self._is_due = False
        frames = self._batching.take(now)
        if self._batching.has_backlog and not self._batching.may_send(now):
            self._wait_for_a_place(now)
        return frames

    async def _carry(self, frame: FrameT, begun: Begun | None = None) -> None:
        """Send a frame until each of its callers has an outcome. begun: the first sending, which is over."""
        self._carriers[frame] = asyncio.current_task()
        try:
            if self._has_lost_callers(frame):
                self._keep_live(frame)
            if frame.live > 0:
                await self._rounds(frame, begun)
        except asyncio.CancelledError:
            self._fail_all(frame, self._cancelled())
            raise
        except Exception as defect:  # Of ours: no caller may wait for ever because of it.
            self._fail_all(frame, Internal(f"{type(defect).__name__}: {defect}"))
        finally:
            del self._carriers[frame]
            self._batching.end(frame)
            self._go_on(self._now())

    async def _rounds(self, frame: FrameT, begun: Begun | None = None) -> None:
        connection, attempts = self._connection, 0
        while True:
            attempts += 1
            router: int | None
            if begun is not None:
                router, began, until, outcome = begun
                sending, begun = self._finish(frame, outcome), None
            else:
                router, began = connection.current, self._now()
                until = self._slice_of(frame, attempts, began)
                sending = self._attempt(frame, until)
            frame.is_out = True
            try:
                failed = await sending
            except KvShardError as error:
                failed = dict.fromkeys(range(len(frame.keys)), error)
            else:
                router = None
            now = self._now()
            self._slices.note(now - began)
            frame.is_out = False
            self._batching.answered(frame)
            self._go_on(now)
            delay = self._keep_for_later(frame, failed, attempts, until) if failed else None
            if delay is None:
                return
            if router is not None:
                connection.routers.turn_from(router)
            await asyncio.sleep(delay)
            self._keep_live(frame)
            if not frame.live:
                return

    def _keep_live(self, frame: FrameT) -> None:
        """What nobody waits for is not sent."""
        self._batching.keep(frame, [index for index, caller in enumerate(frame.callers) if not caller.done()])

    def _has_lost_callers(self, frame: FrameT) -> bool:
        """Whether callers of a frame that was just cut are known to have given up."""
        return frame.live < len(frame.callers)

    def _slice_of(self, frame: FrameT, attempts: int, now: float) -> float:
        """Until when the answer to this sending is waited for."""
        if len(frame.keys) == 1 or attempts >= self._connection.retries.max_attempts:
            return frame.deadline
        return min(frame.deadline, now + self._slices.length(attempts))

    @abstractmethod
    async def _attempt(self, frame: FrameT, deadline: float) -> dict[int, KvShardError]:
        """Send a frame once, and tell the callers who have a result; the others by index, ascending, with their errors."""

    async def _finish(self, frame: FrameT, outcome: KeysReadReply | KvShardError) -> dict[int, KvShardError]:
        """The same of a sending that is over already."""
        raise NotImplementedError(f"{type(self).__name__} begins no sending without a task")

    def _error_for(self, frame: FrameT, index: int, error: KvShardError) -> KvShardError:
        """What an error of its key means for a caller."""
        return error

    def _keep_for_later(self, frame: FrameT, failed: dict[int, KvShardError], attempts: int, until: float) -> float | None:
        """Tell the callers whose failure is final. Seconds until the others, who stay in the frame, are asked for again.

        until: the end of this sending's slice. Whose time goes on after it may be answered yet.
        """
        passing = {index: error for index, error in failed.items() if may_retry(error, is_repeatable=True)}
        cut = {
            index for index, error in failed.items() if isinstance(error, DeadlineExceeded) and until < frame.deadlines[index]
        }
        delay = 0.0 if cut else None
        if passing:
            error = why_to_pause(list(passing.values()))
            pause = self._connection.delay_after(error, is_repeatable=True, attempts=attempts)
            delay = pause if pause is not None else delay
            passing = passing if pause is not None else {}
        again_at = self._now() + (delay or 0.0)
        kept: list[int] = []
        for index, error in failed.items():
            caller = frame.callers[index]
            if caller.done():
                continue
            if (index in passing or index in cut) and again_at < frame.deadlines[index]:
                kept.append(index)
                if index in passing:
                    frame.causes[caller] = error
            else:
                self._fail_one(frame, index, error)
        self._batching.keep(frame, kept)
        return delay if kept else None

    def _fail_one(self, frame: FrameT, index: int, error: KvShardError) -> None:
        """Give a caller the error that its call has failed with in the end."""
        caller = frame.callers[index]
        _fail(caller, self._error_for(frame, index, told(error, frame.causes.get(caller))))

    def _fail_all(self, frame: FrameT, error: KvShardError) -> None:
        for index, caller in enumerate(frame.callers):
            if not caller.done():
                _fail(caller, self._error_for(frame, index, error))

    def _give_up(self, frame: FrameT) -> None:
        """Nobody waits for the frame any more. One whose task has not begun sees that itself."""
        task = self._carriers.get(frame)
        if task is not None:
            task.cancel()

    def _start(self, work: Coroutine[object, object, None], on_end: Callable[[asyncio.Task[None]], object]) -> None:
        task = self._own_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(on_end)

    def _start_carrying(self, frame: FrameT) -> None:
        self._start(self._carry(frame), lambda _: self._drop(frame))

    def _on_sender_ended(self, task: asyncio.Task[None]) -> None:
        """Somebody may have cancelled every task of the program, this one before it began."""
        if task.cancelled():
            self._is_due = False
            self._go_on(self._now())

    def _drop(self, frame: FrameT) -> None:
        """The same for a frame: one that was carried has ended before its task."""
        if frame in self._batching.frames:
            self._fail_all(frame, self._cancelled())
            self._batching.end(frame)
            self._go_on(self._now())

    def _cancelled(self) -> KvShardError:
        if self._connection.routers.is_closed:
            return closed_during_call(maybe_applied=False)
        return Cancelled("what carried the call was cancelled")

    def _set_timer(self, at: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._own_loop().call_later(max(LOOK_AGAIN_MIN_S, at - now), self._on_timer)

    def _on_timer(self) -> None:
        """Deadlines have passed, or calls that found no place may have one now."""
        self._timer, self._timer_at = None, _NEVER
        now, batching = self._now(), self._batching
        if batching.next_deadline + EXPIRY_SLACK_S <= now:
            self._expire(now)
        self._go_on(now)
        at = batching.next_deadline + EXPIRY_SLACK_S
        if at < self._timer_at:
            self._set_timer(at, now)

    def _expire(self, now: float) -> None:
        touched: dict[FrameT, None] = {}
        for caller, frame, index in self._batching.expire(now - EXPIRY_SLACK_S):
            if frame is None:
                _fail(caller, DeadlineExceeded("the timeout passed before the call was sent"))
            else:
                touched[frame] = None
                self._fail_one(frame, index, DeadlineExceeded("no answer within the timeout"))
        for frame in touched:
            if frame.live <= 0:
                self._give_up(frame)


def _fail(caller: Caller, error: KvShardError) -> None:
    """Give a caller an error of its own: many may fail alike, and each raises it with a traceback of its own."""
    cast("asyncio.Future[object]", caller).set_exception(type(error)(error.message, error.details))
