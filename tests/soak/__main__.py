"""Real processes under random faults and load: `make soak MINUTES=10`, `SEED=7` for the same schedule again.

Exits 1 when an acknowledged write was lost, a history cannot be explained, a caller got an error that a replica could have
spared it, or the cluster did not become whole again by itself.
"""

import argparse
import asyncio
import pathlib
import random
import sys
import tempfile
import time

from harness.faulty_cluster import FaultyCluster
from harness.workload import Workload
from soak.faults import MENU, Step, draw, may_mount, run
from soak.report import Report, Round

CALM_S = 1.0
"""Of load before a fault and after its mending."""

CALL_TIMEOUT_S = 15.0
"""Of a caller: longer than any fault of the menu with the failover and the restart after it."""

RESULT = pathlib.Path("bench-results/soak.json")


async def one_round(cluster: FaultyCluster, number: int, steps: tuple[Step, ...], report: Report) -> None:
    """Load, faults, mending, and the check of what the load saw."""
    names = ", ".join(f"{step.kind} {step.leaf} {step.seconds:.1f} s" for step in steps)
    load = await Workload(
        cluster.address, seed=report.seed * 10_000 + number, prefix=f"r{number}:", timeout_s=CALL_TIMEOUT_S
    ).start()
    try:
        await asyncio.sleep(CALM_S)
        await run(cluster, steps)
        whole_s = await cluster.mend()
        await asyncio.sleep(CALM_S)
        await load.finish()
    finally:
        await load.close()
    problems = await asyncio.to_thread(load.problems)
    done = Round(
        tuple(step.kind for step in steps),
        all(MENU[step.kind].is_masked for step in steps),
        len(load.writes_at) + len(load.reads_at) + load.counts["stale get"],
        load.counts["unknown"],
        dict(load.errors),
        load.gap_s(of_writes=True),
        load.gap_s(of_writes=False),
        whole_s,
        len(load.lost),
        problems,
    )
    report.rounds.append(done)
    report.ledger_keys += len(load.ledger.acked)
    print(
        f"{number:4}  {names}: {done.calls:,} calls, gap of writes {done.write_gap_s:.2f} s, of reads {done.read_gap_s:.2f} s, "
        f"whole again after {whole_s:.2f} s{f', errors {done.errors} {dict(load.samples)}' if done.errors else ''}",
        flush=True,
    )
    for problem in problems:
        print(f"      {problem}", flush=True)


async def soak(seed: int, minutes: float, folder: pathlib.Path) -> Report:
    """Rounds of faults until the time is over; stops at the first one from which the cluster does not come back."""
    report, rng, began = Report(seed), random.Random(seed), time.monotonic()
    has_mount = may_mount()
    if not has_mount:
        print("no rights to mount a small disk here: no full disk in the menu, so a seed means another schedule", flush=True)
    cluster = FaultyCluster(folder)
    try:
        await cluster.start()
        number = 0
        while time.monotonic() - began < 60 * minutes:
            number += 1
            await one_round(cluster, number, draw(rng, cluster.names, may_mount=has_mount), report)
    except (RuntimeError, TimeoutError) as error:
        report.broken = f"round {len(report.rounds) + 1}: {error}"
    finally:
        await cluster.close()
        report.seconds = time.monotonic() - began
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="of the schedule; drawn if absent")
    parser.add_argument("--keep", type=pathlib.Path, default=None, help="folder for data and logs, kept; else a temporary one")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}, {options.minutes:g} minutes", flush=True)
    with tempfile.TemporaryDirectory(prefix="kvshard-soak-") as temporary:
        folder = options.keep or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(soak(seed, options.minutes, folder))
    report.show(RESULT)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
