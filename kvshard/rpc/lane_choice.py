"""Which requests travel on the bulk lane: those that are large, and those whose answer may be.

What an answer will weigh is not known before; what is asked for tells its order of magnitude.

Pure: imports only the standard library and other pure files.
"""

from typing import Final

from kvshard.lane_messages import KeysRead
from kvshard.model import ShardRead, ShardScan, ShardSearch

SMALL_MAX_BYTES: Final = 64 * 1024
"""Of a request, and of what is expected of its answer. On loopback and in a rack such a frame takes 0.1 ms, about what a small
one takes anyway: more in front of it would double that. Smaller a bound would cost a message of its own for many a frame."""

VALUE_EXPECTED_BYTES: Final = 1024
"""Of a value: the records of the usual benchmark (YCSB) have a kilobyte."""

DOCUMENT_EXPECTED_BYTES: Final = 4096
"""Of a hit with its document: texts, of about a page."""

KEY_EXPECTED_BYTES: Final = 64
"""Of a key with its version, as scans of keys alone bring them."""


def is_bulk(request: object, size: int) -> bool:
    """Whether a request, encoded in so many bytes, goes by the bulk lane. What is no read is weighed by its size alone."""
    return size > SMALL_MAX_BYTES or expected_bytes(request) > SMALL_MAX_BYTES


def expected_bytes(request: object) -> int:
    """About how many bytes the answer may have; 0 where it is always small."""
    if isinstance(request, (ShardRead, KeysRead)):
        return len(request.keys) * VALUE_EXPECTED_BYTES
    if isinstance(request, ShardScan):
        return request.limit * (KEY_EXPECTED_BYTES if request.keys_only else VALUE_EXPECTED_BYTES)
    if isinstance(request, ShardSearch):
        return request.limit * (KEY_EXPECTED_BYTES if request.keys_only else DOCUMENT_EXPECTED_BYTES)
    return 0
