"""Waiting for the cluster to do what it was told, and what a refusal means to a script."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvshard.cli.console import EXIT_NOT_FOUND, explain
from kvshard.errors import DeadlineExceeded, FailedPrecondition

if TYPE_CHECKING:
    from kvshard.client.client import Client
    from kvshard.client.status import ClusterStatus

LOOK_INTERVAL_S = 0.3
"""Between two looks at the status: soon enough for a person, and a status costs each leaf well under a millisecond."""

MAX_WAIT_S = 3600.0
"""An hour: larger moves are watched with `kvshard status`."""


async def wait_until(
    kv: "Client[bytes]", what_is_left: "Callable[[ClusterStatus], str | None]", what: str, max_wait_s: float
) -> None:
    """Return when nothing is left. Shows on a terminal what is. Raises DeadlineExceeded after max_wait_s seconds."""
    import asyncio

    from kvshard.clock import SystemClock

    clock = SystemClock()
    deadline = clock.monotonic() + max_wait_s
    shown = ""
    while (left := what_is_left(await kv.status())) is not None:
        if clock.monotonic() >= deadline:
            raise DeadlineExceeded(f"waited {max_wait_s:g} s for {what}: {left}; it goes on all the same")
        if left != shown and sys.stderr.isatty():
            print(f"  {left}", file=sys.stderr)
            shown = left
        await asyncio.sleep(LOOK_INTERVAL_S)


def refused_is_conflict(run: Callable[[], int]) -> int:
    """Run a verb; a cluster whose state forbids what was asked for is a conflict (exit code 1), not an outage."""
    try:
        return run()
    except FailedPrecondition as error:
        explain(error)
        return EXIT_NOT_FOUND
