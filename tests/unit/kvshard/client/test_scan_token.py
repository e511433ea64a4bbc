"""Tokens of a scan: whatever was put in comes out, and nothing else is accepted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshard.client.scan_token import ScanPosition, decode_position, encode_position
from kvshard.errors import InvalidToken

SCAN = (b"docs", b"a", b"", b"z")
positions = st.builds(ScanPosition, st.binary(max_size=20), st.binary(max_size=40), st.binary(max_size=20), st.booleans())


@given(positions)
def test_round_trip(position: ScanPosition) -> None:
    assert decode_position(encode_position(position, SCAN), SCAN) == position


@given(positions, st.data())
def test_an_altered_token_is_refused(position: ScanPosition, data: st.DataObject) -> None:
    token = encode_position(position, SCAN)
    at = data.draw(st.integers(0, len(token) - 1))
    altered = token[:at] + bytes([token[at] ^ data.draw(st.integers(1, 255))]) + token[at + 1 :]
    for wrong in (altered, token[:at], token + b"x"):
        with pytest.raises(InvalidToken):
            decode_position(wrong, SCAN)


@pytest.mark.parametrize("other", [(b"docs", b"a", b"z", b""), (b"doc", b"sa", b"", b"z"), (b"docs", b"a", b"", b"y")])
def test_a_token_belongs_to_its_scan(other: tuple[bytes, ...]) -> None:
    with pytest.raises(InvalidToken):
        decode_position(encode_position(ScanPosition(b"a", b"t", b"k"), SCAN), other)
