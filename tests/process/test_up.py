"""`kvshard up` as its users run it: real router, real leaves, real signals."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvshard import Client, KvShardError

START_S = 30.0
"""Far beyond the promise of 6 s: other tests may hold the cores."""


@dataclass
class Up:
    """A running `kvshard up`."""

    process: subprocess.Popen
    address: str
    started_after_s: float

    def children(self) -> dict[str, int]:
        """The processes it supervises, by name."""
        found = {}
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if "-m" in words:
                module = words[words.index("-m") + 1]
                found[words[words.index("--id") + 1] if module == "leaf" else module] = int(pid)
        return found


def command(data_dir: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "kvshard.cli", "up", "--data-dir", str(data_dir), *flags]


def start_up(data_dir: Path, *flags: str) -> Up:
    began = time.monotonic()
    with (data_dir.parent / "up.stderr").open("ab") as errors:
        process = subprocess.Popen(command(data_dir, "--port", "0", *flags), stdout=subprocess.PIPE, stderr=errors, text=True)
    line = process.stdout.readline()
    assert line.startswith("ready: "), (data_dir.parent / "up.stderr").read_text()
    return Up(process, line.removeprefix("ready: ").strip(), time.monotonic() - began)


def refused(data_dir: Path, *flags: str) -> tuple[int, str]:
    done = subprocess.run(command(data_dir, *flags), capture_output=True, text=True, timeout=START_S, check=False)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, timeout: float = START_S) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.02)


def end(up: Up) -> None:
    if up.process.poll() is None:
        up.process.terminate()
        try:
            up.process.wait(10)
        except subprocess.TimeoutExpired:
            up.process.kill()
            up.process.wait()
    up.process.stdout.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """One cluster for the tests that leave it running."""
    data_dir = tmp_path_factory.mktemp("up") / "data"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        metrics_port = probe.getsockname()[1] % 20_000 + 20_000
    up = start_up(data_dir, "--metrics-port", str(metrics_port), "--log-json")
    yield up, data_dir, metrics_port
    end(up)


async def test_it_serves(cluster):
    up, data_dir, _ = cluster
    assert set(up.children()) == {"router", "leaf-1", "leaf-2", "leaf-3"}
    async with Client(up.address) as kv:
        await kv.put("greeting", b"hello")
        item = await kv.get("greeting")
    assert item.value == b"hello"
    assert {path.name for path in (data_dir / "logs").iterdir()} == {"router.log", "leaf-1.log", "leaf-2.log", "leaf-3.log"}


def test_a_second_up_on_the_directory_is_refused(cluster):
    up, data_dir, _ = cluster
    code, said = refused(data_dir, "--port", "0")
    assert (code, f"in use by process {up.process.pid}" in said) == (3, True), said


def test_a_port_in_use_is_refused_before_anything_starts(cluster, tmp_path):
    up, _, metrics_port = cluster
    port = up.address.rpartition(":")[2]
    code, said = refused(tmp_path / "other", "--port", port)
    assert (code, f"port {port} on 127.0.0.1 is in use" in said) == (3, True), said
    code, said = refused(tmp_path / "other", "--port", "0", "--metrics-port", str(metrics_port - 1))
    assert (code, f"port {metrics_port} on 127.0.0.1 is in use" in said) == (3, True), said
    assert not (tmp_path / "other" / "logs").exists(), "the supervisor was started"


def test_impossible_clusters_are_refused(tmp_path):
    code, said = refused(tmp_path / "data", "--leaves", "2", "--replicas", "3")
    assert (code, "--replicas must be between 1 and 2" in said) == (2, True), said
    assert list(tmp_path.iterdir()) == []


def test_a_data_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "data").touch()
    code, said = refused(tmp_path / "data")
    assert (code, "is not a directory" in said) == (2, True), said


@pytest.mark.parametrize("role", ["router", "leaf"])
def test_metrics_are_served_and_clean(cluster, role):
    _, _, port = cluster
    url = f"http://127.0.0.1:{port + (role == 'leaf')}/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        text = answer.read()
    assert f"kvshard_{role}_requests_total".encode() in text
    if shutil.which("promtool"):
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, b"")


async def test_killed_processes_come_back_with_every_acknowledged_write(cluster):
    up, data_dir, _ = cluster
    before = up.children()
    async with Client(up.address, timeout=START_S) as kv:
        acknowledged = {f"key-{number}": str(number).encode() for number in range(300)}
        (await kv.put_many(acknowledged)).raise_for_failures()
        os.kill(before["leaf-2"], signal.SIGKILL)
        os.kill(before["router"], signal.SIGKILL)
        wait_until(lambda: set(up.children()) == set(before) and up.children() != before)

        async def read_all():
            deadline = time.monotonic() + START_S
            while True:
                with contextlib.suppress(KvShardError):
                    found = await kv.get_many(list(acknowledged))
                    found.raise_for_failures()
                    return {item.key: item.value for item in found if item is not None}
                assert time.monotonic() < deadline

        assert await read_all() == acknowledged
    said = (data_dir.parent / "up.stderr").read_text()
    assert "leaf-2 was killed by SIGKILL; starting it again" in said
    assert "router is ready again" in said


async def test_killed_up_leaves_no_orphans_and_the_next_one_continues_and_stops_cleanly(tmp_path):
    data_dir = tmp_path / "data"
    up = start_up(data_dir, "--leaves", "2", "--shards", "4")
    async with Client(up.address) as kv:
        await kv.put("kept", b"value")
    children = up.children()
    assert set(children) == {"router", "leaf-1", "leaf-2"}
    # A stopped process cannot read the pipe that tells the others; it must go all the same.
    os.kill(children["leaf-1"], signal.SIGSTOP)
    up.process.kill()
    up.process.wait()
    wait_until(lambda: not any(is_alive(pid) for pid in children.values()), timeout=5)
    up.process.stdout.close()

    code, said = refused(data_dir, "--leaves", "3")
    assert (code, "holds a cluster with 2 leaves, not 3" in said) == (2, True), said

    again = start_up(data_dir)
    try:
        children = again.children()
        assert set(children) == {"router", "leaf-1", "leaf-2"}
        async with Client(again.address) as kv:
            assert (await kv.get("kept")).value == b"value"
        began = time.monotonic()
        again.process.send_signal(signal.SIGINT)
        assert again.process.wait(10) == 0
        assert time.monotonic() - began < 5
        assert not any(is_alive(pid) for pid in children.values())
    finally:
        end(again)


def test_a_process_that_cannot_start_is_explained(tmp_path):
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "leaf-1").write_text("a file where the leaf wants its folder")
    code, said = refused(data_dir, "--leaves", "1", "--shards", "1", "--port", "0")
    assert code == 3
    assert re.search(r"kvshard: leaf-1 exited with code \d", said), said
