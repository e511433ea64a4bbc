"""What a leaf makes of the data that its disk holds for a shard, given what the map says.

The identity of the data, its incarnation, decides: data that the map knows by another identity must never serve, and a replica
whose data is lost is never taken for the one that the map trusts. As long as other replicas are in sync such data is worth
nothing, so it is created anew and asks to join; if this is the only replica in sync, that is a loss, and a person must know.

Pure: imports only the standard library and other pure files.
"""

from enum import Enum
from typing import NamedTuple

from kvshard.clustermap import ShardConfig
from kvshard.errors import DataLoss, ErrorDetails, FailedPrecondition


class Held(NamedTuple):
    """What the disk holds. incarnation: empty when there is nothing. is_whole: no snapshot was being installed."""

    incarnation: str
    has_history: bool
    is_whole: bool = True


class Identity(Enum):
    """What becomes of a replica's data before it is opened.

    KEEP it; CLAIM: tell the map its incarnation; CREATE: make empty data with a new incarnation (wiping what there is), which
    asks to join; CREATE_AND_CLAIM: the same at the bootstrap, where the map counts on it already.
    """

    KEEP = "keep"
    CLAIM = "claim"
    CREATE = "create"
    CREATE_AND_CLAIM = "create and claim"


def identify(config: ShardConfig, leaf: str, held: Held) -> Identity:
    """Decide for a shard that has a replica on this leaf, or shall have one.

    Raises DataLoss when the only replica in sync is not what the map expects, FailedPrecondition when the map knows nothing of
    data with a history: it is another cluster's map, or one that lost what it held.
    """
    member = next((replica for replica in config.replicas if replica.leaf == leaf), None)
    if member is None:
        return Identity.KEEP if held.incarnation and held.is_whole else Identity.CREATE
    if not member.incarnation:
        if not held.incarnation:
            return Identity.CREATE_AND_CLAIM
        if held.has_history:
            raise _unknown_data(config.id, leaf, held.incarnation)
        return Identity.CLAIM
    if held.incarnation == member.incarnation and held.is_whole:
        return Identity.KEEP
    if all(replica.leaf == leaf for replica in config.in_sync):
        raise _wrong_data(config.id, leaf, member.incarnation, held.incarnation)
    return Identity.CREATE


def _unknown_data(shard: int, leaf: str, held: str) -> FailedPrecondition:
    text = f"shard {shard}: leaf {leaf} holds the data {held}, which the cluster map does not know"
    cause = "it is another cluster's, or the coordinator has lost what it held"
    return FailedPrecondition(f"{text}: {cause}", ErrorDetails(shards=(shard,)))


def _wrong_data(shard: int, leaf: str, expected: str, held: str) -> DataLoss:
    lost = f"the data of this replica is lost: leaf {leaf} holds none"
    found = f"leaf {leaf} holds the data {held}" if held else lost
    return DataLoss(f"shard {shard}: {found}, the cluster map expects {expected}", ErrorDetails(shards=(shard,)))
