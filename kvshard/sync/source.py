"""Where a synchronous client's calls go: to an asyncio client on the process's loop thread, made anew after a fork."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from kvshard.client.client import Client as AsyncClient
from kvshard.client.results import K
from kvshard.errors import FailedPrecondition
from kvshard.sync.loop_thread import Call, LoopThread
from kvshard.sync.process import Process, this_process

T = TypeVar("T")

_IN_EVENT_LOOP = (
    "kvshard.sync blocks, and this thread runs an event loop, which would stand still: use kvshard.Client with await, or call "
    "this through asyncio.to_thread. Where that does no harm, as in a notebook, make the client with may_block_event_loop=True"
)


class Source(Generic[K]):
    """The asyncio client behind a synchronous one and its collections; calls from any thread.

    make: makes one; it is called at once, so that wrong arguments are refused here, and again in every process that is forked.
    may_block: also in a thread that runs an event loop.
    """

    def __init__(self, make: Callable[[], AsyncClient[K]], may_block: bool) -> None:
        self._make = make
        self._may_block = may_block
        self._changing = threading.Lock()
        self._process = this_process()
        self._client: AsyncClient[K] = make()
        self._thread: LoopThread | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"Source({self._client!r}, {'closed' if self._is_closed else 'open'})"

    def run(self, begin: Callable[[AsyncClient[K]], Awaitable[T]]) -> T:
        """Have `begin` called on the loop, and wait for what it gives.

        Raises what it raises; FailedPrecondition where this must not block, the client is closed, or gRPC cannot work.
        """
        return self.make(lambda client: Call(lambda: begin(client)))

    def make(self, call_of: Callable[[AsyncClient[K]], Call[T]]) -> T:
        """Have a call begun on the loop, and wait for its outcome. Raises as `run`."""
        if asyncio._get_running_loop() is not None:
            self._check_event_loop()
        process = this_process()
        thread = process.enter()
        try:
            client = self._client if thread is self._thread else self._move(process, thread)
            return thread.make(call_of(client))
        finally:
            process.leave()

    def begin(self, make: Callable[[AsyncClient[K]], T]) -> tuple[LoopThread, T]:
        """Make something of the asyncio client that is used on the loop later, without waiting for anything."""
        process = this_process()
        thread = process.enter()
        try:
            return thread, make(self._client if thread is self._thread else self._move(process, thread))
        finally:
            process.leave()

    def close(self) -> None:
        """Close the client. A second close does nothing."""
        is_first, self._is_closed = not self._is_closed, True
        if is_first and self._thread is not None and self._thread.is_alive:
            self.run(lambda client: client.close())
            self._thread.dismiss(self._client)

    def _move(self, process: Process, thread: LoopThread) -> AsyncClient[K]:
        """Settle on this thread: the first one, or the one after a fork, which ended the client on the thread before.

        A client that was made before the fork and never used is not kept either: its twins in other processes would draw the
        same random numbers.
        """
        with self._changing:
            if self._thread is not thread:
                if self._is_closed:
                    raise FailedPrecondition("the client is closed")
                if self._thread is not None or self._process is not process:
                    self._client = self._make()
                thread.adopt(self._client)
                self._process, self._thread = process, thread
            return self._client

    def _check_event_loop(self) -> None:
        thread = self._thread
        if thread is not None and thread.is_current:
            raise FailedPrecondition("kvshard.sync was called from its own event loop, which would wait for itself")
        if not self._may_block:
            raise FailedPrecondition(_IN_EVENT_LOOP)

    def __del__(self) -> None:
        # Dropped without a close: its connections must not wait for the end of the process. This runs in any thread.
        thread = getattr(self, "_thread", None)
        if thread is not None and not self._is_closed:
            thread.close_soon(self._client)
