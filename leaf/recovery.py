"""How a replica comes up from what its disk holds.

The identity of the data comes first: a replica that the map knows by another identity, or of which this disk holds nothing,
must never serve; nor may data that a map without any identity for it does not know, whose ranges and collections may be others.
Then the log's entries above the applied seqno are applied: for a sole replica all of them are committed.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from kvshard.clustermap import ClusterMap, ShardConfig
from kvshard.errors import DataLoss, ErrorDetails, FailedPrecondition
from leaf.committer import Committer
from leaf.shard_store import ShardStore

_log = structlog.get_logger(__name__)


class Maps(Protocol):
    """What a leaf wants of the map store."""

    @property
    def current(self) -> ClusterMap:
        """The newest map."""
        ...

    async def refresh(self) -> ClusterMap:
        """Read the map now."""
        ...

    def subscribe(self, callback: Callable[[ClusterMap], None], /) -> Callable[[], None]:
        """Call back with each map installed from now on."""
        ...

    async def claim_incarnation(self, shard: int, leaf: str, incarnation: str) -> ShardConfig:
        """Record the identity of a replica's data."""
        ...

    async def new_epoch(self, shards: list[int], leaf: str) -> dict[int, int]:
        """Raise the epoch of those shards whose primary is this leaf."""
        ...


async def recover(
    config: ShardConfig, leaf: str, store: ShardStore, committer: Committer, maps: Maps, new_incarnation: Callable[[], str]
) -> None:
    """Load a shard's data and apply its log to the end.

    Raises DataLoss when the data is not what the map expects, FailedPrecondition when the map does not know it, StorageError,
    or what the coordinator raises (try again).
    """
    expected = next(replica.incarnation for replica in config.replicas if replica.leaf == leaf)
    held = store.incarnation(config.id)
    if expected and held != expected:
        raise _wrong_data(config.id, leaf, expected, held)
    if not expected:
        if not held:
            held = new_incarnation()
            # Durable before it is claimed: a claim without data behind it would look like lost data after a crash.
            await committer.persist(*store.incarnation_row(config.id, held))
        elif store.has_history(config.id):
            # The log begins after the claim: whoever made this map is not the cluster that wrote these entries.
            raise _unknown_data(config.id, leaf, held)
        await maps.claim_incarnation(config.id, leaf, held)
    store.load(config.id)
    first = store.state(config.id).applied
    has_more = True
    while has_more:
        has_more = store.replay(config.id)
        await asyncio.sleep(0)  # Other shards' requests are served between the chunks.
    _log.info("replica recovered", shard=config.id, applied=store.state(config.id).applied, replayed_after=first)


def _unknown_data(shard: int, leaf: str, held: str) -> FailedPrecondition:
    text = f"shard {shard}: leaf {leaf} holds the data {held}, which the cluster map does not know"
    cause = "it is another cluster's, or the coordinator has lost what it held"
    return FailedPrecondition(f"{text}: {cause}", ErrorDetails(shards=(shard,)))


def _wrong_data(shard: int, leaf: str, expected: str, held: str) -> DataLoss:
    lost = f"the data of this replica is lost: leaf {leaf} holds none"
    found = f"leaf {leaf} holds the data {held}" if held else lost
    return DataLoss(f"shard {shard}: {found}, the cluster map expects {expected}", ErrorDetails(shards=(shard,)))
