"""`kvshard up`, `kvshard router run` and `kvshard leaf run`: the verbs that run processes.

May live here: their flags, messages and exit codes. The cluster itself is `kvshard/local_cluster.py`.
"""

import asyncio
import runpy
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from kvshard.cli.console import EXIT_UNAVAILABLE, complain, exit_code_of, explain
from kvshard.errors import KvShardError
from kvshard.limits import FAILURE_TIMEOUT_S, HEAL_AFTER_S, REFRESH_INTERVAL_S

if TYPE_CHECKING:
    # Not at run time: these bring sqlite, grpc and the metrics with them, and `kvshard --help` must stay quick.
    from kvshard.local_cluster import LocalCluster
    from kvshard.supervisor import StartFailed


_GROUP_HELP = {
    "router": "Run one router by itself, for clusters over several machines.",
    "leaf": "Run one leaf by itself, drain it, remove it.",
}


def register(app: App) -> None:
    """Add the verbs to the command line."""
    app.command(up)
    for role in ("router", "leaf"):
        group = App(name=role, help=_GROUP_HELP[role])
        # No help flag of its own: `--help` belongs to the process and goes through to it.
        runner = App(
            name="run", help=f"Run a {role} in this process; the flags are those of `python -m {role}`.", help_flags=[]
        )
        runner.default(_runner(role))
        group.command(runner)
        app.command(group)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class RouterFlags:
    """How the router runs, and how it hedges reads that say nothing of it, of collections that say nothing.

    Parameters
    ----------
    workers
        Router processes that share the port; each connection is with one of them.
    hedge
        When to ask a spare replica too: "auto", "off", a delay as "10ms", a quantile as "p99", "min(p99,50ms)".
    hedge_budget
        Extra requests allowed, as a part of the first ones in every 10 s: "5%", at most 50%; 0 allows none; "auto" tunes it.
    hedge_attempts
        Attempts of a shard's part of a read at most, the first one included.
    """

    workers: int = 1
    hedge: str = "auto"
    hedge_budget: str = "auto"
    hedge_attempts: int = 3


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class LeafFlags:
    """How the leaves run.

    Parameters
    ----------
    heal_after
        Seconds that a leaf may be missing before what it held is made anew on other leaves.
    failure_timeout
        Seconds without a sign of a primary after which it is replaced.
    refresh_interval
        Seconds after which searches see a write at the latest.
    cache_mb
        Memory for each leaf's cache of keys, in MB; 0 for none; 64 if not given.
    """

    heal_after: float = HEAL_AFTER_S
    failure_timeout: float = FAILURE_TIMEOUT_S
    refresh_interval: float = REFRESH_INTERVAL_S
    cache_mb: int | None = None


_USUAL_ROUTER = RouterFlags()
_USUAL_LEAF = LeafFlags()


def up(
    *,
    leaves: int | None = None,
    shards: int | None = None,
    replicas: int | None = None,
    port: int = 7700,
    data_dir: Path = Path("kvshard-data"),
    metrics_port: int | None = None,
    coordinator: str | None = None,
    allow_faults: Annotated[bool, Parameter(negative="")] = False,
    log_json: Annotated[bool, Parameter(negative="")] = False,
    verbose: Annotated[bool, Parameter(negative="")] = False,
    router: RouterFlags = _USUAL_ROUTER,
    leaf: LeafFlags = _USUAL_LEAF,
) -> int:
    """Run a whole cluster on this machine, in the foreground; Ctrl-C stops it.

    Prints `ready: host:port` once the router and every leaf serve. An existing data directory is continued.

    Parameters
    ----------
    leaves
        Leaf processes; 3 for a new cluster.
    shards
        Shards; 8 for a new cluster.
    replicas
        Replicas of each shard; 3 for a new cluster, or as many as there are leaves.
    port
        Port of the router on 127.0.0.1; 0 takes a free one.
    data_dir
        Where the cluster keeps its data, its map and its logs.
    metrics_port
        Serve Prometheus metrics: the router on this port (each worker on one of its own), the leaves on those after it.
    coordinator
        Keep the cluster map in etcd (etcd://host:port,host:port) instead of the data directory.
    allow_faults
        Let `kvshard fault` make leaves slow, pause them and more, for tests.
    log_json
        Write logs as JSON lines.
    verbose
        Show the logs of all processes here too, not only in DATA_DIR/logs.
    """
    from kvshard.cli.foreground import with_cluster
    from kvshard.clock import SystemClock
    from kvshard.local_cluster import ClusterPlan, LocalCluster
    from kvshard.supervisor import StartFailed
    from kvshard.telemetry import configure_logging

    configure_logging("info" if verbose else "warning", as_json=log_json)
    try:
        places = (data_dir, leaves, shards, replicas, port, metrics_port, log_json, "info", coordinator)
        times = (leaf.heal_after, leaf.failure_timeout, leaf.refresh_interval)
        plan = ClusterPlan(*places, *times, allow_faults, **asdict(router), cache_mb=leaf.cache_mb)
        cluster = LocalCluster(plan, SystemClock(), report_line, echo_line if verbose else None)
        return asyncio.run(with_cluster(cluster, lambda: _serve(cluster), interrupted=0))
    except (KvShardError, StartFailed) as error:
        return explain_failure(error)


async def _serve(cluster: "LocalCluster") -> int:
    address = await cluster.start()
    print(f"ready: {address}", flush=True)
    if sys.stderr.isatty():
        print(usage_hint(address, cluster), file=sys.stderr)
    await asyncio.Event().wait()  # Until a signal cancels it.
    return 0


def usage_hint(address: str, cluster: "LocalCluster") -> str:
    """What to do with a running cluster."""
    router = "" if address == "127.0.0.1:7700" else f" --router {address}"
    return (
        f"{len(cluster.leaves)} leaves, {len(cluster.shards)} shards; data in {cluster.plan.data_dir}, "
        f"logs in {cluster.log_dir}\ntry, in another terminal:\n"
        f"  kvshard put greeting hello{router}\n"
        f"  kvshard get greeting{router}\n"
        f"  kvshard status{router}\n"
        "Ctrl-C stops the cluster; the data stays."
    )


def report_line(text: str) -> None:
    """What the supervisor has to say: a crash, a restart."""
    import structlog

    structlog.get_logger("supervisor").warning(text)


def echo_line(name: str, text: str) -> None:
    """A line of a process's log."""
    print(f"{name:<8} | {text}", file=sys.stderr, flush=True)


def explain_failure(error: "KvShardError | StartFailed") -> int:
    """Say on stderr why the cluster does not run; returns the exit code."""
    if isinstance(error, KvShardError):
        explain(error)
        return exit_code_of(error)
    complain(str(error))
    for line in error.tail:
        print(f"  {error.name}: {line}", file=sys.stderr)
    return EXIT_UNAVAILABLE


def _runner(module: str) -> Callable[..., None]:
    def run(*flags: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]) -> None:
        # By name and not by import: kvshard/ knows neither router nor leaf, and this is what `python -m` does.
        sys.argv = [f"kvshard {module} run", *flags]
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    return run
