import gc
from collections import deque
from collections.abc import Iterator

import pytest

from kvshard.heap import COLLECT_AFTER, settle_heap


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
