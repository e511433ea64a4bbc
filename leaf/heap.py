"""Gives memory that is free inside the process back to the machine."""

import ctypes
from collections.abc import Callable


def _find_trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # not glibc; others return memory by themselves, or not at all
        return None
    return trim


_TRIM = _find_trim()


def trim_heap() -> None:
    """Return free heap pages, where the C library knows how to. Takes some ms, without the GIL.

    glibc keeps what threads have freed: after a load, the index writers' buffers stayed in an idle leaf (64 of 188 MB).
    """
    if _TRIM is not None:
        _TRIM(0)
