import os
import subprocess
import sys
import time

import pytest

from benchmarks import processor_time
from benchmarks.processor_time import ProcessorMeter, machine_seconds, own_seconds, peak_resident_bytes, process_seconds


def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_work_of_this_process_is_the_clients():
    meter = ProcessorMeter({})
    meter.start()
    burn(0.05)
    used = meter.stop()
    assert used.by_role["client"] >= 0.05
    assert used.seconds >= 0.05
    assert used.others >= 0.0


def test_a_child_that_was_waited_for_counts_as_the_client():
    before = own_seconds()
    subprocess.run([sys.executable, "-S", "-c", "for _ in range(2_000_000): pass"], check=True)
    assert own_seconds() - before > 0.01


def test_work_of_other_processes_counts_by_role():
    program = "input()\nfor _ in range(3_000_000): pass\nprint('done', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        meter = ProcessorMeter({"router": [process.pid]})
        meter.start()
        process.stdin.write(b"go\n")
        process.stdin.flush()
        process.stdout.readline()
        used = meter.stop()
        process.stdin.write(b"end\n")
    assert used.by_role["router"] > 0.02
    assert used.by_role["client"] < used.by_role["router"]


def test_names_of_programs_may_hold_blanks_and_parentheses(tmp_path, monkeypatch):
    (tmp_path / "7").mkdir()
    columns = " ".join(str(number) for number in range(4, 53))
    (tmp_path / "7" / "stat").write_text(f"7 (a ) b (c)) S {columns}\n")
    monkeypatch.setattr(processor_time, "PROC", tmp_path)
    # The fields are numbered from 1 in proc(5): utime is the 14th, stime the 15th.
    assert process_seconds(7) == (14 + 15) / os.sysconf("SC_CLK_TCK")


def test_the_machines_idle_time_is_not_work(tmp_path, monkeypatch):
    # user nice system idle iowait irq softirq steal guest guest_nice; guests are in user already.
    (tmp_path / "stat").write_text("cpu  100 20 30 4000 500 6 7 8 90 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    monkeypatch.setattr(processor_time, "PROC", tmp_path)
    assert machine_seconds() == (100 + 20 + 30 + 6 + 7 + 8) / os.sysconf("SC_CLK_TCK")


def test_the_peak_of_memory_is_at_least_what_is_resident():
    assert peak_resident_bytes(os.getpid()) > 1_000_000
    with pytest.raises(OSError, match=r"999999999|process"):
        peak_resident_bytes(999_999_999)
