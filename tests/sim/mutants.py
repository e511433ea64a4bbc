"""Planted bugs: each replaces one small piece of the replication, or of what the leaf does for it.

The simulator must catch every one. A mutant that survives says that the simulator is blind there: it is mended, not the list.
"""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from sim import mutants_machine, mutants_shell
from sim.planting import Plant
from sim.simulation import run

MUTANTS: dict[str, Plant] = {**mutants_machine.MUTANTS, **mutants_shell.MUTANTS}


@dataclass(frozen=True, slots=True)
class Caught:
    """How a mutant ended. seeds: how many it took, 0 when it was not caught."""

    name: str
    seeds: int
    rule: str = ""
    error: str = ""


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """The bug is there within."""
    with contextlib.ExitStack() as stack:
        MUTANTS[name](stack)
        yield


def hunt(name: str, seeds: int, first: int = 0) -> Caught:
    """Run seeds with the bug until one catches it."""
    with planted(name):
        for count in range(1, seeds + 1):
            result = run(first + count - 1)
            if result.error:
                return Caught(name, count, result.rule, result.error)
    return Caught(name, 0)


def report(seeds: int, only: str, jobs: int) -> int:
    """Hunt them all and print a table; 1 when one survives."""
    names = [name for name in MUTANTS if only in name]
    width = max(map(len, names), default=0)
    survivors = []
    with ProcessPoolExecutor(jobs) as pool:
        for caught in pool.map(hunt, names, [seeds] * len(names)):
            verdict = f"{caught.seeds:5} seeds  {caught.rule}" if caught.seeds else f"SURVIVED {seeds} seeds"
            print(f"{caught.name:{width}}  {verdict}", flush=True)
            if only and caught.error:
                print(caught.error)
            if not caught.seeds:
                survivors.append(caught.name)
    print(f"{len(names) - len(survivors)} of {len(names)} planted bugs caught")
    return 1 if survivors else 0
