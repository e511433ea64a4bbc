"""From the legs of a gathered read to its verdict: answer whole, answer in part, or fail."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from kvshard.errors import InvalidArgument, error_of
from router.coverage import Coverage, FailedLeg, coverage_of, shortfall
from router.requests import ReadPolicy
from router.scatter import LegResult

ReplyT = TypeVar("ReplyT")


def verdict(
    legs: Sequence[LegResult[ReplyT]],
    answered: Mapping[int, int],
    last_known: Callable[[int], int | None],
    policy: ReadPolicy,
    is_continuing_incomplete: bool = False,
) -> Coverage:
    """The coverage of a gathered read (answered: shard -> its documents). Raises when it falls short of the policy."""
    failed = [leg.as_failed() for leg in legs if leg.error is not None]
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
