"""The memory of a serving process: what is free goes back to the machine, what is held is seldom looked through."""

import ctypes
import gc
from collections.abc import Callable
from typing import Final


def _find_trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # not glibc; others return memory by themselves, or not at all
        return None
    return trim


_TRIM = _find_trim()


COLLECT_AFTER: Final = (5_000, 5, 50)
"""New containers between two looks for cycles among the youngest, and so many of these between looks among older ones. Python's
own figures make a leaf under small writes look at all it holds (200,000 objects, the retained logs most of all) every 2,000
writes: 30 to 130 ms of its event loop each, 37 us a write. What is let go is freed at once all the same; only cycles wait,
which are few here: for 1,250,000 new containers at most, some 100 MB if each were one."""


COLLECT_SELDOM: Final = (500_000, 10, 10)
"""The same of a process that holds nothing but what is in flight. A thousand reads of eight legs under way are 120,000
containers, and the 4,096 calls that a router takes on (`router/admission.py`) as many as this; they all go again by themselves.
A router that looked for cycles among them, whenever there were 5,000 more than before, made each hiccup of a loaded one into
looks of 5 to 14 ms, those made more wait, and at 1.2 times what it could do it answered a third of that; at 100,000 it still
spent a tenth of its time on them then. What cycles it makes (none in 100,000 reads) waits for so many, some 50 MB."""


def settle_heap(collect_after: tuple[int, int, int] = COLLECT_AFTER) -> None:
    """Once a process has started: never look again for cycles among what it holds then, and seldom among what it gets."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*collect_after)


def trim_heap() -> None:
    """Return free heap pages, where the C library knows how to. Takes some ms, without the GIL.

    glibc keeps what threads have freed: after a load, the index writers' buffers stayed in an idle leaf (64 of 188 MB).
    """
    if _TRIM is not None:
        _TRIM(0)
