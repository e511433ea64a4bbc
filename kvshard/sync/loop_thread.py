"""The event loop behind the synchronous client: a thread that runs it, and how other threads hand it calls.

May live here: the thread's start and end, and a call's way there and back. When there is such a thread, and what a fork does to
it, is decided in `process.py`; what is called is the asyncio client's business.

Calls that several threads hand over while the loop is busy begin in one pass of it, so that the asyncio client sees them as
concurrent and may send them together.
"""

import asyncio
import contextlib
import gc
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, NoReturn, Protocol, TypeVar, cast

from kvshard.errors import Cancelled, FailedPrecondition
from kvshard.event_loop import loop_factory

T = TypeVar("T")

LOOK_INTERVAL_S = 1.0
"""A thread that waits looks this often whether the loop still runs. Where a wait cannot be interrupted (Windows), Ctrl-C is
heard that soon."""

CANCEL_WAIT_S = 5.0
"""How long an interrupted caller waits for its call to be over. To cancel one takes milliseconds; a second Ctrl-C ends the
wait."""

STOP_WAIT_S = 5.0
"""How long the end of the thread is waited for: it closes connections, which takes milliseconds."""


_ENDED = "the event loop of the synchronous client has ended"

_LOOP_FACTORY = loop_factory()
# Now, and not when the first call starts the thread: what this imports hooks itself into forks, and one that begins meanwhile
# would call only half of the hooks.


class Closable(Protocol):
    """What lives on the loop and has to be closed there."""

    def close(self) -> Awaitable[None]:
        """Close it."""
        ...


class Call(Generic[T]):
    """One call: made in the thread that waits for it, begun and ended on the loop.

    The lock is held until the outcome is there. A lock and no `concurrent.futures.Future`, whose condition costs as much as
    the rest of the way.
    """

    __slots__ = ("_begin", "_error", "_future", "_is_cancelled", "_is_over", "_over", "_result")

    def __init__(self, begin: Callable[[], Awaitable[T]]) -> None:
        self._begin = begin
        self._over = threading.Lock()
        self._over.acquire()
        self._future: asyncio.Future[T] | None = None
        self._is_cancelled = False
        self._is_over = False
        self._result: T | None = None
        self._error: BaseException | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """On the loop: begin it, unless its caller has gone already."""
        if self._is_cancelled:
            self.fail(Cancelled("the call was given up before it began"))
            return
        try:
            begun = self._begin()
        except Exception as error:
            self.fail(error)
            return
        # A coroutine needs a task; whatever is a future already, as what the batcher gives, needs none.
        future = begun if isinstance(begun, asyncio.Future) else loop.create_task(_as_coroutine(begun))
        self._future = future
        future.add_done_callback(self._end)

    def cancel(self) -> None:
        """On the loop: take it back."""
        self._is_cancelled = True
        if self._future is not None:
            self._future.cancel()

    def _end(self, future: "asyncio.Future[T]") -> None:
        if future.cancelled():
            self.fail(Cancelled("the call was cancelled: the client was closed, or its caller interrupted"))
            return
        error = future.exception()
        if error is not None:
            self.fail(error)
        else:
            self._result = future.result()
            self._is_over = True
            self._over.release()

    def fail(self, error: BaseException) -> None:
        """The call ends with this error."""
        self._error = error
        self._is_over = True
        self._over.release()

    def wait(self, thread: "LoopThread") -> T:
        """In the caller's thread: its outcome. If the wait is interrupted the call is cancelled, and over, when this raises."""
        try:
            self._wait(thread)
        except BaseException:
            thread.post(self.cancel)
            if not self._is_over and thread.is_alive:
                self._over.acquire(timeout=CANCEL_WAIT_S)
            raise
        if self._error is not None:
            try:
                raise self._error
            finally:
                del self  # The traceback holds this frame, and the call the error: without this they would be a cycle.
        return cast(T, self._result)

    def _wait(self, thread: "LoopThread") -> None:
        while not self._over.acquire(timeout=LOOK_INTERVAL_S):
            if not thread.is_alive:
                raise FailedPrecondition(_ENDED)


class AskedCall(Call[T]):
    """A call that is itself told its outcome, on the loop, as a future is: it needs none, and no task.

    ask: begins it; give_up: takes it back, once it is `done`.
    """

    __slots__ = ("_ask", "_give_up")

    def __init__(self, ask: "Callable[[AskedCall[T]], None]", give_up: "Callable[[AskedCall[T]], object]") -> None:
        super().__init__(_begun_otherwise)
        self._ask = ask
        self._give_up = give_up

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """On the loop: begin it, unless its caller has gone already."""
        if self._is_over:
            return
        try:
            self._ask(self)
        except Exception as error:
            self.fail(error)

    def cancel(self) -> None:
        """On the loop: take it back."""
        if not self._is_over:
            self.fail(Cancelled("the call was cancelled: its caller was interrupted"))
            self._give_up(self)

    def done(self) -> bool:
        """It has its outcome, or does not want it any more."""
        return self._is_over

    def set_result(self, result: T) -> None:
        """Its outcome."""
        self._result = result
        self._is_over = True
        self._over.release()

    set_exception = Call.fail


def _begun_otherwise() -> NoReturn:
    raise AssertionError("a call that asks by itself begins nothing else")


async def _as_coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable


class LoopThread:
    """A running event loop. Any thread but its own may `run` calls on it. `stop` ends it, and it cannot be started again."""

    def __init__(self) -> None:
        self._calls: deque[Call[Any]] = deque()
        self._is_woken = False
        self._residents: set[Closable] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._frees_grpc = False
        self._loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Event
        started = threading.Event()
        self._thread = threading.Thread(target=self._live, args=(started.set,), name="kvshard-sync", daemon=True)
        self._thread.start()
        started.wait()

    def __repr__(self) -> str:
        return f"LoopThread(alive={self.is_alive}, waiting={len(self._calls)}, residents={len(self._residents)})"

    @property
    def is_alive(self) -> bool:
        """True until it has ended."""
        return self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """True in the thread itself, which must not wait for itself."""
        return threading.current_thread() is self._thread

    def adopt(self, resident: Closable) -> None:
        """Close this when the loop ends, unless it is dismissed before."""
        self._residents.add(resident)

    def dismiss(self, resident: Closable) -> None:
        """It is closed, or somebody else sees to it."""
        self._residents.discard(resident)

    def close_soon(self, resident: Closable) -> None:
        """Have it closed, without waiting for that; from any thread."""
        self.post(lambda: self._close(resident))

    def run(self, begin: Callable[[], Awaitable[T]]) -> T:
        """Call `begin` on the loop and wait for what it gives.

        Raises what it raises; Cancelled when the loop ends meanwhile, FailedPrecondition when it has ended.
        """
        return self.make(Call(begin))

    def make(self, call: Call[T]) -> T:
        """Have a call begun on the loop and wait for its outcome. Raises as `run`."""
        self._calls.append(call)
        try:
            # To wake the loop is a system call. While one is due, and the loop has not looked yet, further callers need none.
            if not self._is_woken:
                if not self.is_alive:
                    raise FailedPrecondition(_ENDED)
                self._is_woken = True
                with contextlib.suppress(RuntimeError):  # It ends just now; who waits looks for that.
                    self._loop.call_soon_threadsafe(self._begin_calls)
            return call.wait(self)
        finally:
            del call  # An error's traceback holds this frame, and the call holds the error.

    def post(self, act: Callable[[], object]) -> None:
        """Have something done on the loop, without waiting; nothing is done once it has ended."""
        if self.is_alive:  # A forked process has the loop, and with it the other process's end of the pipe that wakes it.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(act)

    def stop(self, *, frees_grpc: bool = False) -> None:
        """Close what lives here, cancel what is under way, and wait for the end. Not from the thread itself.

        frees_grpc: see to it that gRPC's own thread ends too, unless somebody else uses it; that takes a garbage collection.
        """
        self._frees_grpc = frees_grpc
        self.post(self._stopping.set)
        self._thread.join(STOP_WAIT_S)

    def _begin_calls(self) -> None:
        self._is_woken = False  # First: a call that comes now, too late for the loop below, wakes it again.
        while self._calls:
            self._calls.popleft().begin(self._loop)

    def _close(self, resident: Closable) -> None:
        self._residents.discard(resident)
        task = self._loop.create_task(_as_coroutine(resident.close()))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _live(self, on_start: Callable[[], None]) -> None:
        try:
            with asyncio.Runner(loop_factory=_LOOP_FACTORY) as runner:
                runner.run(self._serve(on_start))
        finally:
            while self._calls:
                self._calls.popleft().fail(Cancelled(_ENDED))

    async def _serve(self, on_start: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        logging.getLogger("asyncio").addFilter(_is_worth_a_line)
        self._stopping = asyncio.Event()
        on_start()
        await self._stopping.wait()
        residents, self._residents = self._residents, set()
        await asyncio.gather(
            *(_as_coroutine(resident.close()) for resident in residents), *self._closing, return_exceptions=True
        )
        residents.clear()
        if self._frees_grpc:
            # gRPC ends its own thread when its last object goes, and takes its hook off this loop then: it must be open still.
            gc.collect()


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """gRPC wakes every event loop of a process through one socket, and all but the first find nothing to read there.

    In a program with event loops of its own that use gRPC, asyncio would log an error, with a traceback, for each of these
    (grpc/grpc#25364).
    """
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, BlockingIOError) and "PollerCompletionQueue" in record.getMessage())
