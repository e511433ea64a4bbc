"""Planted bugs: each replaces one small piece of the replication, or of what the leaf does for it.

The simulator must catch every one. A mutant that survives says that the simulator is blind there: it is mended, not the list.
"""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from sim import mutants_machine, mutants_shell, mutants_splits
from sim.invariants import Oracle
from sim.planting import Plant, replace
from sim.simulation import run

MUTANTS: dict[str, Plant] = {**mutants_machine.MUTANTS, **mutants_shell.MUTANTS, **mutants_splits.MUTANTS}

CLASSIC = (
    "reply before all acks",
    "read lease granted while the eviction is under way",
    "no lease asked of a learner whose adding is under way",
    "no lease asked of a learner whose adding is under way by a sole primary",
    "no new grace after a restart",
    "read lease granted by a primary that has none",
    "commit before the eviction is confirmed",
    "read lease counted from receipt",
    "no read lease check",
    "dirty read",
    "takeover without barrier",
    "serves before the grace is over",
    "truncates below committed",
    "learner taken in before its acks count",
    "dedup not in the snapshot",
    "dedup expired by local clock",
    "wiped disk trusted",
    "epoch not persisted",
    "ambiguous compare-and-set taken as failed",
    "applied before committed",
    "split at different seqnos",
)
"""The mistakes that the rules of the design exist to prevent. They come first in the table, and none may be taken off."""


@dataclass(frozen=True, slots=True)
class Caught:
    """How a mutant ended. seeds: how many it took, 0 when it was not caught. cpu_s: seconds of processor time."""

    name: str
    seeds: int
    rule: str = ""
    error: str = ""
    cpu_s: float = 0.0


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """The bug is there within. What the machine checks of itself is not asked then: the oracle has to see it."""
    with contextlib.ExitStack() as stack:
        replace(stack, Oracle, "check_machine", lambda self, host: None)
        MUTANTS[name](stack)
        yield


def hunt(name: str, seeds: int, first: int = 0) -> Caught:
    """Run seeds with the bug until one catches it."""
    begun = time.process_time()
    with planted(name):
        for count in range(1, seeds + 1):
            result = run(first + count - 1)
            if result.error:
                return Caught(name, count, result.rule, result.error, time.process_time() - begun)
    return Caught(name, 0, cpu_s=time.process_time() - begun)


def report(seeds: int, only: str, jobs: int) -> int:
    """Hunt them all and print a table; 1 when one survives."""
    ordered = [*CLASSIC, *(name for name in MUTANTS if name not in CLASSIC)]
    names = [name for name in ordered if only in name]
    width = max(map(len, names), default=0)
    survivors = []
    with ProcessPoolExecutor(jobs) as pool:
        for caught in pool.map(hunt, names, [seeds] * len(names)):
            verdict = f"{caught.seeds:5} seeds" if caught.seeds else f"SURVIVED {seeds} seeds"
            print(f"{caught.name:{width}}  {verdict}  {caught.cpu_s:7.1f} s  {caught.rule}", flush=True)
            if only and caught.error:
                print(caught.error)
            if not caught.seeds:
                survivors.append(caught.name)
    print(f"{len(names) - len(survivors)} of {len(names)} planted bugs caught")
    return 1 if survivors else 0
