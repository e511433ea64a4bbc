"""`python -m router` as a process: exit codes, one clear line, a clean stop."""

import pathlib
import signal
import socket
import subprocess
import sys

import pytest


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "router", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and stderr; nothing was printed to stdout."""
    out, err = process.communicate(timeout=20)
    assert out == ""
    return process.returncode, err


@pytest.fixture
def coordinator(tmp_path: pathlib.Path) -> str:
    return f"sqlite://{tmp_path}/coordinator.db"


def test_port_in_use(coordinator: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, err = finish(start("--coordinator", coordinator, "--listen", address))
    assert code == 3
    assert err.count("\n") == 1
    assert address in err
    assert "in use" in err


def test_metrics_port_in_use(coordinator: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, err = finish(start("--coordinator", coordinator, "--listen", "127.0.0.1:0", "--metrics-port", port))
    assert code == 3
    assert port in err.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--coordinator", "http://somewhere"),
        ("--listen", "127.0.0.1:0"),
        ("--unknown",),
        ("--coordinator", "sqlite:///nowhere/coordinator.db", "--hedge-budget", "60%"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    code, err = finish(start(*arguments))
    assert code == 2
    assert err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_while_it_waits_for_a_cluster(tmp_path: pathlib.Path, number: signal.Signals) -> None:
    process = start("--coordinator", f"sqlite://{tmp_path}/absent/coordinator.db", "--listen", "127.0.0.1:0")
    assert process.stderr is not None
    assert "coordinator unavailable" in process.stderr.readline()
    process.send_signal(number)
    code, _ = finish(process)
    assert code == 0
