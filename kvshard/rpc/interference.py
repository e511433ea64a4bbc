"""What faults may do to the lanes of a leaf: stop all of them, and lead single requests astray.

Whoever injects faults (`leaf/fault_injection.py`) changes an `Interference`, the lane server looks at it. Where no fault is in
force that is one attribute test a message and one a request.
"""

import asyncio
from collections.abc import Callable

from kvshard.rpc.lane_handlers import Handler


class LeaveUnanswered(Exception):
    """Raised by a detour: the request gets no answer, not even an error."""


class Interference:
    """Shared by all lanes of a process.

    is_stopped: no lane reads a request or sends an answer. detour: asked for each request by its method; gives the handler
    that is to serve it instead of its own, or None. orders: methods that are served and answered although everything is
    stopped, else nobody could end it; callers send them over a lane of their own, since others are not read meanwhile.
    """

    def __init__(self, orders: frozenset[int] = frozenset()) -> None:
        self.is_stopped = False
        self.detour: Callable[[int], Handler | None] | None = None
        self.orders = orders
        self._stops = 0
        self._running = asyncio.Event()
        self._running.set()
        self._listeners: set[Callable[[], None]] = set()

    def stop(self) -> None:
        """Stop every lane, until `resume` has been called as often."""
        self._stops += 1
        self.is_stopped = True
        self._running.clear()

    def resume(self) -> None:
        """Take one `stop` back."""
        assert self._stops > 0, "resumed more often than stopped"
        self._stops -= 1
        if not self._stops:
            self.is_stopped = False
            self._running.set()
            for listener in self._listeners:
                listener()

    async def wait_running(self) -> None:
        """Return when nothing stops the lanes any more."""
        while self.is_stopped:  # It may have been stopped again before the turn of who waited came.
            await self._running.wait()

    def subscribe(self, on_resume: Callable[[], None]) -> Callable[[], None]:
        """Have a quick function called at the end of every stop. Returns what ends that."""
        self._listeners.add(on_resume)
        return lambda: self._listeners.discard(on_resume)

    def __repr__(self) -> str:
        return f"Interference(stops={self._stops}, has_detour={self.detour is not None})"
