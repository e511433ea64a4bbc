"""A timer for an event loop that is exact to some ten microseconds.

The loop's own timers wait in whole milliseconds (epoll's and libuv's unit): half a millisecond late on average, as much as a
fast read takes. On Linux a timerfd wakes the loop as soon as it is due; elsewhere the loop's timer has to do.
"""

import asyncio
import ctypes
import os
import sys
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Self

_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK = os.O_NONBLOCK
_TFD_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_TFD_TIMER_ABSTIME = 1
_TICKS_BYTES = 8


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


class PreciseTimer:
    """Calls back at an instant of the monotonic clock (`time.monotonic`), on the running loop. One instant at a time."""

    def __init__(self, fire: Callable[[], None]) -> None:
        self._fire = fire
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        # With the interpreter's lock held: to give it away, and wait for it, would take longer than the call.
        self._libc = ctypes.PyDLL(None, use_errno=True) if sys.platform == "linux" else None
        self._fd = -1 if self._libc is None else self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        self._spec = _Itimerspec()
        self._spec_at = ctypes.byref(self._spec)
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._on_ready)
            # The loop holds its readers: what was not closed is garbage no sooner than its loop.
            self._close_fd = weakref.finalize(self, os.close, self._fd)

    @property
    def is_precise(self) -> bool:
        """Whether the kernel's timer is used."""
        return self._fd >= 0

    def set(self, at: float) -> None:
        """Call back then; at once if that has passed. Replaces what was set before."""
        if self._libc is None or self._fd < 0:
            self._cancel_handle()
            self._handle = self._loop.call_at(at, self._fire)
            return
        at = max(at, 1e-9)  # Zero would switch the timer off.
        seconds = int(at)
        value = self._spec.it_value
        value.tv_sec, value.tv_nsec = seconds, int((at - seconds) * 1e9)
        if self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, self._spec_at, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def _on_ready(self) -> None:
        try:
            os.read(self._fd, _TICKS_BYTES)
        except BlockingIOError:
            return  # It was set anew meanwhile.
        self._fire()

    def _cancel_handle(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def close(self) -> None:
        """No further call."""
        self._cancel_handle()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._close_fd()
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
