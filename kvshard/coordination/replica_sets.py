"""What leaves write of the shards that they hold: whose data is which, and each change of a replica set.

A change is tried once. What an unanswered transaction did is not guessed: the outcome is UNKNOWN, and the replica that asked
keeps every restraint until it knows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from kvshard.clustermap import ShardConfig
from kvshard.coordination.base import TXN_OPERATIONS_MAX, Coordinator, CoordinatorUnavailable
from kvshard.coordination.mapwriter import put_shard, read_shard, replace_keys, until_done
from kvshard.errors import ErrorDetails, FailedPrecondition

DESIRED_RACES_MAX = 4
"""Tries lost to a writer of `desired`, which leaves the epoch alone; the balancer writes a shard's once in many seconds. Each
was answered, so that after the last one it is known that nothing was done."""


class CasOutcome(Enum):
    """Of a compare-and-set. UNKNOWN: no answer; it may have been done, or may still be."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class CasResult:
    """The outcome, and what the coordinator holds now, as far as it said so."""

    outcome: CasOutcome
    config: ShardConfig | None = None


async def compare_and_set(coordinator: Coordinator, config: ShardConfig, expected_epoch: int) -> CasResult:
    """Write a shard's replica set and epoch if it is still at the expected epoch; see `ShardConfig.succeeded_by`.

    A new member that is not wanted any more is refused: its leaf may be gone from the map the next moment, and a map that names
    unknown leaves is none.
    """
    held: ShardConfig | None = None
    try:
        for _ in range(DESIRED_RACES_MAX):
            item, held = await read_shard(coordinator, config.id)
            before = {each.leaf for each in held.replicas} | set(held.desired)
            if held.epoch != expected_epoch or any(each.leaf not in before for each in config.replicas):
                return CasResult(CasOutcome.FAILED, held)
            wanted = held.succeeded_by(config)
            if await replace_keys(coordinator, [(item.key, item)], [put_shard(wanted)]):
                return CasResult(CasOutcome.SUCCEEDED, wanted)
    except CoordinatorUnavailable:
        return CasResult(CasOutcome.UNKNOWN)
    return CasResult(CasOutcome.FAILED, held)


async def claim_incarnations(coordinator: Coordinator, leaf: str, incarnations: Mapping[int, str]) -> dict[int, ShardConfig]:
    """Record the identities of the data that a leaf created for its in-sync replicas, by shard, many in one transaction.

    Raises FailedPrecondition when the map has another identity for one of them (this data is not the replica that the map
    trusts), or when the leaf has no in-sync replica of the shard.
    """

    async def claim(some: Mapping[int, str]) -> dict[int, ShardConfig]:
        async def attempt() -> dict[int, ShardConfig] | None:
            read = [await read_shard(coordinator, shard) for shard in some]
            claimed = {config.id: _claimed(config, leaf, some[config.id]) for _, config in read}
            changed = [(item, claimed[config.id]) for item, config in read if claimed[config.id] != config]
            expected = [(item.key, item) for item, _ in changed]
            if changed and not await replace_keys(coordinator, expected, [put_shard(config) for _, config in changed]):
                return None
            return claimed

        return await until_done(attempt, f"claim the shards of leaf {leaf}")

    ordered = sorted(incarnations)
    claimed: dict[int, ShardConfig] = {}
    for first in range(0, len(ordered), TXN_OPERATIONS_MAX):
        claimed |= await claim({shard: incarnations[shard] for shard in ordered[first : first + TXN_OPERATIONS_MAX]})
    return claimed


def _claimed(config: ShardConfig, leaf: str, incarnation: str) -> ShardConfig:
    held = next((replica for replica in config.in_sync if replica.leaf == leaf), None)
    if held is None:
        raise FailedPrecondition(f"leaf {leaf} has no in-sync replica of shard {config.id}")
    if held.incarnation not in ("", incarnation):
        raise FailedPrecondition(
            f"shard {config.id} on leaf {leaf} is incarnation {held.incarnation} in the map, but {incarnation} on its disk: "
            "the data that was acknowledged there is gone or belongs to another cluster",
            ErrorDetails(shards=(config.id,)),
        )
    in_sync = tuple(replace(each, incarnation=incarnation) if each.leaf == leaf else each for each in config.in_sync)
    return replace(config, in_sync=in_sync)
