"""`python -m sim.tail`: many seeds of the tail's simulation, one again, or its planted bugs. See `make sim-tail`."""

import argparse
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from sim.tail import mutants
from sim.tail.simulation import run

SEEDS = 200


def many(first: int, count: int, jobs: int) -> int:
    """Run seeds and print the figures; 1 when any failed."""
    counts: Counter[str] = Counter()
    failed, cpu_s = 0, 0.0
    with ProcessPoolExecutor(jobs) as pool:
        for result in pool.map(run, range(first, first + count), chunksize=2):
            counts += result.counts
            cpu_s += result.cpu_s
            if result.error:
                failed += 1
                print(f"FAILED {result.error}\nagain: make sim-tail SEED={result.seed}", flush=True)
    for name, number in sorted(counts.items()):
        print(f"{number:12,} {name}")
    print(f"{failed} of {count:,} seeds failed, {cpu_s:.1f} s of processor time")
    return 1 if failed else 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m sim.tail", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--mutants", action="store_true", help="plant one bug at a time and count the seeds until it is caught")
    parser.add_argument("--only", default="", help="with --mutants: those whose name contains this")
    given = parser.parse_args()
    if given.mutants:
        return mutants.report(given.seeds, given.only, given.jobs)
    if given.seed is not None:
        result = run(given.seed)
        print(result.error or f"seed {given.seed} is good: {dict(result.counts)}")
        return 1 if result.error else 0
    return many(given.first, given.seeds, given.jobs)


if __name__ == "__main__":
    sys.exit(main())
