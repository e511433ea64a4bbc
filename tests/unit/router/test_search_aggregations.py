import asyncio
import threading

import pytest

from kvshard.aggregations import finish
from kvshard.aggregations.model import Stats, Terms
from kvshard.aggregations.partial import Moments, Rows
from kvshard.errors import InvalidArgument, Unimplemented
from router import search_aggregations
from router.search_aggregations import aggregated

SCHEMA = {"n": "integer"}


def ran_in(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each merge ran on the main thread."""
    found: list[bool] = []

    def noting(*args):
        found.append(threading.current_thread() is threading.main_thread())
        return finish.finish_all(*args)

    monkeypatch.setattr(search_aggregations, "finish_all", noting)
    return found


@pytest.mark.parametrize("rows", [3, search_aggregations.ROWS_AT_ONCE])
async def test_much_is_merged_beside_the_loop(rows, monkeypatch):
    on_loop = ran_in(monkeypatch)
    part = {"t": Rows(list(range(rows)), [2] * rows), "s": Moments(1, 2.0, 2.0, 2.0, 2.0)}
    found = await aggregated({"t": Terms("n", size=1), "s": Stats("n")}, [part, part], SCHEMA)
    assert [(bucket.key, bucket.count) for bucket in found["t"]] == [(0, 4)]
    assert (found["t"].others, found["s"].count) == (4 * (rows - 1), 2)
    assert on_loop == [rows == 3]


async def test_what_is_inside_counts_too(monkeypatch):
    on_loop = ran_in(monkeypatch)
    inner = Rows(list(range(400)), [1] * 400)
    rows = Rows(list(range(6)), [1] * 6, {"i": [inner] * 6})
    await aggregated({"t": Terms("n", aggs={"i": Terms("n")})}, [{"t": rows}], SCHEMA)
    assert on_loop == [False]


async def test_a_leaf_that_knows_none_is_not_left_out():
    part = {"s": Moments()}
    with pytest.raises(Unimplemented, match="update it first"):
        await aggregated({"s": Stats("n")}, [part, {}], SCHEMA)
    assert await aggregated({}, [{}, {}], SCHEMA) == {}


async def test_more_buckets_than_an_answer_has_are_refused():
    rows = Rows(list(range(200)), [1] * 200, {"i": [Rows(list(range(60)), [1] * 60)] * 200})
    with pytest.raises(InvalidArgument, match="at most 10,000"):
        await asyncio.wait_for(aggregated({"t": Terms("n", 200, aggs={"i": Terms("n", 66)})}, [{"t": rows}], SCHEMA), 10)
