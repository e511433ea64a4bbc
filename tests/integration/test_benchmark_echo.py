"""The bare calls that bound the figures, against the server that does nothing."""

import pytest

from benchmarks.fast_path.data import sample_data
from benchmarks.fast_path.echo_arms import echoes
from benchmarks.processes import echo


@pytest.fixture(scope="module")
def running_echo():
    with echo() as running:
        yield running


async def test_every_bare_call_is_answered_and_counted(running_echo):
    data = sample_data(500)
    async with echoes(running_echo) as arms:
        lone = await arms.lone().run(0.02)
        assert len(lone.latencies["echo"]) == lone.operations > 0
        assert (await arms.many(8).run(0.02)).operations >= 8
        for arm in (arms.stream(data, 100, 4), arms.columns(data, 100, 4)):
            block = await arm.run(0.02)
            assert block.operations % 100 == 0
            assert block.operations >= 400
            assert arm.processes == {"echo": [running_echo.pid]}
