"""The benchmarks on real processes, in blocks too short to mean anything: everything is asked, counted and written down."""

import json

import pytest

import benchmarks.fast_path.__main__ as fast_path
import benchmarks.ycsb.__main__ as ycsb
from benchmarks.fast_path.data import sample_data
from benchmarks.measured import Absent
from benchmarks.turns import Pace

SHORT = Pace(turns=1, seconds=0.05)


@pytest.fixture(autouse=True)
def _no_peers(monkeypatch):
    """Whatever this machine has: here only kvshard and the echo are measured, and the others are named as missing."""
    monkeypatch.setattr("benchmarks.peers.servers.find", lambda name: Absent(name, f"no {name} here"))


async def test_the_fast_path_is_measured_without_any_peer(tmp_path):
    target = tmp_path / "fast-path"
    found = await fast_path.measure(list(fast_path.TASKS), sample_data(3_000), SHORT, target)
    measured = {figure.name for figure in found if figure.value is not None}
    assert {"direct get_many(1000) / bare stream echo", "unary Get / bare unary echo, calls"} <= measured
    assert {"lone get, kvshard / bare unary echo, p50", "router memory, peak of the run"} <= measured
    missing = {figure.name: figure.note for figure in found if figure.value is None}
    assert missing["512 single gets / redis-py"] == "redis-py + hiredis: no redis-server here"
    assert missing["durable put_many(1000) / etcd puts"] == "etcd, grpc.aio: no etcd here"
    record = json.loads(target.with_suffix(".json").read_text())
    assert set(record["comparisons"]) == set(fast_path.TASKS)
    for compared in record["comparisons"].values():
        for arm in compared["arms"]:
            assert arm["operations"] > 0
            assert arm["processor_us"].keys() >= {"client"}
    assert record["setting"]["peers"]["etcd"] == "no etcd here"


async def test_the_workloads_run_against_a_cluster(tmp_path):
    found = await ycsb.measure(ycsb.ORDER, 500, SHORT, tmp_path / "ycsb")
    assert {figure.note for figure in found if figure.value is None} == {
        "etcd, grpc.aio: no etcd here",
        "redis-py + hiredis: no redis-server here",
    }
    record = json.loads((tmp_path / "ycsb.json").read_text())
    assert list(record["comparisons"]) == list(ycsb.ORDER)
    for name, compared in record["comparisons"].items():
        assert [arm["name"] for arm in compared["arms"]] == ["kvshard", "kvshard direct"]
        for arm in compared["arms"]:
            kinds = {"A": {"read", "update"}, "C": {"read"}, "F": {"read", "read-modify-write"}}.get(name)
            assert kinds is None or set(arm["latency_ms"]) <= kinds
            assert sum(each["n"] for each in arm["latency_ms"].values()) == arm["operations"] > 0
