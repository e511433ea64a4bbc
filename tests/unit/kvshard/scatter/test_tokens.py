"""Tokens: they come back as they went, and whatever was touched or belongs elsewhere is refused."""

import pytest

from kvshard.errors import InvalidToken
from kvshard.model import SearchAfter, TermStatistics
from kvshard.scatter.tokens import TOKEN_MAX_BYTES, ScanPosition, SearchPosition, TokenCodec, fingerprint, fits_token
from kvshard.schema import KEYWORD_MAX_CHARS
from kvshard.sorting import SORT_KEYS_MAX

CODEC = TokenCodec("cluster-a")
REQUEST = fingerprint([b"prefix", b"start", b""])


@pytest.mark.parametrize("position", [ScanPosition(b"k"), ScanPosition(b"\0" * 1024, is_incomplete=True)])
def test_scan_round_trip(position: ScanPosition) -> None:
    token = CODEC.encode_scan(7, REQUEST, position)
    assert CODEC.decode_scan(token, 7, REQUEST) == position


@pytest.mark.parametrize(
    "after",
    [
        SearchAfter([], 0.1 + 0.2, b"k"),
        SearchAfter([2**63 - 1, None, 1e300, 2.0, '\u00e9\U0001f600"\n'], 0.0, b"\0\xff" * 512),
    ],
)
def test_search_round_trip(after: SearchAfter) -> None:
    position = SearchPosition(after, 9_990, is_incomplete=True)
    decoded = CODEC.decode_search(CODEC.encode_search(7, REQUEST, position), 7, REQUEST)
    assert decoded == position
    assert decoded.after is not None
    assert [type(value) for value in decoded.after.values] == [type(value) for value in after.values]


def test_what_scores_rest_on_goes_with_a_search() -> None:
    statistics = TermStatistics(1_000, {"title": 12_345}, {"title": {"tail": 7, "\u00e9": 2**40}, "tag": {"k\u20ac": 0}})
    position = SearchPosition(SearchAfter([None], 1.5, b"k"), 10, False, b"x" * 16, statistics, 99, seen={0: 5, 7: 2**40})
    assert CODEC.decode_search(CODEC.encode_search(7, REQUEST, position), 7, REQUEST) == position
    assert fits_token(statistics)
    assert not fits_token(TermStatistics(1, {}, {"title": {f"word{n}": 1 for n in range(1_000)}}))


@pytest.mark.parametrize("char", ["\x01", "\U0001f600", '"'])
def test_largest_search_token_is_accepted(char: str) -> None:
    after = SearchAfter([char * KEYWORD_MAX_CHARS] * SORT_KEYS_MAX, 1.0, b"k" * 1024)
    token = CODEC.encode_search(7, REQUEST, SearchPosition(after, 1))
    assert len(token) <= TOKEN_MAX_BYTES
    assert CODEC.decode_search(token, 7, REQUEST).after == after


def test_a_token_of_ranks_is_refused_as_one_of_an_earlier_version() -> None:
    earlier = CODEC._seal(3, 7, REQUEST, False, b"\0" * 10)
    with pytest.raises(InvalidToken, match="earlier version of the service; begin the search anew"):
        CODEC.decode_search(earlier, 7, REQUEST)


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
        (CODEC.encode_search(7, REQUEST, SearchPosition(SearchAfter([], 1.0, b"k"), 1)), "another kind"),
    ],
)
def test_foreign_tokens_are_refused(token: bytes, why: str) -> None:
    with pytest.raises(InvalidToken, match=why):
        CODEC.decode_scan(token, 7, REQUEST)


def test_fingerprint_keeps_parts_apart() -> None:
    assert fingerprint([b"ab", b"c"]) != fingerprint([b"a", b"bc"])


@pytest.mark.parametrize("is_incomplete", [False, True])
def test_a_token_of_several_collections_holds_that_of_each(is_incomplete: bool) -> None:
    tokens = [b"", CODEC.encode_scan(7, REQUEST, ScanPosition(b"last")), b"x" * TOKEN_MAX_BYTES, b""]
    token = CODEC.encode_several(REQUEST, tokens, is_incomplete)
    assert CODEC.decode_several(token, REQUEST) == (tokens, is_incomplete)
    for wrong, request in ((token[:-1], REQUEST), (token, fingerprint([b"other"])), (tokens[1], REQUEST)):
        with pytest.raises(InvalidToken):
            CODEC.decode_several(wrong, request)
    with pytest.raises(InvalidToken, match="another kind of call"):
        CODEC.decode_search(CODEC.encode_several(REQUEST, [b""], False), 0, REQUEST)
