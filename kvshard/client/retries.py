"""When the client asks again after a failure: one pure function.

| call | error says | asked again |
|---|---|---|
| any | Unavailable, nothing was done (is_retryable, not maybe_applied) | yes |
| any | ResourceExhausted with retry_after_ms, nothing was done | yes, after that long or up to half longer |
| repeatable | one of these two, outcome unknown | yes: twice is as good as once |
| not repeatable | outcome unknown (maybe_applied) | no: a second one could undo what came between |
| any | Expired | no: nobody will ever know more |
| any | DeadlineExceeded | no: the time of the call is over |
| any | anything else | no: the same answer would come again |

Repeatable are the reads, the writes of keys, since their ids make a shard do them once, and the creation of a collection; not
its drop. Never more than max_attempts, never past the call's deadline.

Pure: imports only the standard library and other pure files.
"""

from dataclasses import dataclass

from kvshard.errors import DeadlineExceeded, KvShardError, ResourceExhausted, Unavailable


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how fast the client asks again.

    Delay before attempt n + 1: min(max_delay_s, base_delay_s * 2**(n-1)), of which a random half is taken off, so that many
    clients that failed together do not come back together.

    max_attempts 128: with these delays, even if the half is taken off all of them, the attempts last for 61 s, more than the
    60 s to which a router cuts its calls, so that the deadline ends a call; the bound stands for one that has a longer timeout.
    """

    max_attempts: int = 128
    base_delay_s: float = 0.02
    max_delay_s: float = 1.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.base_delay_s < 0 or self.max_delay_s < self.base_delay_s:
            raise ValueError(f"max_attempts >= 1 and 0 <= base_delay_s <= max_delay_s wanted, not {self!r}")


NO_RETRIES = RetryPolicy(max_attempts=1)
"""Every failure goes straight to the caller."""


def may_retry(error: KvShardError, *, is_repeatable: bool) -> bool:
    """Whether the same call may be made again without asking the caller: see the table at the head of this file."""
    if error.details.maybe_applied and not is_repeatable:
        return False
    if isinstance(error, ResourceExhausted):
        return error.details.retry_after_ms is not None
    return isinstance(error, Unavailable) and error.is_retryable


def told(error: KvShardError, before: KvShardError | None) -> KvShardError:
    """What a repeated call failed with: that the time for the last repetition ran out tells less than why there was one.

    before: what the attempt before this one failed with. A write that may have been done is told as such.
    """
    if before is None or not isinstance(error, DeadlineExceeded) or error.details.maybe_applied:
        return error
    return before


def retry_delay(
    policy: RetryPolicy,
    error: KvShardError,
    *,
    is_repeatable: bool,
    attempts: int,
    now: float,
    deadline: float,
    share: float,
) -> float | None:
    """Seconds to wait before asking again, or None to give the error to the caller. attempts: made so far.

    share: a random number from 0 to 1.
    """
    if attempts >= policy.max_attempts or not may_retry(error, is_repeatable=is_repeatable):
        return None
    # 2.0**attempts overflows a float from 1024 on; the delay is at max_delay_s long before.
    full = min(policy.max_delay_s, policy.base_delay_s * 2.0 ** min(attempts - 1, 30))
    delay = full * (1 - share / 2)
    if error.details.retry_after_ms is not None:
        # All who were refused were told the same: half of that is spread, and none comes earlier than it was asked to.
        delay = max(delay, error.details.retry_after_ms / 1000 * (1 + share / 2))
    return delay if now + delay < deadline else None
