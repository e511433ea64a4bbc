"""Run the benchmarks, each part in a process of its own: `python -m benchmarks`, `make bench`.

Exits 1 when a bound is not kept or a part has failed; the other parts are measured all the same.
"""

import argparse
import os
import subprocess
import sys
import time

PARTS = {
    "foundation": ("benchmarks.foundation", "what an idle cluster takes, batches and searches on three replicas, a leg's cost"),
    "fast-path": ("benchmarks.fast_path", "single operations and batches beside redis, twemproxy, etcd and a bare echo"),
    "router-path": ("benchmarks.router_path", "what requests and their legs cost the router in Python, without a wire"),
    "ycsb": ("benchmarks.ycsb", "the YCSB core workloads A to F against kvshard, redis and etcd"),
    "leaf-footprint": ("benchmarks.leaf_footprint", "disk and memory of a leaf with a million keys"),
    "leaf-path": ("benchmarks.leaf_path", "processor time of reads and writes at a leaf, without transport"),
    "leg-scaling": ("benchmarks.leg_scaling", "what a leg of a search costs the router as shards grow from 4 to 64"),
    "search": ("benchmarks.search", "ranking, cost, freshness and isolation of searches over 100,000 texts, beside one index"),
    "scan-memory": ("benchmarks.scan_memory", "memory and rate of scans through the router"),
}
"""A module each, which prints its figures, writes them to bench-results and exits 1 when a bound is not kept."""

PART_TIMEOUT_S = 600.0
"""Of one part: twice what the longest takes on two cores. All together take less than 15 minutes."""

_ENVIRONMENT = {"GRPC_ENABLE_FORK_SUPPORT": "false"}
"""The parts start programs and never fork on: gRPC need not watch out for that, nor say that it cannot."""


def run_part(name: str) -> bool:
    """Run one part; whether it kept its bounds."""
    module, title = PARTS[name]
    print(f"== {name}: {title}", flush=True)
    began = time.monotonic()
    try:
        ran = subprocess.run(
            [sys.executable, "-m", module], env={**os.environ, **_ENVIRONMENT}, timeout=PART_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        print(f"{name} took longer than {PART_TIMEOUT_S:g} s and was ended")
        return False
    print(f"{name} took {time.monotonic() - began:.0f} s, exit {ran.returncode}", flush=True)
    return ran.returncode == 0


def main() -> int:
    """Run what the command line names, all of it if it names nothing."""
    listed = "; ".join(f"{name}: {title}" for name, (_, title) in PARTS.items())
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, epilog=listed)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"which of {', '.join(PARTS)}; default: all")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    kept = [run_part(name) for name in options.parts or PARTS]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
