"""Processor time and memory of a benchmark's processes, read from /proc; this process counts the children it waited for."""

import os
import pathlib
import resource
import time
from collections.abc import Mapping, Sequence

from benchmarks.measured import CLIENT, Usage

PROC = pathlib.Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_IDLE_COLUMNS = (3, 4)
"""Of the machine's line in /proc/stat: idle, and waiting for a disk."""

_GUEST_COLUMNS = 8
"""From here on what the kernel has counted as user time already."""


def process_seconds(pid: int) -> float:
    """Processor seconds of a process since its start, threads that have ended too. Raises OSError when there is none."""
    # The name of a program may hold blanks and parentheses: only what follows its last one is columns.
    columns = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(columns[11]) + int(columns[12])) / _TICKS_PER_S


def own_seconds() -> float:
    """Of this process and of the children that it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def machine_seconds() -> float:
    """Processor seconds that the whole machine has been busy since it started."""
    columns = [int(each) for each in (PROC / "stat").read_text().split("\n", 1)[0].split()[1:]][:_GUEST_COLUMNS]
    return (sum(columns) - sum(columns[column] for column in _IDLE_COLUMNS)) / _TICKS_PER_S


def peak_resident_bytes(pid: int) -> int:
    """The most memory that a process has had resident so far. Raises OSError when there is none."""
    for line in (PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"the kernel does not tell the peak of process {pid}")


class ProcessorMeter:
    """Measures the processes of an arm between `start` and `stop`; this process is the client."""

    def __init__(self, processes: Mapping[str, Sequence[int]]) -> None:
        self._processes = processes
        self._at = 0.0
        self._used: dict[str, float] = {}
        self._machine = 0.0

    def start(self) -> None:
        """Begin anew."""
        self._used, self._machine, self._at = self._by_role(), machine_seconds(), time.perf_counter()

    def stop(self) -> Usage:
        """What was used since the start."""
        seconds = time.perf_counter() - self._at
        used = {role: value - self._used[role] for role, value in self._by_role().items()}
        others = machine_seconds() - self._machine - sum(used.values())
        return Usage(seconds, used, max(0.0, others))

    def _by_role(self) -> dict[str, float]:
        roles = {role: sum(map(process_seconds, pids)) for role, pids in self._processes.items()}
        return {CLIENT: own_seconds(), **roles}
