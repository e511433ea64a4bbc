"""One loop thread for all synchronous clients of a process: started by the first call, ended by a fork and with the process.

gRPC does not survive a fork: its threads are not in the child, its locks may be held there for ever. So the loop thread ends
*before* a fork, when no call is under way, and takes gRPC's threads with it; afterwards parent and child begin anew, each at
its next call. Where gRPC cannot be put to rest (a call takes longer than FORK_WAIT_S, or another part of the program uses it)
the parent goes on, and the child gets an error in the place of a call that hangs.

The last of gRPC's threads takes the library down, and the process must not be forked meanwhile: once in fifty times a lock was
left behind that no call of the child came past. Nobody tells when that is over, so the kernel is asked for the threads.
"""

import atexit
import contextlib
import os
import threading
import time

from kvshard.errors import FailedPrecondition
from kvshard.sync.loop_thread import LoopThread

FORK_WAIT_S = 1.0
"""How long a fork waits for calls under way: far beyond a healthy one, and a program that forks beside a call that hangs is not
held up for longer. Calls that other threads begin meanwhile wait for the fork."""

POLL_S = 0.001
"""Between two looks at the threads of the process; gRPC's last one takes a few milliseconds."""

POLLER = "_poll_wrapper"
"""In the name of the thread in which gRPC for asyncio waits for its events; it lives as long as any object of that gRPC."""

NATIVE_THREADS = ("event_engine", "grpc", "lifeguard")
"""How the names of gRPC's own threads begin."""

_FORKED = (
    "this process was forked from one in which gRPC was at work, and gRPC cannot go on in it: close every client of kvshard "
    "before the fork, or start the process by spawn"
)


class Process:
    """What a process has: at most one loop thread, which outlives its clients. refusal: why there can be none.

    Invariant: while `entered` > 0 the thread is neither stopped nor replaced, unless the process ends.
    """

    def __init__(self, refusal: str = "") -> None:
        self.changed = threading.Condition()
        self.refusal = refusal
        self.thread: LoopThread | None = None
        self.entered = 0
        self.is_forking = False

    def enter(self) -> LoopThread:
        """The thread, for one call; `leave` follows. Waits while the process forks. Raises FailedPrecondition."""
        with self.changed:
            while self.is_forking:
                self.changed.wait()
            if self.refusal:
                raise FailedPrecondition(self.refusal)
            if self.thread is None or not self.thread.is_alive:
                self.thread = LoopThread()
            self.entered += 1
            return self.thread

    def leave(self) -> None:
        """The call is over."""
        with self.changed:
            self.entered -= 1
            if not self.entered:
                self.changed.notify_all()  # For who waits for rest; without anybody it costs next to nothing.

    def before_fork(self) -> bool:
        """Put gRPC to rest, and keep every other thread out until after_fork. False: gRPC is at work still."""
        self.changed.acquire()
        self.is_forking = True
        return self.rest() and not any(POLLER in thread.name for thread in threading.enumerate())

    def after_fork(self) -> None:
        """In the parent."""
        self.is_forking = False
        self.changed.notify_all()
        self.changed.release()

    def rest(self) -> bool:
        """End the loop thread and gRPC's once no call is under way; the next call starts another. False: it cannot be."""
        with self.changed:
            thread = self.thread
            if thread is None:
                return True
            if thread.is_current or not self.changed.wait_for(lambda: not self.entered, FORK_WAIT_S):
                return False
            before = _native_threads()
            thread.stop(frees_grpc=True)
            self.thread = None
            return _is_gone(before)

    def end(self) -> None:
        """The process ends: close what is open."""
        self.refusal = "the process ends"
        if self.thread is not None and not self.thread.is_current:
            self.thread.stop()


def _native_threads() -> dict[str, str]:
    """The threads that Python knows nothing of: id and name. None where the system does not tell."""
    known = {str(thread.native_id) for thread in threading.enumerate()}
    found = {}
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            if thread not in known:
                with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/comm", encoding="utf-8") as name:
                    found[thread] = name.read()
    return found


def _is_gone(before: dict[str, str]) -> bool:
    """Wait until gRPC's threads are gone: those of its names, and those that were not there before its end began."""
    deadline = time.monotonic() + FORK_WAIT_S
    while any(name.startswith(NATIVE_THREADS) or thread not in before for thread, name in _native_threads().items()):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


_process = Process()
_is_grpc_at_work = False


def this_process() -> Process:
    """The state of the process in which this is called; another one after a fork."""
    return _process


def _before_fork() -> None:
    global _is_grpc_at_work
    _is_grpc_at_work = not _process.before_fork()


def _after_fork_in_parent() -> None:
    _process.after_fork()


def _after_fork_in_child() -> None:
    # Everything anew: the lock is held by a thread that is not here.
    global _process
    _process = Process(_FORKED if _is_grpc_at_work else "")


def _end() -> None:
    _process.end()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
