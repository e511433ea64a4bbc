"""From the legs of a gathered read to its verdict: answer whole, answer in part, or fail."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from kvshard.errors import InvalidArgument, error_of
from kvshard.model import UNKNOWN_AGE
from kvshard.scatter.coverage import Coverage, FailedLeg, coverage_of, shortfall
from kvshard.scatter.leg_result import LegResult
from kvshard.scatter.requests import ReadPolicy

ReplyT = TypeVar("ReplyT")


class ReadState(NamedTuple):
    """The state of a shard that a read saw: the one after this seqno. age_ms: see `model.ShardReadReply`."""

    shard: int
    seqno: int
    age_ms: int

    def older(self, other: "ReadState") -> "ReadState":
        """What both states together can promise."""
        is_unknown = UNKNOWN_AGE in (self.age_ms, other.age_ms)
        age_ms = UNKNOWN_AGE if is_unknown else max(self.age_ms, other.age_ms)
        return ReadState(self.shard, min(self.seqno, other.seqno), age_ms)


def verdict(
    legs: Sequence[LegResult[ReplyT]],
    answered: Mapping[int, int],
    last_known: Callable[[int], int | None],
    policy: ReadPolicy,
    is_continuing_incomplete: bool = False,
) -> Coverage:
    """The coverage of a gathered read (answered: shard -> its documents). Raises when it falls short of the policy."""
    failed = [leg.as_failed() for leg in legs if leg.error is not None]
    if not failed:
        return coverage_of(answered, (), last_known, is_continuing_incomplete)
    coverage = coverage_of(answered, failed, last_known, is_continuing_incomplete)
    raise_request_fault(failed)
    if not policy.is_partial_accepted:
        error = shortfall(coverage, policy.min_coverage)
        if error is not None:
            raise error
    return coverage


def raise_request_fault(failed: Sequence[FailedLeg]) -> None:
    """A request that a leaf finds wrong is wrong everywhere: raise that, instead of calling the shard silent."""
    for leg in failed:
        error = error_of(leg.error)
        if isinstance(error, InvalidArgument):
            raise error
