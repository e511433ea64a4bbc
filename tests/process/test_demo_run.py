"""`kvshard demo` from start to end, in small: it shows everything, ends by itself and leaves nothing behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path


def start_demo(tmp_path: Path, *flags: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "kvshard.cli", "demo", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path), "COLUMNS": "120"},
    )


def test_demo_in_small(tmp_path):
    picture = tmp_path / "latency.svg"
    with start_demo(tmp_path, "--documents", "1500", "--rounds", "40", "--seconds", "6", "--svg-file", str(picture)) as demo:
        shown, errors = demo.communicate(timeout=100)
    assert demo.returncode == 0, errors
    assert "3 leaves, 8 shards" in shown
    assert "1,500 texts stored durably" in shown
    assert "finds 1,500" in shown
    for example in ("parse a date", "context manager", "between threads", "asyncio", "compression"):
        assert example in shown
    assert re.search(r"[1-9][\d,]* matches on 8 of 8 shards", shown)
    assert "get_many of 1,000 keys" in shown
    rows = re.findall(r"│ (one leg alone|\d)\s+│\s+(\d+) │", shown)
    assert rows == [("one leg alone", "40"), ("1", "40"), ("2", "40"), ("4", "40"), ("8", "40")]
    assert "one of its shard's 3 replicas" in " ".join(shown.split())
    rows = re.findall(r"│ (nobody slow|pauses|one leaf slow|)\s+│ (without|with)\s+│\s+([\d,]+) │.* %\s*│", shown)
    arms = [
        ("nobody slow", "without"),
        ("", "with"),
        ("pauses", "without"),
        ("", "with"),
        ("one leaf slow", "without"),
        ("", "with"),
    ]
    assert [(condition, arm) for condition, arm, _ in rows] == arms * 2, "of searches, and of batches"
    assert all(int(count.replace(",", "")) > 0 for _, _, count in rows)
    assert "p99 of a search: nobody slow, " in " ".join(shown.split())
    assert re.search(r"since the start: [\d,]+ hedges", shown)
    assert len(re.findall(r"straggler: shard \d at leaf-\d", shown)) == 2
    took_ms = [float(took) for took in re.findall(r"([\d.]+) ms in the router", shown)]
    assert len(took_ms) == 2
    assert took_ms[1] > 80.0, "without defences the leaf that is 80 ms late is waited for"
    killed = re.search(
        r"kill -9 of leaf-\d: ([\d,]+) writes acknowledged, (\d+) lost; ([\d,]+) reads .*?, (\d+) stale", shown, re.S
    )
    assert killed is not None
    assert int(killed[1].replace(",", "")) > 50
    assert (killed[2], killed[4]) == ("0", "0")
    assert picture.read_text().startswith("<svg")
    assert [path.name for path in tmp_path.iterdir()] == ["latency.svg"], "the temporary data is removed"


def test_demo_that_keeps_the_cluster_until_ctrl_c(tmp_path):
    with start_demo(tmp_path, "--documents", "300", "--rounds", "5", "--seconds", "3", "--keep") as demo:
        address = ""
        for line in demo.stdout:
            found = re.search(r"stays up at (\S+)", line)
            address = found.group(1) if found else address
            if "or from Python" in line:
                break
        search = [sys.executable, "-m", "kvshard.cli", "search", "--router", address, "--json", "pydocs", "*"]
        done = subprocess.run(search, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        faults = [sys.executable, "-m", "kvshard.cli", "fault", "list", "--router", address, "--json"]
        done = subprocess.run(faults, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, json.loads(done.stdout)["faults"]) == (0, []), "no leaf is left slow"
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=20)
    assert demo.returncode == 0, errors
    assert list(tmp_path.iterdir()) == []


def test_demo_that_is_interrupted_cleans_up(tmp_path):
    with start_demo(tmp_path, "--documents", "20000") as demo:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*/leaf-1")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        began = time.monotonic()
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=20)
    assert demo.returncode == 130, errors
    assert "Traceback" not in errors
    assert time.monotonic() - began < 8
    assert list(tmp_path.iterdir()) == []
