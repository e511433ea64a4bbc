import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshard.errors import InvalidArgument
from kvshard.limits import SHARDS_MAX
from kvshard.scatter.min_versions import ENCODED_MAX_BYTES, NOTHING_WANTED, TOKENS_MAX, MinVersions
from kvshard.scatter.watermarks import Watermarks

WANTED = st.dictionaries(st.integers(0, 2**16 - 1), st.integers(1, 2**63 - 1), max_size=20)


def content(wanted: MinVersions) -> dict[int, int]:
    return {shard: wanted.of(shard) for shard in wanted.shards}


@given(WANTED)
def test_a_token_comes_back_as_it_was(known: dict[int, int]) -> None:
    assert content(MinVersions.decode(MinVersions(known).encode())) == known


@given(st.lists(WANTED, max_size=4))
def test_several_tokens_want_the_newest_of_each_shard(several: list[dict[int, int]]) -> None:
    wanted = content(MinVersions.decode_all([MinVersions(known).encode() for known in several]))
    shards = {shard for known in several for shard in known}
    assert wanted == {shard: max(known.get(shard, 0) for known in several) for shard in shards}


def test_nothing_written_is_an_empty_token() -> None:
    wanted = MinVersions()
    wanted.want(3, 0)
    assert (wanted.encode(), bool(wanted), wanted.of(3)) == (b"", False, 0)
    assert not MinVersions.decode(b"")
    assert not NOTHING_WANTED


@pytest.mark.parametrize(
    "token",
    [
        b"x",
        b"garbage",
        Watermarks({1: 2}).encode(),
        MinVersions({1: 2}).encode()[:-1],
        MinVersions({1: 2}).encode() + bytes(12),
        b"\x77" + bytes(4),
        bytes(ENCODED_MAX_BYTES + 12),
    ],
)
def test_what_is_no_token_is_refused(token: bytes) -> None:
    with pytest.raises(InvalidArgument) as refused:
        MinVersions.decode_all([MinVersions({4: 5}).encode(), token])
    assert refused.value.details.field == "min_versions[1]"


@given(st.binary(min_size=1, max_size=40), st.integers(0, 28), st.integers(1, 255))
def test_no_altered_token_passes(garbage: bytes, place: int, change: int) -> None:
    token = bytearray(MinVersions({1: 2, 7: 9}).encode())
    token[place] ^= change
    for each in (bytes(token), garbage):
        with pytest.raises(InvalidArgument):
            MinVersions.decode(each)


def test_the_longest_token_and_the_most_tokens() -> None:
    longest = MinVersions(dict.fromkeys(range(SHARDS_MAX), 2**63 - 1)).encode()
    assert len(longest) == ENCODED_MAX_BYTES
    assert len(content(MinVersions.decode(longest))) == SHARDS_MAX
    with pytest.raises(InvalidArgument, match="at most 1000 tokens") as refused:
        MinVersions.decode_all([longest] * (TOKENS_MAX + 1))
    assert (refused.value.details.field, refused.value.details.limit) == ("min_versions", TOKENS_MAX)
