"""How a planted bug is hunted: seed by seed until one catches it, and all of them side by side with a table."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol


class Outcome(Protocol):
    """What a simulation of one seed tells. rule: which was broken; error: how, empty when none was."""

    rule: str
    error: str


@dataclass(frozen=True, slots=True)
class Caught:
    """How a mutant ended. seeds: how many it took, 0 when it was not caught. cpu_s: seconds of processor time."""

    name: str
    seeds: int
    rule: str = ""
    error: str = ""
    cpu_s: float = 0.0


def hunt_one(
    name: str,
    planted: Callable[[str], AbstractContextManager[None]],
    run: Callable[[int], Outcome],
    seeds: int,
    first: int,
) -> Caught:
    """Run seeds with the bug until one catches it."""
    begun = time.process_time()
    with planted(name):
        for count in range(1, seeds + 1):
            result = run(first + count - 1)
            if result.error:
                return Caught(name, count, result.rule, result.error, time.process_time() - begun)
    return Caught(name, 0, cpu_s=time.process_time() - begun)


def hunt_all(names: Sequence[str], hunt: Callable[[str, int], Caught], seeds: int, is_detailed: bool, jobs: int) -> int:
    """Hunt them all and print a table, with the errors if detailed; 1 when one survives."""
    width = max(map(len, names), default=0)
    survivors = 0
    with ProcessPoolExecutor(jobs) as pool:
        for caught in pool.map(hunt, names, [seeds] * len(names)):
            verdict = f"{caught.seeds:5} seeds" if caught.seeds else f"SURVIVED {seeds} seeds"
            print(f"{caught.name:{width}}  {verdict}  {caught.cpu_s:7.1f} s  {caught.rule}", flush=True)
            if is_detailed and caught.error:
                print(caught.error)
            survivors += not caught.seeds
    print(f"{len(names) - survivors} of {len(names)} planted bugs caught")
    return 1 if survivors else 0
