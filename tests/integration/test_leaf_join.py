"""How a leaf becomes part of a running cluster, under which address, and which options it refuses."""

import asyncio
import contextlib
import pathlib
import subprocess
import sys
from dataclasses import replace

import pytest
from harness.leaf import bootstrap, coordinator_url, leaf_caller

from kvshard.errors import InvalidArgument
from leaf.server import LeafOptions, run


def options_of(folder: pathlib.Path, leaf: str = "leaf-2", **changes: object) -> LeafOptions:
    options = LeafOptions(leaf, folder / leaf, coordinator_url(folder), "127.0.0.1:0")
    return replace(options, **changes)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def running(options: LeafOptions):
    """Run a leaf until the block ends; gives its address."""
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(run(options, stop, ready.set_result))
    try:
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield await ready
    finally:
        stop.set()
        await task


async def test_a_leaf_that_the_map_does_not_know_is_refused_unless_it_joins(tmp_path: pathlib.Path) -> None:
    await bootstrap(tmp_path)
    with pytest.raises(InvalidArgument, match="no leaf 'leaf-2'; start it with --join"):
        async with running(options_of(tmp_path)):
            pass
    async with running(options_of(tmp_path, is_joining=True, zone="b", weight=2.0)) as address, leaf_caller(tmp_path) as caller:
        joined = caller.maps.current.leaves["leaf-2"]
        assert (joined.address, joined.zone, joined.weight) == (address, "b", 2.0)
    async with running(options_of(tmp_path)) as address, leaf_caller(tmp_path) as caller:
        kept = caller.maps.current.leaves["leaf-2"]
        assert (kept.address, kept.zone, kept.weight) == (address, "b", 2.0), "what is not said stays"


async def test_the_advertised_address_is_the_one_in_the_map(tmp_path: pathlib.Path) -> None:
    await bootstrap(tmp_path)
    async with running(options_of(tmp_path, "leaf-1", advertise="10.1.2.3:77")) as address, leaf_caller(tmp_path) as caller:
        assert address.startswith("127.0.0.1:")
        assert caller.maps.current.leaf_address("leaf-1") == "10.1.2.3:77"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"advertise": "host"}, "advertise"),
        ({"advertise": ":77"}, "advertise"),
        ({"advertise": "host:0"}, "advertise"),
        ({"advertise": "host:65536"}, "advertise"),
        ({"failure_timeout_s": 0.1}, "failure-timeout"),
        ({"failure_timeout_s": float("nan")}, "failure-timeout"),
        ({"heal_after_s": -1.0}, "heal-after"),
        ({"heal_after_s": float("inf")}, "heal-after"),
    ],
)
async def test_options_that_cannot_be(tmp_path: pathlib.Path, changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        await run(options_of(tmp_path, **changes), asyncio.Event(), print)
    assert refusal.value.details.field == field
    assert not (tmp_path / "leaf-2").exists()


async def test_the_process_of_an_unknown_leaf_ends_with_code_2(tmp_path: pathlib.Path) -> None:
    await bootstrap(tmp_path)
    command = [sys.executable, "-m", "leaf", "--id", "leaf-9", "--data-dir", str(tmp_path / "leaf-9")]
    command += ["--coordinator", coordinator_url(tmp_path), "--heal-after", "3", "--failure-timeout", "1"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the cluster has no leaf 'leaf-9'; start it with --join" in done.stderr
    assert "Traceback" not in done.stderr
