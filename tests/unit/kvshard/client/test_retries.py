"""The table at the head of kvshard/client/retries.py, line by line."""

import pytest

from kvshard.client.retries import NO_RETRIES, RetryPolicy, may_retry, retry_delay, told
from kvshard.errors import (
    DeadlineExceeded,
    ErrorDetails,
    Expired,
    Internal,
    InvalidArgument,
    KvShardError,
    NotReady,
    ResourceExhausted,
    StorageFailed,
    Unavailable,
    VersionConflict,
)

UNKNOWN = ErrorDetails(maybe_applied=True)
PUSHBACK = ErrorDetails(retry_after_ms=700)
POLICY = RetryPolicy(max_attempts=4, base_delay_s=0.1, max_delay_s=0.3)


@pytest.mark.parametrize(
    ("error", "repeatable", "other"),
    [
        (Unavailable("x"), True, True),
        (NotReady("x"), True, True),
        (Unavailable("x", UNKNOWN), True, False),
        (StorageFailed("x"), False, False),
        (ResourceExhausted("x"), False, False),
        (ResourceExhausted("x", PUSHBACK), True, True),
        (DeadlineExceeded("x"), False, False),
        (DeadlineExceeded("x", UNKNOWN), False, False),
        (VersionConflict("x"), False, False),
        (Expired("x"), False, False),
        (Expired("x", UNKNOWN), False, False),
        (InvalidArgument("x"), False, False),
        (Internal("x"), False, False),
    ],
)
def test_what_may_be_asked_again(error: KvShardError, repeatable: bool, other: bool) -> None:
    assert may_retry(error, is_repeatable=True) is repeatable
    assert may_retry(error, is_repeatable=False) is other


@pytest.mark.parametrize(
    ("error", "attempts", "left", "delay"),
    [
        (Unavailable("x"), 1, 9.0, 0.1),
        (Unavailable("x"), 2, 9.0, 0.2),
        (Unavailable("x"), 3, 9.0, 0.3),
        (Unavailable("x"), 4, 9.0, None),
        (Unavailable("x"), 1, 0.1, None),
        (Unavailable("x"), 1, 0.11, 0.1),
        (ResourceExhausted("x", PUSHBACK), 1, 9.0, 0.7),
        (ResourceExhausted("x", PUSHBACK), 1, 0.6, None),
        (InvalidArgument("x"), 1, 9.0, None),
    ],
)
def test_when_to_ask_again(error: KvShardError, attempts: int, left: float, delay: float | None) -> None:
    found = retry_delay(POLICY, error, is_repeatable=True, attempts=attempts, now=50.0, deadline=50.0 + left, share=0.0)
    assert found == (None if delay is None else pytest.approx(delay))


def test_a_random_half_is_taken_off() -> None:
    delays = [
        retry_delay(POLICY, Unavailable("x"), is_repeatable=True, attempts=1, now=0.0, deadline=9.0, share=share)
        for share in (0.0, 0.5, 1.0)
    ]
    assert delays == pytest.approx([0.1, 0.075, 0.05])


def test_those_who_were_refused_together_do_not_come_back_together() -> None:
    error = ResourceExhausted("x", PUSHBACK)
    delays = [
        retry_delay(POLICY, error, is_repeatable=True, attempts=1, now=0.0, deadline=9.0, share=share)
        for share in (0.0, 0.5, 1.0)
    ]
    assert delays == pytest.approx([0.7, 0.875, 1.05])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_deadline_of_the_longest_call_ends_it_and_not_the_number_of_attempts(share: float) -> None:
    now, attempts = 0.0, 1
    while now < 60.0:
        policy, error = RetryPolicy(), Unavailable("connection refused at once")
        delay = retry_delay(policy, error, is_repeatable=True, attempts=attempts, now=now, deadline=60.0, share=share)
        if delay is None:
            break
        now, attempts = now + delay, attempts + 1
    assert now >= 60.0 - RetryPolicy().max_delay_s


def test_no_retries() -> None:
    error = Unavailable("x")
    assert retry_delay(NO_RETRIES, error, is_repeatable=True, attempts=1, now=0.0, deadline=9.0, share=0.0) is None


@pytest.mark.parametrize("wrong", [{"max_attempts": 0}, {"base_delay_s": -1}, {"base_delay_s": 2.0, "max_delay_s": 1.0}])
def test_a_policy_makes_sense(wrong: dict) -> None:
    with pytest.raises(ValueError, match="max_attempts"):
        RetryPolicy(**wrong)


def test_a_huge_number_of_attempts_does_not_overflow() -> None:
    policy = RetryPolicy(max_attempts=10_000)
    delay = retry_delay(policy, Unavailable("x"), is_repeatable=True, attempts=5_000, now=0.0, deadline=9.0, share=0.0)
    assert delay == policy.max_delay_s


def test_the_end_of_the_time_for_a_repetition_does_not_hide_why_there_was_one() -> None:
    cause, late, other = Unavailable("2 of 8 shards"), DeadlineExceeded("late"), Internal("x")
    assert told(late, cause) is cause
    assert told(late, None) is late
    in_doubt = DeadlineExceeded("late", UNKNOWN)
    assert told(in_doubt, cause) is in_doubt
    assert told(other, cause) is other
