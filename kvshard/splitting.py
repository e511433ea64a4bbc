"""What a split makes of a shard's entry in the map.

Pure: imports only the standard library and other pure files.
"""

from dataclasses import replace

from kvshard.clustermap import Replica, ShardConfig


def derived_incarnation(parent: str, child: int) -> str:
    """The identity of the child's data, made of the data of a replica of the parent. Every leaf can tell it."""
    return f"{parent}.{child}"


def origin_of(incarnation: str) -> str | None:
    """The identity of the parent's data that this was made of; None: it was not made by a split."""
    origin, dot, _ = incarnation.rpartition(".")
    return origin if dot else None


def divided(parent: ShardConfig, members: frozenset[str] | None = None) -> tuple[ShardConfig, ShardConfig]:
    """(parent, child) as they are once the wanted split is done.

    members: leaves that have the child's data whole on disk (None: all that are in sync). Only those are in sync: one that has
    the entry in its log, but has not applied it, may be put out of the parent before it does, and never will. The child's epoch
    is higher than that of every entry it begins with, so its primary begins with a barrier of its own.
    """
    wanted = parent.split
    assert wanted is not None, f"shard {parent.id} is not to be split"
    in_sync = tuple(
        Replica(each.leaf, derived_incarnation(each.incarnation, wanted.child))
        for each in parent.in_sync
        if members is None or each.leaf in members
    )
    child = ShardConfig(
        wanted.child, wanted.at_slot, parent.last_slot, parent.epoch + 1, parent.primary, in_sync, (), parent.desired
    )
    return replace(parent, last_slot=wanted.at_slot - 1, split=None, cuts=parent.cuts + 1), child
