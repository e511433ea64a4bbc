"""Legs that cost alike are compared with each other, and with no others."""

from typing import Any

import pytest

from kvshard.aggregations.model import Stats
from kvshard.model import ShardRead, ShardScan, ShardSearch, ShardWrite
from kvshard.tail.cost_class import leg_kind
from kvshard.tail.defences import POOLS_MAX


def read(keys: int) -> ShardRead:
    return ShardRead(0, 1, 1, [b"k"] * keys)


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (1, "Get"),
        (2, "BatchGet/32"),
        (32, "BatchGet/32"),
        (33, "BatchGet/512"),
        (512, "BatchGet/512"),
        (513, "BatchGet/more"),
        (10_000, "BatchGet/more"),
    ],
)
def test_reads_by_their_keys(keys: int, kind: str) -> None:
    assert leg_kind(read(keys)) == kind


@pytest.mark.parametrize(("limit", "kind"), [(1, "Scan/64"), (64, "Scan/64"), (65, "Scan/more"), (1_000, "Scan/more")])
def test_scans_by_what_they_ask_for(limit: int, kind: str) -> None:
    assert leg_kind(ShardScan(0, 1, 1, b"", None, limit)) == kind


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ({}, "Search"),
        ({"taken": 90}, "Search"),
        ({"taken": 91}, "Search/deep"),
        ({"taken": 9_000, "sort": "-year"}, "Search"),
        ({"facets": ["tag"]}, "Search/facets"),
        ({"highlight": ["body"]}, "Search/facets"),
        ({"facets": ["tag"], "taken": 500}, "Search/facets"),
        ({"facets": ["tag"], "aggregations": {"n": Stats("n")}}, "Search/aggregations"),
        ({"refresh": True}, "Search/refresh"),
        ({"min_seqno": 7, "facets": ["tag"]}, "Search/refresh"),
    ],
)
def test_searches_by_what_makes_them_slow(how: dict[str, Any], kind: str) -> None:
    given = {"limit": 10, **how}
    assert leg_kind(ShardSearch(0, 1, 1, "q", [], **given)) == kind


def test_writes_are_one_kind() -> None:
    assert leg_kind(ShardWrite(0, 1, 1, [b"k"] * 100, [b"v"] * 100)) == "Write"


def test_there_are_fewer_than_pools() -> None:
    reads = {leg_kind(read(keys)) for keys in range(1, 2_000)}
    assert len(reads) + 2 + 4 + 1 == 11 < POOLS_MAX
