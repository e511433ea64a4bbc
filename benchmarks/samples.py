"""Samples of running code, as py-spy writes them: which functions and which parts of the program they were in.

A sample is a line: the frames from the outermost to the innermost with semicolons between them, and how often it was seen.

Pure: imports only the standard library.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

OURS = ("kvshard", "router", "leaf", "benchmarks")
WAITING = (
    "Thread.run (threading.py)",
    "_worker (concurrent/futures/thread.py)",
    "_wait_for_end (kvshard/supervision.py)",
    "epoll_wait (libc.so.6)",
    "epoll_pwait (libc.so.6)",
)
"""Where a thread has nothing to do. A look from outside cannot always tell that it sleeps there."""

_PLACE = re.compile(r"\(([^()]*?)(?::\d+)?\)$")
_PYTHON_FOLDER = re.compile(r"python3\.\d+")
_LINE_NUMBER = re.compile(r":\d+\)$")


@dataclass(frozen=True, slots=True)
class Part:
    """A share of all samples, 0 to 1."""

    name: str
    share: float


def _running(folded: str) -> Iterator[tuple[str, int]]:
    """The innermost frames without their line numbers, and how often each was seen; not those that wait."""
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        frame = _LINE_NUMBER.sub(")", stack.rpartition(";")[2])
        if frame and frame not in WAITING:
            yield frame, int(count)


def _parts(counted: "Counter[str]") -> list[Part]:
    total = sum(counted.values())
    return [Part(name, count / total) for name, count in counted.most_common()]


def busiest_functions(folded: str) -> list[Part]:
    """The functions that were running themselves, not what they called or waited for; the busiest first."""
    counted: Counter[str] = Counter()
    for frame, count in _running(folded):
        counted[frame] += count
    return _parts(counted)


def layers(folded: str) -> list[Part]:
    """The packages that the running functions belong to, ours by their rooms: `kvshard/rpc`; the busiest first."""
    counted: Counter[str] = Counter()
    for frame, count in _running(folded):
        counted[layer(frame)] += count
    return _parts(counted)


def layer(frame: str) -> str:
    """The package that a frame belongs to: `get (kvshard/client/keyspace.py:120)` to `kvshard/client`."""
    found = _PLACE.search(frame)
    if not found:
        return frame
    parts = [part for part in found[1].split("/") if part]
    for number in range(len(parts) - 2, -1, -1):  # From behind: the checkout's own folder may have such a name too.
        if parts[number] in OURS:
            return "/".join(parts[number : min(number + 2, len(parts) - 1)])
    for number in range(len(parts) - 1, 0, -1):
        if parts[number - 1] == "site-packages" or _PYTHON_FOLDER.fullmatch(parts[number - 1]):
            parts = parts[number:]
            break
    return parts[0].removesuffix(".py") if parts else frame
