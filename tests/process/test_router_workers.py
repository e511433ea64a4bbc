"""Several router processes on one port: `kvshard up --workers` and `python -m router --workers`, and what their deaths do."""

import asyncio
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest
from harness.cluster import UpProcess, children_of, free_port, is_alive, running_cluster, wait_until

from kvshard import Client, ClusterStatus, KvShardError

READY_S = 30.0
"""Far beyond a start; other tests may hold the cores."""


@pytest.fixture(scope="module")
def metrics_port() -> int:
    """Of the first worker; the next one's is the port after it, and after that the leaf's."""
    return free_port() % 20_000 + 20_000


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, metrics_port: int) -> Iterator[UpProcess]:
    """A cluster with two workers and one leaf."""
    small = ("--leaves", "1", "--shards", "2", "--workers", "2", "--metrics-port", str(metrics_port))
    with running_cluster(tmp_path_factory.mktemp("workers") / "data", small) as up:
        yield up


def metrics_of(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        return page.read()


async def status_of(address: str) -> ClusterStatus:
    async with Client(address) as kv:
        return await kv.status()


async def until_all_are_up(address: str) -> ClusterStatus:
    """The status when every worker answers again."""
    async with asyncio.timeout(READY_S):
        while True:
            with contextlib.suppress(KvShardError):
                found = await status_of(address)
                if all(worker.is_up for worker in found.workers):
                    return found
            await asyncio.sleep(0.05)


async def test_both_serve_one_port_and_are_told_apart(up: UpProcess, metrics_port: int) -> None:
    assert len(up.pids("router")) == 2
    workers = (await status_of(up.address)).workers
    assert [worker.worker for worker in workers] == ["router-1", "router-2"]
    assert {worker.pid for worker in workers} == set(up.pids("router"))
    assert [worker.metrics_port for worker in workers] == [metrics_port, metrics_port + 1]
    for port, name in ((metrics_port, b"router"), (metrics_port + 1, b"router"), (metrics_port + 2, b"leaf")):
        assert b"kvshard_%s_requests_total" % name in metrics_of(port)
    assert {"router-1.log", "router-2.log"} <= {path.name for path in (up.data_dir / "logs").iterdir()}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_worker_that_ends_comes_back_to_its_places_while_the_other_serves(up: UpProcess, number: int) -> None:
    """SIGTERM is how one worker is restarted in order."""
    before = (await status_of(up.address)).workers
    victim, other = before
    async with Client(other.address) as beside, Client(up.address, timeout=READY_S) as kv:
        await beside.put("k", b"v")
        os.kill(victim.pid, number)
        assert (await beside.get("k")).value == b"v", "its sibling never stops"
        assert (await kv.get("k")).value == b"v", "and whoever comes by the shared port gets an answer"
    wait_until(lambda: victim.pid not in up.pids("router"), READY_S, "the worker is gone")
    after = (await until_all_are_up(up.address)).workers
    assert [worker.address for worker in after] == [worker.address for worker in before]
    assert after[0].pid != victim.pid
    assert after[1].pid == other.pid
    how = "was killed by SIGKILL" if number == signal.SIGKILL else "exited with code 0"
    assert f"router-1 {how}; starting it again" in up.errors.read_text()


async def test_a_stopped_worker_is_named_in_the_status(up: UpProcess) -> None:
    victim, other = (await status_of(up.address)).workers
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        found = (await status_of(other.address)).workers
    finally:
        os.kill(victim.pid, signal.SIGCONT)
    assert [worker.is_up for worker in found] == [False, True]
    assert "in time" in found[0].error or "DEADLINE" in found[0].error.upper()


def router(coordinator: str, *flags: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "router", "--coordinator", coordinator, "--log-json", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextlib.contextmanager
def running_router(up: UpProcess) -> "Iterator[tuple[subprocess.Popen[str], str]]":
    """`python -m router --workers 2` beside that of the cluster, and its address."""
    process = router(f"sqlite://{up.data_dir / 'coordinator.db'}", "--workers", "2", "--listen", "127.0.0.1:0")
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready: "), process.communicate()[1]
        yield process, line.removeprefix("ready: ").strip()
    finally:
        process.kill()
        process.communicate()


async def test_the_module_runs_and_restarts_workers_and_stops_in_order(up: UpProcess) -> None:
    with running_router(up) as (process, address):
        workers = (await status_of(address)).workers
        assert {worker.pid for worker in workers} == set(children_of(process.pid))
        os.kill(workers[1].pid, signal.SIGKILL)
        wait_until(lambda: workers[1].pid not in children_of(process.pid), READY_S, "the killed worker is gone")
        again = (await until_all_are_up(address)).workers
        assert again[0].pid == workers[0].pid
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=10)
        assert process.returncode == 0
        assert not any(is_alive(worker.pid) for worker in again)
    assert '"worker": "router-1"' in said
    assert '"worker": "router-2"' in said
    assert "router-2 was killed by SIGKILL; starting it again" in said
    assert all(line.startswith("{") for line in said.splitlines()), "a line that is no JSON"


def test_no_worker_outlives_the_process_that_runs_them(up: UpProcess) -> None:
    with running_router(up) as (process, _):
        workers = children_of(process.pid)
        assert len(workers) == 2
        process.kill()
        wait_until(lambda: not any(map(is_alive, workers)), 8.0, "the workers are gone")


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (("--workers", "0"), 2, "--workers must be between 1 and 64, not 0"),
        (("--workers", "2", "--hedge", "soon"), 2, "not a hedging policy: 'soon'"),
        (("--workers", "2", "--listen", "nowhere"), 3, "not an address to listen on"),
        (("--worker", "2"), 2, "--worker must be between 1 and 1, not 2"),
    ],
)
def test_what_is_refused(flags: tuple[str, ...], code: int, text: str, tmp_path: pathlib.Path) -> None:
    process = router(f"sqlite://{tmp_path}/coordinator.db", *flags)
    out, said = process.communicate(timeout=READY_S)
    assert (process.returncode, out) == (code, "")
    assert text in said
    assert "Traceback" not in said


def test_a_port_in_use_is_refused(up: UpProcess) -> None:
    process = router(f"sqlite://{up.data_dir / 'coordinator.db'}", "--workers", "2", "--listen", up.address)
    _, said = process.communicate(timeout=READY_S)
    assert process.returncode == 3
    assert f"port {up.port} on 127.0.0.1 is in use" in said
