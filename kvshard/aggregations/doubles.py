"""Doubles as integers in the same order: their bits, with their sign. Neighbours differ by one.

Pure: imports only the standard library.
"""

import struct

_DOUBLE = struct.Struct(">d")
_BITS = struct.Struct(">q")


def code_of(value: float) -> int:
    """The integer of a double; 0 for both zeros."""
    bits: int = _BITS.unpack(_DOUBLE.pack(abs(value)))[0]
    return -bits if value < 0 else bits


def double_of(code: int) -> float:
    """The double of an integer."""
    value: float = _DOUBLE.unpack(_BITS.pack(abs(code)))[0]
    return -value if code < 0 else value
