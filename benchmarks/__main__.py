"""Run the benchmarks: `python -m benchmarks` or `make bench`. Exits 1 when a bound is not kept."""

import pathlib
import sys

import uvloop

from benchmarks import bookkeeping, foundation
from benchmarks.figures import show
from benchmarks.processes import cluster, echo


def main() -> int:
    """Measure on a cluster of its own; print and write the figures."""
    figures = uvloop.run(bookkeeping.bookkeeping())
    with echo() as echo_address, cluster() as running:
        figures += uvloop.run(foundation.run(running, echo_address))
    return 0 if show(figures, pathlib.Path("bench-results/foundation.json")) else 1


if __name__ == "__main__":
    sys.exit(main())
