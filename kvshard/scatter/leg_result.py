"""How a leg ended, as data: a leg that failed is a result like any other, so that one dead leaf does not end the others."""

from dataclasses import replace
from typing import Generic, NamedTuple, TypeVar

from kvshard.errors import Internal, KvShardError, record_of
from kvshard.rpc.leaf_client import Answer
from kvshard.scatter.coverage import FailedLeg
from kvshard.scatter.ledger import LegTime, network_of
from kvshard.tail.executor import LegOutcome
from kvshard.tail.hedging import Refusal
from kvshard.tail.leg_events import AttemptKind, AttemptRecord

ReplyT = TypeVar("ReplyT")


class LegResult(NamedTuple, Generic[ReplyT]):
    """How a leg ended: with an answer, or with an error. leaf: who answered, or empty. ended_at: on the monotonic clock.

    tries: the attempts one by one; empty when the first one was answered and nothing else happened. refused: why hedges were
    not sent.

    A named tuple, since every request makes some, and a frozen dataclass takes four times as long to make.
    """

    shard: int
    answer: Answer[ReplyT] | None
    error: KvShardError | None
    leaf: str
    replicas_tried: tuple[str, ...]
    attempts: int
    total_us: int
    ended_at: float
    tries: tuple[AttemptRecord, ...] = ()
    refused: tuple[Refusal, ...] = ()

    @property
    def reply(self) -> ReplyT:
        """What the leaf answered; raises the leg's error when it failed."""
        if self.answer is None:
            raise self.error or Internal("the leg has neither an answer nor an error")
        return self.answer.reply

    def as_failed(self) -> FailedLeg:
        """The leg for the coverage; only of one that failed."""
        return FailedLeg(self.shard, record_of(self.error or Internal("the leg has no error")), self.replicas_tried)

    def as_time(self) -> LegTime:
        """The leg for the ledger."""
        tries = self.tries
        if not tries and self.error is not None and len(self.replicas_tried) == 1:
            # Nobody kept a record of a single attempt, but why it failed is worth a row.
            reason = self.error.reason.lower()
            tries = (AttemptRecord(self.replicas_tried[0], AttemptKind.FIRST, 0.0, self.total_us / 1e6, reason),)
        queue_us, service_us = (self.answer.queue_us, self.answer.service_us) if self.answer else (0, 0)
        network_us = network_of(self.total_us, queue_us, service_us, tries) if self.answer else 0
        return LegTime(
            self.shard,
            self.leaf,
            self.attempts,
            self.total_us,
            queue_us,
            service_us,
            self.ended_at,
            network_us,
            tries,
            tuple(sorted(reason.value for reason in self.refused)),
        )


def leg_result(outcome: LegOutcome[ReplyT], ended_at: float) -> LegResult[ReplyT]:
    """What the attempts of a leg came to; its error names shard and replicas."""
    shard, answer, error, attempts, tried, winner, total_us, tries, refused = outcome
    if error is not None:
        error = naming(error, shard, tried)
    return LegResult(shard, answer, error, winner or "", tried, attempts, total_us, ended_at, tries, refused)


def naming(error: KvShardError, shard: int, tried: tuple[str, ...]) -> KvShardError:
    """The error with the shard it concerns and the leaves that were asked, where the leaf did not say so itself."""
    details = error.details
    named = replace(details, shards=details.shards or (shard,), replicas_tried=details.replicas_tried or tried)
    return error if named == details else type(error)(error.message, named)
