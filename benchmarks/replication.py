"""The figures of replication: `python -m benchmarks.replication`, `make bench-replication`. Exits 1 if a bound is not kept."""

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Sequence

import uvloop

from benchmarks import catch_up, failover, replicas
from benchmarks.figures import Figure, show
from benchmarks.fleet import Fleet

PARTS = ("kills", "repeated", "replicas", "catch-up")
KILLS = 20
"""Enough for a first look at a p95; KILLS=200 for the figure that counts."""


async def measure(folder: pathlib.Path, parts: Sequence[str], kills: int) -> list[Figure]:
    """The figures of these parts, each on clusters of its own."""
    figures: list[Figure] = []
    for part in parts:
        home = folder / part
        home.mkdir()
        if part == "kills":
            async with Fleet(home) as fleet:
                figures += await failover.kills(fleet, kills)
        elif part == "repeated":
            async with Fleet(home, shards=1) as fleet:  # So that every write meets every failover.
                figures += await failover.repeated_writes(fleet)
        elif part == "replicas":
            figures += await replicas.compare(home)
        else:
            figures += await catch_up.catch_up(home)
    return figures


def main() -> int:
    """Measure on clusters of its own; print and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replication", description=__doc__)
    parser.add_argument("--kills", type=int, default=KILLS, metavar="N", help="how often a primary is killed")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"which of {', '.join(PARTS)}; default: all")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="kvshard-bench-") as folder:
        figures = uvloop.run(measure(pathlib.Path(folder), options.parts or PARTS, options.kills))
    return 0 if show(figures, pathlib.Path("bench-results/replication.json")) else 1


if __name__ == "__main__":
    sys.exit(main())
