"""Which writes a search is to see: shard -> the version that its index must have reached.

The answer to a write says it of that write; a client adds up those of all its writes, and hands the sum to a search. A token
names positions in the shards' logs, so it says nothing about who may read what, and any replica of a shard can tell whether it
has come so far. After a split the shard itself goes on to be asked for; its child needs no entry, since the child's index
begins with all that the shard's had when the split took place.

Pure: imports only the standard library and other pure files.
"""

import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Final, NoReturn

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.limits import SHARDS_MAX

TOKENS_MAX: Final = 1_000
"""Tokens of one search. A client that knows how to add them up gives one; another gives one of each write it cares for."""

_FORMAT: Final = 0x77
"""Differs from the first byte of page tokens and of watermarks, which are easily taken for one another."""

_HEAD: Final = struct.Struct(">BI")
_ROW: Final = struct.Struct(">IQ")

ENCODED_MAX_BYTES: Final = _HEAD.size + SHARDS_MAX * _ROW.size
"""Of one token: a row for each shard that a cluster can have."""


class MinVersions:
    """Shard -> the least version wanted. At most SHARDS_MAX shards, since no cluster has more."""

    __slots__ = ("_known",)

    def __init__(self, known: Mapping[int, int] | None = None) -> None:
        self._known = dict(known or {})

    def __repr__(self) -> str:
        return f"MinVersions({self._known})"

    def __bool__(self) -> bool:
        return bool(self._known)

    @property
    def shards(self) -> Iterable[int]:
        """The shards of which something is wanted."""
        return self._known.keys()

    def of(self, shard: int) -> int:
        """0: nothing is wanted of this shard."""
        return self._known.get(shard, 0)

    def want(self, shard: int, version: int) -> None:
        """Want this too; version 0 is nothing."""
        if version > self._known.get(shard, 0):
            self._known[shard] = version

    def want_all(self, others: "MinVersions") -> None:
        """Want what others want, too."""
        for shard, version in others._known.items():
            self.want(shard, version)

    def encode(self) -> bytes:
        """The token; empty when nothing is wanted."""
        if not self._known:
            return b""
        rows = b"".join(_ROW.pack(shard, version) for shard, version in sorted(self._known.items()))
        return _HEAD.pack(_FORMAT, zlib.crc32(rows)) + rows

    @classmethod
    def decode(cls, token: bytes, field: str = "min_versions") -> "MinVersions":
        """What `encode` made; of empty bytes one that wants nothing. Raises InvalidArgument that names the field."""
        if not token:
            return cls()
        rows = token[_HEAD.size :]
        if len(token) > ENCODED_MAX_BYTES:
            _refuse(f"{field} is longer than {ENCODED_MAX_BYTES} bytes", field)
        if not rows or len(rows) % _ROW.size or _HEAD.unpack_from(token) != (_FORMAT, zlib.crc32(rows)):
            _refuse(f"{field} is no token that the answer to a write carried", field)
        return cls(dict(_ROW.iter_unpack(rows)))

    @classmethod
    def decode_all(cls, tokens: Iterable[bytes], field: str = "min_versions") -> "MinVersions":
        """The sum of several tokens. Raises InvalidArgument that names the one at fault."""
        wanted, known = cls(), list(tokens)
        if len(known) > TOKENS_MAX:
            details = ErrorDetails(field=field, limit=TOKENS_MAX)
            raise InvalidArgument(f"{field} has at most {TOKENS_MAX} tokens, not {len(known)}", details)
        for index, token in enumerate(known):
            wanted.want_all(cls.decode(token, f"{field}[{index}]"))
        return wanted


def _refuse(message: str, field: str) -> NoReturn:
    raise InvalidArgument(message, ErrorDetails(field=field))


NOTHING_WANTED: Final = MinVersions()
"""Of a search without tokens. Nobody changes it."""
