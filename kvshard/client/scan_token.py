"""The token of a scan: where it goes on.

The router's token stands between two chunks. A caller may stop in the middle of one, so the client's token is the router's
token of the chunk before plus the last key handed out; both are sealed with a digest of the scan they belong to, which makes a
token that was altered, or that is brought to another scan, an error instead of a wrong page.

Pure: imports only the standard library and other pure files.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from kvshard.errors import ErrorDetails, InvalidToken

_DIGEST_BYTES = 8
_LENGTH = struct.Struct(">I")
_HEAD = struct.Struct(">?II")


@dataclass(frozen=True, slots=True)
class ScanPosition:
    """A scan goes on at the chunk after router_token (empty: at its first), and there after last_key (empty: at once).

    start: where the stream that gave router_token began; the router takes the token back only together with it. is_incomplete:
    something that was given lacked a shard, so the whole does.
    """

    start: bytes = b""
    router_token: bytes = b""
    last_key: bytes = b""
    is_incomplete: bool = False


def encode_position(position: ScanPosition, scan: Sequence[bytes]) -> bytes:
    """The position as a token; scan: what makes this scan differ from another (its collection and range)."""
    lengths = _HEAD.pack(position.is_incomplete, len(position.start), len(position.router_token))
    body = lengths + position.start + position.router_token + position.last_key
    return _digest(body, scan) + body


def decode_position(token: bytes, scan: Sequence[bytes]) -> ScanPosition:
    """The position in a token of this very scan. Raises InvalidToken."""
    digest, body = token[:_DIGEST_BYTES], token[_DIGEST_BYTES:]
    if len(body) < _HEAD.size or digest != _digest(body, scan):
        raise InvalidToken(
            "the token is not valid here: it was altered, or belongs to another scan", ErrorDetails(field="token")
        )
    is_incomplete, start_length, token_length = _HEAD.unpack_from(body)
    token_at = _HEAD.size + start_length
    key_at = token_at + token_length
    return ScanPosition(body[_HEAD.size : token_at], body[token_at:key_at], body[key_at:], is_incomplete)


def _digest(body: bytes, scan: Sequence[bytes]) -> bytes:
    digest = blake2b(digest_size=_DIGEST_BYTES, person=b"kvshard scan 2")
    for part in (*scan, body):
        # Each part is measured, so that none can run into the next.
        digest.update(_LENGTH.pack(len(part)))
        digest.update(part)
    return digest.digest()
