"""How much a scan asks of which shards, and how much memory all scans of a process may hold.

Keys lie among the shards by their hash, so of the next n keys of a scan over s shards each holds about n / s. A short scan asks
each for that and two standard deviations more: rarely does one have to be asked again, and few keys are read in vain. A long
one begins with a small chunk, so that the first keys come soon and a scan that is left early has cost little, and doubles it.

Keys that share a routing key (the part in `{...}`) share a shard: where the range says which one, no other shard is asked.

Pure: imports only the standard library and other pure files.
"""

from math import ceil, sqrt
from typing import Final

from kvshard import hashing
from kvshard.errors import ErrorDetails, ResourceExhausted
from kvshard.scatter.requests import KeyRange

CHUNK_MAX_KEYS: Final = 1_000
"""Keys of one fetch from a shard: a leaf reads so many in about 2 ms, so nothing behind it waits long."""

CHUNK_MIN_KEYS: Final = 16
"""Below this a fetch is all overhead."""

CHUNK_FIRST_KEYS: Final = 128
"""Of a long scan's first fetch from each shard; doubled with each further one."""

SHORT_SCAN_KEYS: Final = 1_000
"""A scan that wants at most so many further keys is short: it gets them in one page, and fetches only what that may need."""

CHUNK_MAX_BYTES: Final = 256 * 1024
"""Keys and values of one fetch: beyond this the cost of a fetch vanishes beside that of its bytes. One value may be larger."""

CHUNK_MIN_BYTES: Final = 4 * 1024
"""Of a fetch while memory is short."""

SPARE_DEVIATIONS: Final = 2.0
"""More would be read in vain more often than it saves a second fetch, which costs about as much as a hundred keys."""

ROW_COST_BYTES: Final = 200
"""What a row takes in memory besides its own bytes: four objects and the tuple that holds them."""

ROW_GUESS_BYTES: Final = 512
"""What a row is taken for before the first one has come."""

ROW_WEIGHT: Final = 0.1
"""Of the newest chunk in what a row is taken for by a scan that begins."""

SCAN_BYTES: Final = 8 * 1024 * 1024
"""What one scan holds and has asked for, as a rule: its chunks are small where it has many shards, and beyond this it fetches
nothing ahead. What is on its way in and out takes as much again, several times over."""

SCANS_BYTES: Final = 24 * 1024 * 1024
"""The same of all scans of a process: chunks get smaller as this fills up."""

SCANS_MAX_BYTES: Final = 48 * 1024 * 1024
"""Beyond it no further scan is begun. Those under way fetch nothing ahead then, but what they need next."""

REFUSED_RETRY_MS: Final = 250
"""When to come again to a router whose scans hold so much: their readers take a while."""


def chunk_keys(rows_left: int | None, shards: int, chunks: int, max_bytes: int) -> int:
    """How many keys to ask of a shard that has delivered so many chunks.

    rows_left: what the scan still wants; None: all. max_bytes: what the chunk may take in memory.
    """
    most = min(CHUNK_MAX_KEYS, max(CHUNK_MIN_KEYS, max_bytes // ROW_COST_BYTES))
    doublings = min(chunks, 16)
    if rows_left is None or rows_left > SHORT_SCAN_KEYS:
        most = min(most, CHUNK_FIRST_KEYS << doublings)
    if rows_left is None:
        return most
    mean = rows_left / max(1, shards)
    # A shard that has to be asked again has more than its share, perhaps all of it.
    share = ceil(mean + SPARE_DEVIATIONS * sqrt(mean) + 1) << doublings
    return min(most, rows_left, share)


def common_prefix(range: KeyRange) -> bytes:
    """What all keys of a range begin with."""
    start, end = range.start, range.end
    if end is None:
        return b""
    shared = next((at for at, (one, other) in enumerate(zip(start, end, strict=False)) if one != other), None)
    if shared is None:
        return start[: min(len(start), len(end))]
    # Below an end that is the least one behind a prefix, as of [ab, ac), the byte before it is shared too.
    is_next = len(end) == shared + 1 and end[shared] == start[shared] + 1
    return start[: shared + is_next]


def routing_prefix(range: KeyRange) -> bytes | None:
    """A key whose shard holds every key of the range; None when the range does not say."""
    prefix = common_prefix(range)
    # The tag of a key is that of its beginning once it is whole there; what follows does not matter.
    return prefix if hashing.routing_key(prefix) != prefix else None


class ScanMemory:
    """Counts what the scans of a process hold, and what they have asked for. held: bytes of both, about.

    row_bytes: what a row is taken for, by the chunks that came of late.
    """

    __slots__ = ("_bytes", "_max_bytes", "held", "row_bytes")

    def __init__(self, bytes: int = SCANS_BYTES, max_bytes: int = SCANS_MAX_BYTES) -> None:
        self.held = 0
        self.row_bytes = float(ROW_GUESS_BYTES)
        self._bytes = bytes
        self._max_bytes = max_bytes

    def __repr__(self) -> str:
        return f"ScanMemory(held={self.held} of {self._bytes})"

    @property
    def is_short(self) -> bool:
        """Nobody is to fetch anything ahead."""
        return self.held >= self._bytes

    def chunk_bytes(self, shards: int) -> int:
        """How much to ask of each shard, by a scan that asks so many: together at most half of what it may take."""
        left = min(SCAN_BYTES, self._bytes - self.held)
        return max(CHUNK_MIN_BYTES, min(CHUNK_MAX_BYTES, left // (2 * max(1, shards))))

    def begin(self) -> "ScanPart":
        """The part of a scan that begins. Raises ResourceExhausted when the others hold too much."""
        if self.held >= self._max_bytes:
            text = f"the scans under way hold {self.held} bytes; their readers are slow"
            raise ResourceExhausted(text, ErrorDetails(limit=self._max_bytes, retry_after_ms=REFUSED_RETRY_MS))
        return ScanPart(self)


class ScanPart:
    """What one scan holds and has asked for. Invariant: 0 <= bytes <= memory.held."""

    __slots__ = ("_asked", "_memory", "bytes")

    def __init__(self, memory: ScanMemory) -> None:
        self.bytes = 0
        self._memory = memory
        self._asked: dict[int, int] = {}

    @property
    def is_short(self) -> bool:
        """This scan is to fetch nothing ahead."""
        return self.bytes >= SCAN_BYTES or self._memory.is_short

    def ask(self, shard: int, keys: int, max_bytes: int, row_bytes: int) -> None:
        """A chunk is asked for. row_bytes: what a row of this scan takes, as far as is known; 0: nothing is."""
        row = row_bytes or int(self._memory.row_bytes)
        # However large its first row is, it comes.
        self._asked[shard] = expected = max(row, min(max_bytes, keys * row))
        self._change(expected)

    def came(self, shard: int, size: int, rows: int) -> None:
        """It has come: so many rows, which take so much; 0 when it failed."""
        self._change(size - self._asked.pop(shard))
        if rows:
            self._memory.row_bytes += (size / rows - self._memory.row_bytes) * ROW_WEIGHT

    def give(self, size: int) -> None:
        """So much has gone to the reader."""
        self._change(-size)

    def end(self) -> None:
        """The scan holds nothing any more."""
        self._asked.clear()
        self._change(-self.bytes)

    def _change(self, by: int) -> None:
        self.bytes += by
        self._memory.held += by
        assert 0 <= self.bytes <= self._memory.held, self
