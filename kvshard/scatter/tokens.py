"""Page tokens of Scan and Search: where the next page begins, bound to the request that began the first one.

A token is digest (16 bytes), then a head of version, kind, flags, collection id and fingerprint of the request, then the
position. The digest is blake2b keyed with the cluster's id. That is no secret and need not be one: a token grants nothing
that its holder could not ask for outright. It only makes a token that was cut, altered or brought from another cluster an
error instead of a wrong page.

Pure: imports only the standard library and other pure files.
"""

import hmac
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NoReturn

from kvshard.errors import ErrorDetails, InvalidToken
from kvshard.model import SearchAfter, TermStatistics

_VERSION = 1
_KIND_SCAN = 1
_KIND_SEARCH = 4
_KIND_SEARCH_BY_RANKS = 3
_KIND_SEVERAL = 5
_FLAG_INCOMPLETE = 1
_DIGEST_BYTES = 16
_FINGERPRINT_BYTES = 8
_HEAD = struct.Struct(f">BBBI{_FINGERPRINT_BYTES}s")
_LENGTH = struct.Struct(">I")
_SEARCH = struct.Struct(">IdHI")
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))

TOKEN_MAX_BYTES = 512 * 1024
"""A position in a search by eight of the longest keywords, however they have to be escaped, the digests of 4,000 groups,
STATISTICS_MAX_CHARS, and a number for each of SHARDS_MAX shards; anything longer is refused before it is hashed."""

SEVERAL_TOKENS_MAX = 16
"""Tokens of single searches in that of a search over several collections: it hashes within 10 ms at its longest."""

STATISTICS_MAX_CHARS = 16_384
"""Of the terms whose statistics go with a token: some hundred words. A query with more of them (wildcards) is ranked by what
is known when each page is asked for: under writes, a hit may then be on two pages or on none."""


@dataclass(frozen=True, slots=True)
class ScanPosition:
    """A scan goes on after this key. is_incomplete: shards were missing from a page before."""

    last_key: bytes
    is_incomplete: bool = False


@dataclass(frozen=True, slots=True)
class SearchPosition:
    """A search goes on behind this hit in the order of all shards; None: it begins. taken: hits that came before. shown: of a
    collapsed search, digests of their groups (`kvshard/collapsing.py`). statistics: what the scores of the first page rested
    on, since scores that moved between two pages would move hits; as of statistics_at_ms, since 1970. None: there are none.

    seen: shard -> through which seqno its index was when the first page came from it. The next page may come from another
    replica, whose index would lack what was written in the half second before, and its hits would be on no page.

    What is left of it holds for every shard, so it stays what it is when shards are split between two pages; and the index of
    a child begins with all that its shard's had.
    """

    after: SearchAfter | None = None
    taken: int = 0
    is_incomplete: bool = False
    shown: bytes = b""
    statistics: TermStatistics | None = None
    statistics_at_ms: int = 0
    seen: Mapping[int, int] = field(default_factory=dict)


def fingerprint(parts: Sequence[bytes]) -> bytes:
    """What a token remembers of the request it belongs to; each part is measured, so that none can run into the next."""
    digest = blake2b(digest_size=_FINGERPRINT_BYTES)
    for part in parts:
        digest.update(_LENGTH.pack(len(part)))
        digest.update(part)
    return digest.digest()


def fits_token(statistics: TermStatistics) -> bool:
    """Whether a token may carry them."""
    return sum(len(term) + 12 for counts in statistics.counts.values() for term in counts) <= STATISTICS_MAX_CHARS


class TokenCodec:
    """Writes and reads the tokens of one cluster."""

    def __init__(self, cluster_id: str) -> None:
        self._key = blake2b(b"kvshard page token " + cluster_id.encode(), digest_size=32).digest()

    def encode_scan(self, collection_id: int, request: bytes, position: ScanPosition) -> bytes:
        """A token of a scan; request is its fingerprint."""
        return self._seal(_KIND_SCAN, collection_id, request, position.is_incomplete, position.last_key)

    def decode_scan(self, token: bytes, collection_id: int, request: bytes) -> ScanPosition:
        """The position in a scan's token. Raises InvalidToken when it is not one of this very scan."""
        is_incomplete, body = self._open(token, _KIND_SCAN, collection_id, request)
        return ScanPosition(body, is_incomplete)

    def encode_search(self, collection_id: int, request: bytes, position: SearchPosition) -> bytes:
        """A token of a search behind a hit; request is its fingerprint."""
        after = position.after
        assert after is not None, "a search that begins needs no token"
        head = _SEARCH.pack(position.taken, after.score, len(after.key), len(position.shown))
        rest: list[object] = [after.values, [*position.seen.items()]]
        if position.statistics is not None:
            whole = position.statistics
            rest += [whole.documents, whole.tokens, whole.counts, position.statistics_at_ms]
        text = _JSON.encode(rest).encode()
        return self._seal(
            _KIND_SEARCH, collection_id, request, position.is_incomplete, head + after.key + position.shown + text
        )

    def decode_search(self, token: bytes, collection_id: int, request: bytes) -> SearchPosition:
        """The position in a search's token. Raises InvalidToken when it is not one of this very search."""
        is_incomplete, body = self._open(token, _KIND_SEARCH, collection_id, request)
        taken, score, key_bytes, shown_bytes = _SEARCH.unpack_from(body)
        key_end = _SEARCH.size + key_bytes
        shown_end = key_end + shown_bytes
        values, seen, *ranked = json.loads(body[shown_end:])
        after = SearchAfter(values, score, body[_SEARCH.size : key_end])
        statistics, at_ms = (TermStatistics(*ranked[:3]), ranked[3]) if ranked else (None, 0)
        return SearchPosition(after, taken, is_incomplete, body[key_end:shown_end], statistics, at_ms, dict(seen))

    def encode_several(self, request: bytes, tokens: Sequence[bytes], is_incomplete: bool) -> bytes:
        """A token of a search over several collections, of the token of each; empty where it begins anew."""
        body = b"".join(_LENGTH.pack(len(token)) + token for token in tokens)
        return self._seal(_KIND_SEVERAL, 0, request, is_incomplete, body)

    def decode_several(self, token: bytes, request: bytes) -> tuple[list[bytes], bool]:
        """The tokens in that of a search over several collections, and whether a page before was incomplete.

        Raises InvalidToken when it is not one of these very collections, in this order.
        """
        is_incomplete, body = self._open(token, _KIND_SEVERAL, 0, request, SEVERAL_TOKENS_MAX * TOKEN_MAX_BYTES)
        tokens: list[bytes] = []
        while body:
            end = _LENGTH.size + _LENGTH.unpack_from(body)[0]
            tokens.append(body[_LENGTH.size : end])
            body = body[end:]
        return tokens, is_incomplete

    def _seal(self, kind: int, collection_id: int, request: bytes, is_incomplete: bool, body: bytes) -> bytes:
        flags = _FLAG_INCOMPLETE if is_incomplete else 0
        content = _HEAD.pack(_VERSION, kind, flags, collection_id, request) + body
        return self._digest(content) + content

    def _open(
        self, token: bytes, kind: int, collection_id: int, request: bytes, max_bytes: int = TOKEN_MAX_BYTES
    ) -> tuple[bool, bytes]:
        content = token[_DIGEST_BYTES:]
        if len(token) > max_bytes or len(content) < _HEAD.size:
            _refuse("it is no token of this service")
        if not hmac.compare_digest(token[:_DIGEST_BYTES], self._digest(content)):
            _refuse("it was altered, cut, or comes from another cluster")
        version, found_kind, flags, found_collection, found_request = _HEAD.unpack_from(content)
        if found_kind == _KIND_SEARCH_BY_RANKS and kind == _KIND_SEARCH:
            _refuse("it was made by an earlier version of the service; begin the search anew")
        if version != _VERSION or found_kind != kind:
            _refuse("it belongs to another kind of call")
        if found_collection != collection_id:
            _refuse("it belongs to another collection")
        if found_request != request:
            _refuse("it belongs to another request; the fields beside it must be as they were, and the schema")
        return bool(flags & _FLAG_INCOMPLETE), content[_HEAD.size :]

    def _digest(self, content: bytes) -> bytes:
        return blake2b(content, key=self._key, digest_size=_DIGEST_BYTES).digest()


def _refuse(why: str) -> NoReturn:
    raise InvalidToken(f"the token is not valid here: {why}", ErrorDetails(field="token"))
