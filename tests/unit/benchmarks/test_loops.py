import asyncio

import pytest

from benchmarks.loops import Refused, WrongAnswer, one_by_one, together


async def test_callers_run_side_by_side_and_all_operations_count():
    under_way, most, calls = 0, 0, 0

    async def call():
        nonlocal under_way, most, calls
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        calls += 1
        return 10

    block = await together(0.02, 8, call)
    assert most == 8
    assert under_way == 0
    assert block.operations == 10 * calls
    assert block.seconds >= 0.02


async def test_the_first_failure_ends_the_load():
    calls = 0

    async def call():
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        if calls > 5:
            raise WrongAnswer("not what was stored")
        return 1

    with pytest.raises(ExceptionGroup) as raised:
        await together(30.0, 2, call)
    assert raised.group_contains(WrongAnswer)


async def test_calls_that_are_shed_are_counted_and_are_no_operations():
    calls = 0

    async def call():
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        if calls % 2:
            raise Refused
        return 1

    block = await together(0.05, 2, call)
    assert block.refused > 0
    assert block.operations + block.refused == calls


async def test_a_lone_caller_times_each_call():
    async def call():
        await asyncio.sleep(0)
        return 1

    block = await one_by_one(0.02, "get", call)
    assert len(block.latencies["get"]) == block.operations > 0
    assert block.seconds >= 0.02
    assert sum(block.latencies["get"]) == pytest.approx(block.seconds)


async def test_a_block_that_is_over_before_it_began_has_a_rate():
    async def call():
        await asyncio.sleep(0)
        return 1

    assert (await together(0.0, 3, call)).operations == 3
    assert (await one_by_one(0.0, "get", call)).operations == 1
