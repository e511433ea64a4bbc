"""`python -m sim`: many seeds, or one again with its trace, or the planted bugs. See `make sim` and `make sim-mutants`."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

from sim import mutants
from sim.faults import FAULT
from sim.simulation import FAULTS_S, Result, run

SEEDS = 200
REPORTED = 5
"""Failures printed in full; one is enough to begin with, the others tell whether it is the same."""


def results(seeds: Iterable[int], faults_s: float, jobs: int) -> Iterator[Result]:
    """Run the seeds, in order of their end."""
    if jobs == 1:
        yield from (_run((seed, faults_s)) for seed in seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(_run, ((seed, faults_s) for seed in seeds), chunksize=4)


def _run(what: tuple[int, float]) -> Result:
    return run(what[0], faults_s=what[1])


def summary(count: int, counts: Counter[str], virtual_s: float, cpu_s: float, elapsed_s: float) -> str:
    """The figures of many runs."""
    reads = counts["reads at a primary"] + counts["reads at a secondary"]
    faults = {name.removeprefix(FAULT): number for name, number in counts.most_common() if name.startswith(FAULT)}
    lines = [
        f"{count:,} seeds, {virtual_s:,.0f} virtual seconds in {elapsed_s:,.1f} s ({cpu_s:,.1f} s of processor time): "
        f"{virtual_s / max(cpu_s, 1e-9):.1f} x real time on one core",
        f"{counts['commits']:,} commits, {counts['answers']:,} writes answered, {reads:,} strong reads "
        f"({counts['reads at a secondary'] / max(reads, 1):.0%} at secondaries), {counts['stale reads']:,} stale reads, "
        f"{counts['operations']:,} operations in histories, {counts['unknown']:,} calls given up",
        f"{counts['primary changes']:,} changes of a primary, {counts['evictions']:,} evictions, {counts['taken in sync']:,} "
        f"learners taken in sync, {counts['snapshots']:,} snapshots, {counts['truncated']:,} entries truncated, "
        f"{counts['moves']:,} moves",
        f"{counts['splits wanted']:,} splits of shards wanted, {counts['splits committed']:,} in the log, "
        f"{counts['splits finished']:,} in the map; {counts['moved']:,} requests met a key that had moved, "
        f"{counts['parted']:,} writes went on in two shards",
        f"{sum(faults.values()):,} faults: " + ", ".join(f"{number:,} {name}" for name, number in faults.items()),
        f"healing {counts['healing ms'] / max(count, 1):.0f} ms on average, {counts['undecided keys']} histories undecided",
        f"{counts['acknowledged writes']:,} acknowledged writes looked for in the end, lost: {counts['lost writes']}",
    ]
    return "\n".join(lines)


def many(first: int, count: int, faults_s: float, jobs: int) -> int:
    """Run seeds and print the figures; 1 when any failed."""
    counts: Counter[str] = Counter()
    rules: Counter[str] = Counter()
    virtual_s = cpu_s = 0.0
    begun = time.perf_counter()
    for done, result in enumerate(results(range(first, first + count), faults_s, jobs), 1):
        counts += result.counts
        virtual_s += result.virtual_s
        cpu_s += result.cpu_s
        if result.error:
            rules[result.rule] += 1
            if rules.total() <= REPORTED:
                print(f"FAILED {result.error}\nagain: make sim SEED={result.seed}\n", flush=True)
        if done % 500 == 0:
            print(f"  {done:,} seeds, {rules.total()} failed", flush=True)
    print(summary(count, counts, virtual_s, cpu_s, time.perf_counter() - begun))
    print(f"{rules.total()} of {count:,} seeds failed {dict(rules) if rules else ''}")
    return 1 if rules else 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="only this one, with the end of its trace")
    parser.add_argument("--lines", type=int, default=200, help="of the trace")
    parser.add_argument("--seconds", type=float, default=FAULTS_S, help="virtual seconds with faults")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--mutants", action="store_true", help="plant one bug at a time and count the seeds until it is caught")
    parser.add_argument("--only", default="", help="with --mutants: those whose name contains this")
    given = parser.parse_args()
    if given.mutants:
        return mutants.report(given.seeds, given.only, given.jobs)
    if given.seed is not None:
        result = run(given.seed, faults_s=given.seconds, trace_lines=given.lines)
        print(result.error or f"seed {given.seed} is good: {result.virtual_s:.1f} virtual seconds, {dict(result.counts)}")
        return 1 if result.error else 0
    return many(given.first, given.seeds, given.seconds, given.jobs)


if __name__ == "__main__":
    sys.exit(main())
