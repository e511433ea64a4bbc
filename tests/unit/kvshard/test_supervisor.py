"""The restart policy, the start commands and the bounded log of the supervisor: no process is started here."""

import pytest

from kvshard.restart_policy import HEALTHY_AFTER_S, MAX_DELAY_S, RestartPolicy
from kvshard.supervisor import TAIL_LINES, ChildLog, ChildSpec


def crash_times(lifetimes: list[float]) -> list[float]:
    """Delays after runs of these lengths, one after the other."""
    policy, now, delays = RestartPolicy(), 1000.0, []
    for lifetime in lifetimes:
        policy.started(now)
        now += lifetime
        delays.append(policy.exited(now))
        now += delays[-1]
    return delays


def test_delays_double_up_to_the_bound():
    assert crash_times([0.0] * 9) == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])


def test_a_healthy_run_is_forgiven_and_a_short_one_is_not():
    assert crash_times([0, 0, HEALTHY_AFTER_S, 0, HEALTHY_AFTER_S - 0.1, 0]) == pytest.approx([0.1, 0.2, 0.1, 0.2, 0.4, 0.8])


def test_an_endless_crash_loop_stays_at_the_bound():
    policy = RestartPolicy()
    for second in range(20_000):
        policy.started(float(second))
        assert policy.exited(float(second)) <= MAX_DELAY_S
    assert repr(policy) == "RestartPolicy(failures=20000, started_at=None)"


def test_a_start_that_never_happened_counts_as_a_failure():
    policy = RestartPolicy()
    assert [policy.exited(0.0), policy.exited(100.0)] == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize(
    ("keeps", "address", "expected"),
    [
        (True, None, "127.0.0.1:0"),
        (True, "127.0.0.1:4711", "127.0.0.1:4711"),
        (False, "127.0.0.1:4711", "127.0.0.1:0"),
    ],
)
def test_a_restart_listens_where_the_first_start_did(keeps, address, expected):
    spec = ChildSpec("router", ("python", "--listen", "127.0.0.1:0", "--log-json"), keeps_address=keeps)
    assert spec.command_at(address) == ("python", "--listen", expected, "--log-json")


def test_log_keeps_two_files_of_bounded_size_and_the_last_lines(tmp_path):
    log = ChildLog(tmp_path / "leaf-1.log", max_bytes=1000)
    for number in range(1000):
        log.write(f"line {number}".encode())
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["leaf-1.log", "leaf-1.log.1"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert list(log.tail) == [f"line {number}" for number in range(1000 - TAIL_LINES, 1000)]
    assert (tmp_path / "leaf-1.log").read_text().endswith("line 999\n")


def test_log_survives_a_disk_that_refuses(tmp_path):
    log = ChildLog(tmp_path / "leaf-1.log", max_bytes=10)
    (tmp_path / "leaf-1.log.1").mkdir()
    (tmp_path / "leaf-1.log.1" / "in the way").touch()
    log.write(b"a long line that needs a new file")
    log.close()
    assert list(log.tail) == ["a long line that needs a new file"]


def test_a_log_without_a_file_keeps_the_last_lines():
    log = ChildLog(None)
    for number in range(TAIL_LINES + 5):
        log.write(f"line {number}".encode())
    log.close()
    assert list(log.tail) == [f"line {number}" for number in range(5, TAIL_LINES + 5)]
