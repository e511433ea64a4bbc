"""Locust's users against a real cluster, headless, with workers: exact latencies come together at the master."""

import asyncio
import importlib.util
import pathlib
import re
import sys

import pytest

from benchmarks.fleet import Fleet

LOCUSTFILE = pathlib.Path(__file__).parents[2] / "loadtests" / "locustfile.py"
TIMEOUT_S = 90.0

# Not pytest.importorskip: importing locust lets gevent patch the whole process, and with it every other test.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("locust") is None, reason="run with the load extra: make locust installs it"
)


async def test_workers_send_open_loop_and_their_latencies_are_merged(tmp_path):
    async with Fleet(tmp_path, leaves=2, shards=2, replicas=2) as fleet:
        command = [
            sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", fleet.address, "--headless", "--processes", "2",
            "--users", "4", "--spawn-rate", "4", "--run-time", "4s", "--rate", "25", "--only-summary", "PointReads", "Writes",
        ]  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=LOCUSTFILE.parents[1]
        )
        try:
            out, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    text = out.decode()
    assert process.returncode == 0, text
    counts = {name: int(n) for name, n in re.findall(r"│ (point read|write)\s+│ (\d+)", text)}
    assert set(counts) == {"point read", "write"}, text
    # Two users of each at 25 a second; the four seconds hold the start too.
    assert all(60 <= count <= 260 for count in counts.values()), text
    assert "sent late by the workers" in text
