"""Who uses the processors: the cluster, the load client itself, and whoever else is on the machine.

A load client that is short of processor time measures itself; other people's work makes stragglers that nobody injected. Both
are measured all along and stand in the report.
"""

import os
import time
from collections.abc import Mapping, Sequence

import psutil

from loadtests.usage import Usage


class CpuMeter:
    """Measures between `start` and `stop`."""

    def __init__(self, leaves: Sequence[int], routers: Sequence[int]) -> None:
        self._groups: Mapping[str, Sequence[psutil.Process]] = {
            "leaves": [psutil.Process(pid) for pid in leaves],
            "router": [psutil.Process(pid) for pid in routers],
            "client": [psutil.Process(os.getpid())],
        }
        self._cores = psutil.cpu_count() or 1
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self._at = time.monotonic()
        self._busy = self._used()
        self._machine = self._machine_busy()

    def stop(self) -> Usage:
        """What was used since the start."""
        seconds = max(1e-9, time.monotonic() - self._at)
        used = {name: value - self._busy[name] for name, value in self._used().items()}
        whole = seconds * self._cores
        machine = self._machine_busy() - self._machine
        return Usage(
            seconds=seconds,
            leaves=used["leaves"] / whole,
            router=used["router"] / whole,
            client=used["client"] / whole,
            others=max(0.0, machine - sum(used.values())) / whole,
            client_core=used["client"] / seconds,
            cluster_s=used["leaves"] + used["router"],
            leaves_s=used["leaves"],
        )

    def _used(self) -> dict[str, float]:
        totals = {}
        for name, processes in self._groups.items():
            times = [process.cpu_times() for process in processes]
            totals[name] = sum(each.user + each.system for each in times)
        return totals

    @staticmethod
    def _machine_busy() -> float:
        times = psutil.cpu_times()
        # Linux counts guests' time into user's already; waiting for a disk and stolen time are not work of this machine.
        return float(times.user + times.nice + times.system + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0))
