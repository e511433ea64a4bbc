"""The supervisor with small real processes in the place of router and leaves: start, crash, stop, and its own sudden death."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from kvshard.clock import SystemClock
from kvshard.supervision import HASTY_STOP_SIGNAL
from kvshard.supervisor import ChildSpec, StartFailed, Supervisor

# A child as kvshard's own are: watches the supervisor, says ready, stops on SIGTERM.
WELL_BEHAVED = """
    import signal, sys, threading
    from kvshard.supervision import watch_supervisor
    over = threading.Event()
    assert watch_supervisor(over.set)
    signal.signal(signal.SIGTERM, lambda *_: (print("stopping", file=sys.stderr, flush=True), over.set()))
    print("ready: 127.0.0.1:" + sys.argv[sys.argv.index("--listen") + 1].rpartition(":")[2].replace("0", "4711"), flush=True)
    while not over.wait(0.02):
        pass
"""

# One that hangs in its stop, and does not even notice that the supervisor went away by itself.
STUBBORN = """
    import signal, time
    from kvshard.supervision import watch_supervisor
    watch_supervisor(lambda: time.sleep(60))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready: 127.0.0.1:1", flush=True)
    while True:
        time.sleep(1)
"""

BROKEN = """
    import sys
    sys.exit("no such disk")
"""


def command(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", textwrap.dedent(program), "--listen", "127.0.0.1:0")


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition, timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.01)


async def until(condition, timeout: float = 10.0) -> None:
    await asyncio.to_thread(wait_until, condition, timeout)


@pytest.fixture
async def supervise(tmp_path):
    made: list[Supervisor] = []
    reports: list[str] = []

    def make(*specs: ChildSpec, echo=None) -> tuple[Supervisor, list[str]]:
        made.append(Supervisor(specs, tmp_path / "logs", SystemClock(), reports.append, echo))
        return made[-1], reports

    yield make
    for supervisor in made:
        await supervisor.stop()


async def test_starts_all_and_stops_all(supervise, tmp_path):
    lines: list[tuple[str, str]] = []
    supervisor, reports = supervise(
        ChildSpec("router", command(WELL_BEHAVED), is_front=True),
        ChildSpec("leaf-1", command(WELL_BEHAVED)),
        echo=lambda name, line: lines.append((name, line)),
    )
    addresses = await supervisor.start()
    assert addresses == {"router": "127.0.0.1:4711", "leaf-1": "127.0.0.1:4711"}
    pids = supervisor.pids.values()
    assert len(pids) == 2
    assert all(os.getpgid(pid) == pid for pid in pids), "Ctrl-C in the terminal would reach the children"
    began = time.monotonic()
    await supervisor.stop()
    assert time.monotonic() - began < 2
    assert not any(is_alive(pid) for pid in pids)
    assert lines == [("router", "stopping"), ("leaf-1", "stopping")], "the router stops first"
    assert (tmp_path / "logs" / "leaf-1.log").read_text() == "stopping\n"
    assert reports == []
    await supervisor.stop()


async def test_a_killed_child_comes_back_at_its_address(supervise):
    supervisor, reports = supervise(ChildSpec("router", command(WELL_BEHAVED), keeps_address=True))
    await supervisor.start()
    first = supervisor.pids["router"]
    os.kill(first, signal.SIGKILL)
    await until(lambda: len(reports) == 2)
    assert reports == ["router was killed by SIGKILL; starting it again in 0.1 s", "router is ready again"]
    assert supervisor.pids["router"] != first
    assert supervisor.addresses == {"router": "127.0.0.1:4711"}


async def test_a_child_that_has_left_the_cluster_is_not_started_again(supervise):
    program = """
        import signal, sys, threading
        from kvshard.supervision import EXIT_DONE, HASTY_STOP_SIGNAL
        over = threading.Event()
        signal.signal(HASTY_STOP_SIGNAL, lambda *_: over.set())
        print("ready: 127.0.0.1:1", flush=True)
        over.wait()
        sys.exit(EXIT_DONE)
    """
    specs = [ChildSpec(name, command(program), stop_signal=HASTY_STOP_SIGNAL) for name in ("leaf-1", "leaf-2")]
    supervisor, reports = supervise(*specs)
    await supervisor.start()
    os.kill(supervisor.pids["leaf-1"], HASTY_STOP_SIGNAL)
    await until(lambda: reports)
    assert reports == ["leaf-1 has left the cluster"]
    assert set(supervisor.pids) == {"leaf-2"}
    began = time.monotonic()
    await supervisor.stop()
    assert time.monotonic() - began < 3.0, "leaf-2 was sent the signal that it waits for"
    assert supervisor.pids == {}


async def test_a_child_that_cannot_start_ends_the_start_with_its_own_words(supervise):
    supervisor, reports = supervise(ChildSpec("leaf-1", command(BROKEN)), ChildSpec("leaf-2", command(WELL_BEHAVED)))
    with pytest.raises(StartFailed) as failure:
        await supervisor.start()
    assert str(failure.value) == "leaf-1 exited with code 1"
    assert failure.value.tail == ("no such disk",) * 3
    assert len(reports) == 2


async def test_a_missing_program_and_a_silent_child(supervise):
    supervisor, _ = supervise(ChildSpec("leaf-1", ("/nowhere/python",)))
    with pytest.raises(StartFailed, match="leaf-1 could not be started"):
        await supervisor.start()
    silent, _ = supervise(ChildSpec("leaf-2", (sys.executable, "-c", "import time; time.sleep(60)")))
    with pytest.raises(StartFailed, match=r"was not ready within 0\.2 s"):
        await silent.start(timeout=0.2)


async def test_a_child_that_ignores_sigterm_or_is_stopped_is_gone_within_five_seconds(supervise):
    supervisor, _ = supervise(ChildSpec("router", command(STUBBORN), is_front=True), ChildSpec("leaf-1", command(WELL_BEHAVED)))
    await supervisor.start()
    pids = supervisor.pids
    os.kill(pids["leaf-1"], signal.SIGSTOP)
    began = time.monotonic()
    await supervisor.stop()
    assert time.monotonic() - began < 5
    assert not any(is_alive(pid) for pid in pids.values())


async def test_stop_during_the_start(supervise):
    supervisor, _ = supervise(ChildSpec("leaf-1", command("import time; time.sleep(60)")))
    start = asyncio.create_task(supervisor.start())
    await until(lambda: supervisor.pids)
    pid = supervisor.pids["leaf-1"]
    await supervisor.stop()
    assert not is_alive(pid)
    start.cancel()
    assert await asyncio.gather(start, return_exceptions=True)


async def test_output_without_end_of_line_and_beyond_any_line_length(supervise, tmp_path):
    program = """
        import sys, time
        sys.stderr.write("x" * 300_000); sys.stderr.flush()
        print("ready: 127.0.0.1:1", flush=True)
        print("said on stdout", flush=True)
        time.sleep(60)
    """
    supervisor, _ = supervise(ChildSpec("leaf-1", command(program)))
    await supervisor.start()
    log = tmp_path / "logs" / "leaf-1.log"
    await until(lambda: "said on stdout" in log.read_text())
    await supervisor.stop()
    assert log.read_text().replace("\n", "").count("x") == 300_000


SUPERVISOR_PROCESS = """
    import asyncio, sys
    from pathlib import Path
    from kvshard.clock import SystemClock
    from kvshard.supervisor import ChildSpec, Supervisor

    async def main():
        commands = [(sys.executable, "-c", code, "--listen", "127.0.0.1:0") for code in sys.argv[2:]]
        specs = [ChildSpec(f"leaf-{number}", command) for number, command in enumerate(commands)]
        supervisor = Supervisor(specs, Path(sys.argv[1]), SystemClock(), print)
        await supervisor.start()
        print(*supervisor.pids.values(), flush=True)
        await asyncio.sleep(60)

    asyncio.run(main())
"""


@pytest.mark.parametrize("is_one_stopped", [False, True])
def test_no_child_outlives_a_supervisor_killed_by_sigkill(tmp_path, is_one_stopped):
    program = [sys.executable, "-c", textwrap.dedent(SUPERVISOR_PROCESS), str(tmp_path)]
    children = [textwrap.dedent(WELL_BEHAVED), textwrap.dedent(STUBBORN)]
    with subprocess.Popen([*program, *children], stdout=subprocess.PIPE, text=True) as supervisor:
        pids = [int(pid) for pid in supervisor.stdout.readline().split()]
        assert len(pids) == 2
        if is_one_stopped:
            os.kill(pids[0], signal.SIGSTOP)
        supervisor.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in pids), timeout=5)


def test_the_pipe_alone_ends_a_child_that_hangs_in_its_stop():
    """What protects where the kernel has no death signal: end of file, then the hard exit."""
    program = """
        import time
        from kvshard import supervision
        supervision._die_with_parent = lambda pid: None
        assert supervision.watch_supervisor(lambda: (print("lost", flush=True), time.sleep(60)), grace_s=0.2)
        print("ready", flush=True)
        time.sleep(60)
    """
    read_fd, write_fd = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        pass_fds=(read_fd,),
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"KVSHARD_SUPERVISOR_FD": str(read_fd)},
    )
    with child:
        os.close(read_fd)
        assert child.stdout.readline() == "ready\n"
        os.close(write_fd)
        assert child.stdout.readline() == "lost\n"
        assert child.wait(5) == 1


def test_without_a_supervisor_nothing_is_watched(monkeypatch):
    from kvshard.supervision import watch_supervisor

    monkeypatch.delenv("KVSHARD_SUPERVISOR_FD", raising=False)
    assert watch_supervisor(lambda: None) is False
