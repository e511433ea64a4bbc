"""`kvshard demo`: a cluster, real texts, searches, and what slow leaves do to latency. Needs no files and no network.

May live here: the flags of the verb, and its temporary directory. What it does is `demo_steps.py`.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from kvshard.cli.console import EXIT_INTERRUPTED
from kvshard.errors import KvShardError

DOCUMENTS = 22_000
"""Texts loaded by default: over 20,000, and few enough that parsing and indexing them take well under a minute on two cores."""

ROUNDS = 1_000
"""Searches measured per fan-out: ten samples lie beyond a p99 of a thousand."""

SECONDS = 72.0
"""Of reads beside slow leaves: four turns, which give each row of the table about 500 searches."""


def register(app: App) -> None:
    """Add the verb to the command line."""
    app.command(demo)


def demo(
    *,
    keep: Annotated[bool, Parameter(negative="")] = False,
    documents: int = DOCUMENTS,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    port: int = 0,
    data_dir: Path | None = None,
    svg_file: Path | None = None,
    verbose: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Show what kvshard does: start a cluster, load this Python's documentation, search it, make leaves slow. Under 3 minutes.

    Parameters
    ----------
    keep
        Leave the cluster running afterwards, until Ctrl-C.
    documents
        Texts to load, at most.
    rounds
        Searches to measure per fan-out.
    seconds
        How long to measure searches and batches beside slow leaves, with and without the defences.
    port
        Port of the router; 0 takes a free one.
    data_dir
        Where to keep the data. A temporary directory, removed at the end, when absent.
    svg_file
        Write the picture of the latency beside slow leaves to this file too.
    verbose
        Show the logs of all processes.
    """
    import asyncio

    from rich.console import Console

    from kvshard.cli.demo_steps import Demo, Scale
    from kvshard.cli.foreground import with_cluster
    from kvshard.cli.run import echo_line, explain_failure, report_line
    from kvshard.clock import SystemClock
    from kvshard.local_cluster import ClusterPlan, LocalCluster
    from kvshard.supervisor import StartFailed
    from kvshard.telemetry import configure_logging

    configure_logging("warning")
    directory = Path(tempfile.mkdtemp(prefix="kvshard-demo-")) if data_dir is None else data_dir
    try:
        plan = ClusterPlan(directory, port=port, are_faults_allowed=True)
        cluster = LocalCluster(plan, SystemClock(), report_line, echo_line if verbose else None)
        show = Demo(Console(), cluster, Scale(max(1, documents), max(1, rounds), seconds), svg_file)
        return asyncio.run(with_cluster(cluster, lambda: show.run(keep), interrupted=EXIT_INTERRUPTED))
    except (KvShardError, StartFailed) as error:
        return explain_failure(error)
    finally:
        if data_dir is None:
            shutil.rmtree(directory, ignore_errors=True)
