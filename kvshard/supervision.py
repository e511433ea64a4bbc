"""How a child process notices that its supervisor is gone, however that happened.

Two means, because each alone has a hole. The pipe: only the supervisor holds its write end, so its death, by SIGKILL too, is
an end of file here; works on every system, but a stopped process (SIGSTOP) cannot read. PR_SET_PDEATHSIG: the kernel kills
the child, even a stopped one; Linux only.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

SUPERVISOR_FD_VARIABLE = "KVSHARD_SUPERVISOR_FD"
"""Environment variable with the number of the inherited read end."""

SUPERVISOR_PID_VARIABLE = "KVSHARD_SUPERVISOR_PID"
"""Environment variable with the supervisor's pid, to notice that it died before prctl was called."""

HASTY_STOP_SIGNAL = signal.SIGHUP
"""What a supervisor that stops the whole cluster sends to its leaves: there is nobody left to hand shards over to. One that
loses its terminal or its supervisor is in the same place."""

EXIT_DONE = 4
"""Exit code of a process that has no part in the cluster any more (its leaf was removed): it is not started again."""

STOP_GRACE_S = 3.0
"""Between on_lost and the hard exit: a graceful stop flushes one group commit; `up` promises that all is gone after 5 s."""

_PR_SET_PDEATHSIG = 1


def watch_supervisor(on_lost: Callable[[], None], grace_s: float = STOP_GRACE_S) -> bool:
    """If a supervisor started this process, call on_lost when it is gone, and end the process hard grace_s later.

    on_lost is called on a daemon thread: use `loop.call_soon_threadsafe`. Returns False, and does nothing, when there is no
    supervisor. Call it early, from the main thread: the kernel ties the death signal to the *thread* that started the child,
    which in the supervisor is its main thread.
    """
    text = os.environ.pop(SUPERVISOR_FD_VARIABLE, None)
    if text is None:
        return False
    fd = int(text)
    os.set_inheritable(fd, False)  # A grandchild that kept the fd would be harmless, but would show up as a leak.
    _die_with_parent(os.environ.pop(SUPERVISOR_PID_VARIABLE, None))
    threading.Thread(target=_wait_for_end, args=(fd, on_lost, grace_s), name="supervisor-watch", daemon=True).start()
    return True


def _wait_for_end(fd: int, on_lost: Callable[[], None], grace_s: float) -> None:
    with contextlib.suppress(OSError):
        while os.read(fd, 64):  # Nothing is ever written; whatever came would only mean that it lives.
            pass
    # Armed before on_lost, so that a stop that hangs or raises cannot keep an orphan alive.
    killer = threading.Timer(grace_s, os._exit, args=(1,))
    killer.daemon = True
    killer.start()
    with contextlib.suppress(RuntimeError):  # The event loop is closed already: the process is on its way out.
        on_lost()


def _die_with_parent(supervisor_pid: str | None) -> None:
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        return  # Forbidden by a sandbox: the pipe still does its work.
    # The supervisor may have died between the fork and the call: then the signal will never come, and the parent is another.
    if supervisor_pid is not None and os.getppid() != int(supervisor_pid):
        os._exit(1)
