import gc
from collections import deque
from collections.abc import Iterator

import pytest

from kvshard.heap import COLLECT_AFTER, COLLECT_SELDOM, settle_heap


@pytest.fixture
def collector() -> Iterator[None]:
    """Puts back what a test changes of this process's collector."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.usefixtures("collector")
def test_what_comes_and_goes_makes_nobody_look_at_all_that_is_held() -> None:
    looks: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            looks.append(1)

    settle_heap()
    assert gc.get_threshold() == COLLECT_AFTER
    gc.callbacks.append(note)
    try:
        log: deque[list[list[int]]] = deque(maxlen=20_000)
        for n in range(100_000):
            log.append([[n], [n]])
    finally:
        gc.callbacks.remove(note)
    assert not looks


@pytest.mark.usefixtures("collector")
def test_what_is_in_flight_makes_a_router_look_at_nothing() -> None:
    """A thousand reads of eight legs, 120,000 containers, that come and go."""
    looks: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            looks.append(info["generation"])

    settle_heap(COLLECT_SELDOM)
    gc.callbacks.append(note)
    try:
        for _ in range(10):
            in_flight = [[[n]] for n in range(40_000)]
            del in_flight
    finally:
        gc.callbacks.remove(note)
    assert not looks
