"""Running a cluster in the foreground until somebody says stop.

May live here: what signals mean to `kvshard up` and `kvshard demo`.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable

from kvshard.local_cluster import LocalCluster

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a service manager, and a terminal that was closed."""


async def with_cluster(cluster: LocalCluster, work: Callable[[], Awaitable[int]], interrupted: int) -> int:
    """Do the work, stop the cluster in any case, return the work's exit code, or `interrupted` after a stop signal.

    The first signal gives up the work and stops the processes one after the other; a second one kills what is left of them.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            task.cancel()
        else:
            cluster.kill()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        async with cluster:
            return await work()
    except asyncio.CancelledError:
        if not signals:
            raise
        return interrupted
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
