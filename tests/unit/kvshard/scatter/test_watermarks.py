"""Watermarks, and what a write may say of itself when it is sent again."""

import pytest

from kvshard.errors import ErrorDetails, Expired, InvalidArgument, Unavailable
from kvshard.model import ShardWrite
from kvshard.scatter import watermarks
from kvshard.scatter.watermarks import Repetition, Watermarks


def test_they_only_grow() -> None:
    marks = Watermarks()
    for seqno in (3, 7, 5):
        marks.learn(1, seqno)
    assert (marks.of(1), marks.of(2)) == (7, 0)


def test_they_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watermarks, "SHARDS_REMEMBERED", 2)
    marks = Watermarks()
    for shard in range(3):
        marks.learn(shard, 1)
    assert [marks.of(shard) for shard in range(3)] == [0, 1, 1]


def test_a_client_can_keep_them() -> None:
    marks = Watermarks({4095: 2**60, 0: 1})
    kept = Watermarks.decode(marks.encode())
    assert (kept.of(4095), kept.of(0), kept.of(1)) == (2**60, 1, 0)
    assert Watermarks.decode(b"").of(0) == 0


@pytest.mark.parametrize("bad", [b"\x02", b"\x01abc", b"x" * 13, b"\x01" + bytes(12 * 10_000)])
def test_what_no_router_gave_is_refused(bad: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Watermarks.decode(bad)
    assert caught.value.details.field == "request_id.watermarks"


def repetition(since: int = 5, is_retry: bool = False) -> Repetition:
    return Repetition(ShardWrite(0, 1, 1, [b"k"], [b"v"], client="c", number=1, since=since), is_retry)


def expired(committed: int | None) -> Expired:
    return Expired("x", ErrorDetails(committed=committed))


class TestRepetition:
    def test_a_first_sending_that_knew_too_little_catches_up_once(self) -> None:
        write = repetition()
        assert write.may_send_at_once(expired(90))
        assert write.next_sending(2).since == 90
        assert not write.may_send_at_once(expired(95))

    def test_one_that_may_be_done_must_not(self) -> None:
        write = repetition()
        assert not write.may_send_at_once(Unavailable("lost", ErrorDetails(maybe_applied=True)))
        assert not write.may_send_at_once(expired(90))
        assert write.next_sending(1).since == 5
        assert not repetition(is_retry=True).may_send_at_once(expired(90))

    def test_a_refusal_leaves_it_undone(self) -> None:
        write = repetition()
        assert not write.may_send_at_once(Unavailable("refused"))
        assert write.may_send_at_once(expired(90))

    @pytest.mark.parametrize("committed", [None, 0, 5])
    def test_nothing_new_is_no_reason(self, committed: int | None) -> None:
        assert not repetition().may_send_at_once(expired(committed))
