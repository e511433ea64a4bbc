"""Tokens: they come back as they went, and whatever was touched or belongs elsewhere is refused."""

import pytest

from kvshard.errors import InvalidToken
from kvshard.scatter.tokens import TOKEN_MAX_BYTES, ScanPosition, SearchPosition, TokenCodec, fingerprint

CODEC = TokenCodec("cluster-a")
REQUEST = fingerprint([b"prefix", b"start", b""])


@pytest.mark.parametrize("position", [ScanPosition(b"k"), ScanPosition(b"\0" * 1024, is_incomplete=True)])
def test_scan_round_trip(position: ScanPosition) -> None:
    token = CODEC.encode_scan(7, REQUEST, position)
    assert CODEC.decode_scan(token, 7, REQUEST) == position


def test_search_round_trip_keeps_only_shards_that_were_read() -> None:
    token = CODEC.encode_search(7, REQUEST, SearchPosition({3: 10, 1: 2, 2: 0}, is_incomplete=True))
    ends = {1: 65_535, 3: 65_535}
    assert CODEC.decode_search(token, 7, REQUEST) == SearchPosition({1: 2, 3: 10}, True, ends), "none was told: none was cut"
    token = CODEC.encode_search(7, REQUEST, SearchPosition({3: 10, 1: 2}, last_slots={3: 99, 1: 7, 5: 8}))
    assert CODEC.decode_search(token, 7, REQUEST) == SearchPosition({1: 2, 3: 10}, False, {1: 7, 3: 99})


def test_largest_search_token_is_accepted() -> None:
    offsets = dict.fromkeys(range(4096), 1)
    token = CODEC.encode_search(7, REQUEST, SearchPosition(offsets))
    assert len(token) == TOKEN_MAX_BYTES
    assert CODEC.decode_search(token, 7, REQUEST).offsets == offsets


def test_every_altered_byte_is_noticed() -> None:
    token = CODEC.encode_scan(7, REQUEST, ScanPosition(b"last"))
    for place in range(len(token)):
        altered = token[:place] + bytes([token[place] ^ 1]) + token[place + 1 :]
        with pytest.raises(InvalidToken) as caught:
            CODEC.decode_scan(altered, 7, REQUEST)
        assert caught.value.details.field == "token"


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (b"x", "no token"),
        (b"x" * (TOKEN_MAX_BYTES + 1), "no token"),
        (CODEC.encode_scan(7, REQUEST, ScanPosition(b"last"))[:-1], "altered"),
        (CODEC.encode_scan(7, REQUEST, ScanPosition(b"last")) + b"x", "altered"),
        (TokenCodec("cluster-b").encode_scan(7, REQUEST, ScanPosition(b"last")), "another cluster"),
        (CODEC.encode_scan(8, REQUEST, ScanPosition(b"last")), "another collection"),
        (CODEC.encode_scan(7, fingerprint([b"other"]), ScanPosition(b"last")), "another request"),
        (CODEC.encode_search(7, REQUEST, SearchPosition({1: 1})), "another kind"),
    ],
)
def test_foreign_tokens_are_refused(token: bytes, why: str) -> None:
    with pytest.raises(InvalidToken, match=why):
        CODEC.decode_scan(token, 7, REQUEST)


def test_fingerprint_keeps_parts_apart() -> None:
    assert fingerprint([b"ab", b"c"]) != fingerprint([b"a", b"bc"])
