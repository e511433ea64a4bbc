"""The router's probe of itself: that it ends when it is told to."""

import asyncio
from collections.abc import Generator

import pytest

from kvshard.clock import SystemClock
from router.arrival_probe import ArrivalProbe


class EndingCall:
    """A call that was cancelled and has not told its caller yet."""

    def __init__(self) -> None:
        self.is_awaited = asyncio.Event()

    def done(self) -> bool:
        return True

    def cancel(self) -> bool:
        return True

    def __await__(self) -> Generator[object, None, bytes]:
        self.is_awaited.set()
        yield from asyncio.Event().wait().__await__()
        raise AssertionError("unreachable")


async def test_a_stop_is_not_taken_for_the_end_of_a_probe() -> None:
    """Both are a CancelledError; a probe that swallowed the router's would be waited for for ever."""
    call = EndingCall()
    probe = ArrivalProbe("127.0.0.1:1", SystemClock(), lambda: True, lambda wait_s, now: None, lambda late_s, now: None)
    probing = asyncio.create_task(probe._probe(lambda token, timeout: call))  # type: ignore[arg-type, return-value]
    await call.is_awaited.wait()
    probing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(probing, 5)
