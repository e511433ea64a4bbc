"""Closed loops of load: each caller has one call under way, and the next follows its answer.

All end after their seconds. Each caller makes one call at least, so that a block in which the machine did nothing for this
process has a rate too, a bad one.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from benchmarks.measured import Block

Call = Callable[[], Awaitable[int]]
"""One call. Returns how many operations it did; raises WrongAnswer for an answer that is not right, Refused for none."""


class WrongAnswer(Exception):
    """An answer that is not what was stored: a rate of wrong answers is none."""


class Refused(Exception):
    """The server has shed this call: it is no operation, and its caller waits before the next one."""


REFUSED_WAIT_S = 0.02
"""Of a caller whose call was shed: at once again it would only keep the server busy with refusing."""


async def together(seconds: float, callers: int, call: Call) -> Block:
    """So many callers at once. The block lasts until the last answer is there; the first failure ends it and is raised."""
    clock = time.perf_counter
    began = clock()
    end = began + seconds

    refused = 0

    async def caller() -> int:
        nonlocal refused
        done, is_first = 0, True
        while is_first or clock() < end:
            is_first = False
            try:
                done += await call()
            except Refused:
                refused += 1
                await asyncio.sleep(REFUSED_WAIT_S)
        return done

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(caller()) for _ in range(callers)]
    return Block(sum(task.result() for task in tasks), clock() - began, refused=refused)


async def one_by_one(seconds: float, kind: str, call: Call) -> Block:
    """One caller; the latency of each call is kept under the name of its kind."""
    clock = time.perf_counter
    began = clock()
    end = began + seconds
    done, now = 0, began
    taken: list[float] = []
    while not taken or now < end:
        done += await call()
        ended = clock()
        taken.append(ended - now)
        now = ended
    return Block(done, now - began, {kind: taken})
