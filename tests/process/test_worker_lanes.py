"""A router of several workers whose lanes lead to each of them: one that dies takes its lanes along, and nobody else's."""

import asyncio
import os
import pathlib
import signal

from harness.cluster import running_cluster
from harness.single_calls import CALLERS, single_calls

from kvshard import Client

SEED = 11


async def test_workers_that_die_and_pause_under_single_calls(tmp_path: pathlib.Path) -> None:
    with running_cluster(tmp_path / "data", ("--workers", "2")) as up:
        async with Client(up.address, lanes=4) as kv, single_calls([kv], seed=SEED, prefix="workers") as load:
            await load.progress(CALLERS)
            first, second = sorted(up.pids("router"))
            os.kill(first, signal.SIGKILL)
            await load.progress(2 * CALLERS)
            os.kill(second, signal.SIGSTOP)
            await asyncio.sleep(0.7)
            os.kill(second, signal.SIGCONT)
            await load.progress(CALLERS)
            assert first not in up.pids("router")
        assert not load.errors, f"errors though another worker could serve: {load!r}"
