"""Planted bugs: each replaces one small piece of the replication, or of what the leaf does for it.

The simulator must catch every one. A mutant that survives says that the simulator is blind there: it is mended, not the list.
"""

import contextlib
from collections.abc import Iterator

from sim import mutants_machine, mutants_shell, mutants_splits
from sim.hunting import Caught, hunt_all, hunt_one
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


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """The bug is there within. What the machine checks of itself is not asked then: the oracle has to see it."""
    with contextlib.ExitStack() as stack:
        replace(stack, Oracle, "check_machine", lambda self, host: None)
        MUTANTS[name](stack)
        yield


def hunt(name: str, seeds: int, first: int = 0) -> Caught:
    """Run seeds with the bug until one catches it."""
    return hunt_one(name, planted, run, seeds, first)


def report(seeds: int, only: str, jobs: int) -> int:
    """Hunt them all and print a table; 1 when one survives."""
    ordered = [*CLASSIC, *(name for name in MUTANTS if name not in CLASSIC)]
    return hunt_all([name for name in ordered if only in name], hunt, seeds, bool(only), jobs)
