import asyncio
import time

from kvshard.precise_timer import PreciseTimer


async def fired(timer_box, at):
    """The instant at which a timer calls back."""
    done = asyncio.get_running_loop().create_future()
    with PreciseTimer(lambda: done.done() or done.set_result(time.monotonic())) as timer:
        timer_box.append(timer)
        timer.set(at)
        return await asyncio.wait_for(done, 5.0)


async def test_it_fires_when_it_is_due_and_not_before():
    at = time.monotonic() + 0.0123
    assert await fired([], at) >= at


async def test_an_instant_that_has_passed_fires_at_once():
    await fired([], time.monotonic() - 1.0)
    await fired([], -1.0)


async def test_without_the_kernels_timer_the_loops_own_is_used(monkeypatch):
    monkeypatch.setattr("sys.platform", "elsewhere")
    box = []
    at = time.monotonic() + 0.002
    assert await fired(box, at) >= at - 0.001
    assert not box[0].is_precise
