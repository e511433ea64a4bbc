"""Fixtures that several test packages share."""

import pathlib
import signal
from collections.abc import Iterator

import pytest
from harness.cluster import UpProcess, running_cluster

# A shell starts what it runs in the background deaf to Ctrl-C, and its children inherit that: tests of interrupts would fail
# there.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    """A cluster for tests that harm nothing: 3 leaves, 8 shards. Each test uses keys and collections of its own, and clears
    the faults that it injects.
    """
    folder: pathlib.Path = tmp_path_factory.mktemp("shared-cluster")
    with running_cluster(folder / "data", ("--allow-faults",)) as up:
        yield up


@pytest.fixture
def own_cluster(tmp_path: pathlib.Path) -> Iterator[UpProcess]:
    """A cluster that the test may break."""
    with running_cluster(tmp_path / "data") as up:
        yield up
