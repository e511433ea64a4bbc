"""What a handler notes of the request that it serves: how much of its time it only waited, for a thread, a commit, an index.

The lane server reports it as queue time. It travels in a context variable, since it is known deep inside, and each request has
a task, and so a context, of its own.
"""

from contextvars import ContextVar

_waited_s: ContextVar[float] = ContextVar("waited_s", default=0.0)


def note_wait(seconds: float) -> None:
    """The request that this task serves has waited so long."""
    _waited_s.set(_waited_s.get() + seconds)


def waited_s() -> float:
    """How long the request that this task serves has waited so far, beside the wait for its turn."""
    return _waited_s.get()
