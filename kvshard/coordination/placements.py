"""What the balancer and operators write of leaves and of where shards are wanted.

A map that names a leaf it does not have is refused by everybody, so a leaf's entry goes in two steps: first it is marked, then,
when no shard names it, deleted. Whoever adds a leaf to a shard's `desired` compares that leaf's entry too: after the mark such
a write fails. Nothing here changes an epoch.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from kvshard.clustermap import Leaf, ShardConfig
from kvshard.coordination import mapwriter
from kvshard.coordination.base import ABSENT, Compare, Coordinator, Delete, KeyValue, Put
from kvshard.coordination.leases import alive_key, read_alive
from kvshard.coordination.mapwriter import decode_leaf, decode_shard, leaf_key, put_leaf, put_shard, shard_key, until_done
from kvshard.errors import ErrorDetails, FailedPrecondition, LeafNotFound, ShardNotFound

SHARDS_NAMED_MAX = 16
"""Shards that an error's text lists; its details have more."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What became of a leaf that was to be removed. is_done False: it is dead, and its entry goes when it is healed elsewhere.

    shards: that still name it.
    """

    is_done: bool
    shards: tuple[int, ...] = ()


async def set_desired(
    coordinator: Coordinator, planned: ShardConfig, desired: tuple[str, ...], guards: Collection[Compare] = ()
) -> bool:
    """Say where a shard is wanted, if it and the leaves added are as they were when that was planned. Tried once.

    guards: further conditions. False: something has changed, or the guards do not hold. Raises CoordinatorUnavailable.
    """
    item = await coordinator.get(shard_key(planned.id))
    if item is None or decode_shard(item) != planned:
        return False
    compares = [Compare(item.key, item.revision), *guards]
    for leaf in sorted(set(desired) - set(planned.desired)):
        entry = await coordinator.get(leaf_key(leaf))
        if entry is None or not decode_leaf(entry).may_hold:
            return False
        compares.append(Compare(entry.key, entry.revision))
    result = await coordinator.txn(compares, [put_shard(replace(planned, desired=desired))])
    return result.has_succeeded


async def forget_leaf(coordinator: Coordinator, leaf: str, guards: Collection[Compare] = ()) -> bool:
    """Delete the entry of a leaf that was marked, if no shard names it. Tried once. Raises CoordinatorUnavailable."""
    entry = await coordinator.get(leaf_key(leaf))
    if entry is None:
        return True
    if decode_leaf(entry).may_hold:
        return False
    if _naming(leaf, await _read_shards(coordinator)):
        return False
    return await _delete_entry(coordinator, entry, guards)


async def _delete_entry(coordinator: Coordinator, entry: KeyValue, guards: Collection[Compare] = ()) -> bool:
    meta = await coordinator.get(mapwriter.META_KEY)
    if meta is None:
        return False
    # The meta is rewritten beside every delete: see mapwriter.
    compares = [Compare(entry.key, entry.revision), Compare(meta.key, meta.revision), *guards]
    return (await coordinator.txn(compares, [Delete(entry.key), Put(meta.key, meta.value)])).has_succeeded


async def set_draining(coordinator: Coordinator, leaf: str, is_draining: bool) -> Leaf:
    """Mark a leaf so that the balancer empties it, or take the mark away. Nothing happens where it is so already.

    Raises LeafNotFound; FailedPrecondition when the leaves that stay could not keep the shards writable.
    """

    async def attempt() -> Leaf | None:
        entries = await _read_leaves(coordinator)
        entry = entries.get(leaf)
        if entry is None:
            raise unknown_leaf(leaf, entries)
        held = decode_leaf(entry)
        if held.is_removed:
            raise FailedPrecondition(f"leaf {leaf} was removed by force; its entry goes when its shards are healed")
        if held.is_draining == is_draining:
            return held
        if is_draining:
            await _check_enough_stay(coordinator, leaf, entries)
        wanted = replace(held, is_draining=is_draining)
        return wanted if await mapwriter.replace_keys(coordinator, [(entry.key, entry)], [put_leaf(wanted)]) else None

    return await until_done(attempt, f"drain leaf {leaf}")


async def _check_enough_stay(coordinator: Coordinator, leaf: str, entries: Mapping[str, KeyValue]) -> None:
    meta = await coordinator.get(mapwriter.META_KEY)
    replicas = mapwriter.decode_meta(meta.value).replicas if meta is not None else 1
    least = max(1, replicas - 1)
    stay = sum(decode_leaf(entry).may_hold for name, entry in entries.items() if name != leaf)
    if stay < least:
        leaves = "1 leaf" if stay == 1 else f"{stay or 'no'} leaves"
        text = f"without leaf {leaf} only {leaves} may hold replicas, and writes need {least} of {replicas} in sync"
        raise FailedPrecondition(f"{text}: add a leaf first", ErrorDetails(limit=least))


async def remove_leaf(coordinator: Coordinator, leaf: str, is_forced: bool = False) -> Removal:
    """Take a leaf out of the map.

    is_forced: also one that shards still name, if it is not alive: nobody waits for it any more. Raises LeafNotFound;
    FailedPrecondition, which names the shards, when it still holds something (or shall), or is alive where that matters.
    """

    is_marked = False

    async def attempt() -> Removal | None:
        nonlocal is_marked
        entries = await _read_leaves(coordinator)
        entry = entries.get(leaf)
        if entry is None:
            if is_marked:
                return Removal(is_done=True)  # Our own delete whose answer was lost, or the balancer's.
            raise unknown_leaf(leaf, entries)
        held = decode_leaf(entry)
        shards = _naming(leaf, await _read_shards(coordinator))
        if shards and not is_forced and not held.is_removed:
            raise still_holds(leaf, shards, held.is_draining)
        if shards:
            is_marked = True
            return await _mark_removed(coordinator, entry, shards)
        if held.may_hold:
            marked = put_leaf(replace(held, is_draining=True))
            await mapwriter.replace_keys(coordinator, [(entry.key, entry)], [marked])
            return None  # And look at the shards once more: from now on none can come to name it.
        is_marked = True
        return Removal(is_done=True) if await _delete_entry(coordinator, entry) else None

    return await until_done(attempt, f"remove leaf {leaf}")


async def _mark_removed(coordinator: Coordinator, entry: KeyValue, shards: tuple[int, ...]) -> Removal | None:
    held = decode_leaf(entry)
    if held.is_removed:
        return Removal(is_done=False, shards=shards)
    if held.id in await read_alive(coordinator):
        text = f"leaf {held.id} is alive and holds {_count(shards)}; drain it (kvshard leaf drain {held.id}), or stop it first"
        raise FailedPrecondition(text, ErrorDetails(shards=shards))
    compares = [Compare(entry.key, entry.revision), Compare(alive_key(held.id), ABSENT)]
    result = await coordinator.txn(compares, [put_leaf(replace(held, is_removed=True))])
    return Removal(is_done=False, shards=shards) if result.has_succeeded else None


async def move_replica(coordinator: Coordinator, shard: int, source: str, target: str) -> ShardConfig:
    """Want a shard's replica on another leaf; where the source is the wanted primary, the target becomes it.

    Nothing happens where it is wanted so already. Raises ShardNotFound, LeafNotFound; FailedPrecondition when the target may
    not hold it.
    """

    async def attempt() -> ShardConfig | None:
        leaves = await _read_leaves(coordinator)
        held = await _shard_of(coordinator, shard)
        for leaf in (source, target):
            if leaf not in leaves:
                raise unknown_leaf(leaf, leaves)
        if target in held.desired and source not in held.desired:
            return held
        decoded = {name: decode_leaf(entry) for name, entry in leaves.items()}
        _check_move(held, decoded[source], decoded[target], decoded)
        if target not in await read_alive(coordinator):
            raise FailedPrecondition(f"leaf {target} is not alive: it could not take the shard")
        desired = tuple(target if leaf == source else leaf for leaf in held.desired)
        return replace(held, desired=desired) if await set_desired(coordinator, held, desired) else None

    return await until_done(attempt, f"move shard {shard}")


def _check_move(held: ShardConfig, source: Leaf, target: Leaf, leaves: Mapping[str, Leaf]) -> None:
    where = f"shard {held.id} is wanted on {', '.join(held.desired) or 'no leaf'}"
    if source.id not in held.desired:
        raise FailedPrecondition(f"{where}, not on {source.id}", ErrorDetails(field="from", shards=(held.id,)))
    if target.id in held.desired:
        raise FailedPrecondition(f"{where} already", ErrorDetails(field="to", shards=(held.id,)))
    if not target.may_hold:
        why = "draining" if target.is_draining else "removed" if target.is_removed else "of weight 0"
        raise FailedPrecondition(f"leaf {target.id} is {why}: it takes no replicas", ErrorDetails(field="to"))
    rest = {leaves[leaf].zone for leaf in held.desired if leaf != source.id}
    if target.zone in rest and source.zone not in rest:
        text = f"shard {held.id} has a replica in zone {target.zone!r} already, and would have none in {source.zone!r}"
        raise FailedPrecondition(f"{text}: the balancer would move it back", ErrorDetails(field="to", shards=(held.id,)))


async def move_primary(coordinator: Coordinator, shard: int, target: str) -> ShardConfig:
    """Want another of a shard's leaves as its primary. Nothing happens where it is wanted so already.

    Raises ShardNotFound, LeafNotFound; FailedPrecondition when the shard is not wanted on that leaf.
    """

    async def attempt() -> ShardConfig | None:
        leaves = await _read_leaves(coordinator)
        held = await _shard_of(coordinator, shard)
        if target not in leaves:
            raise unknown_leaf(target, leaves)
        if held.desired[:1] == (target,):
            return held
        if target not in held.desired:
            where = f"shard {shard} is wanted on {', '.join(held.desired) or 'no leaf'}, not on {target}"
            raise FailedPrecondition(f"{where}: move a replica there first", ErrorDetails(field="primary", shards=(shard,)))
        desired = (target, *(leaf for leaf in held.desired if leaf != target))
        return replace(held, desired=desired) if await set_desired(coordinator, held, desired) else None

    return await until_done(attempt, f"move the primary of shard {shard}")


async def _shard_of(coordinator: Coordinator, shard: int) -> ShardConfig:
    item = await coordinator.get(shard_key(shard))
    if item is not None:
        return decode_shard(item)
    known = [str(each.id) for each in await _read_shards(coordinator)]
    raise ShardNotFound(f"there is no shard {shard}{_nearest(str(shard), known)}", ErrorDetails(field="shard"))


async def _read_leaves(coordinator: Coordinator) -> dict[str, KeyValue]:
    items = (await coordinator.get_prefix(mapwriter.LEAF_PREFIX)).items
    return {item.key.removeprefix(mapwriter.LEAF_PREFIX): item for item in items}


async def _read_shards(coordinator: Coordinator) -> list[ShardConfig]:
    return [decode_shard(item) for item in (await coordinator.get_prefix(mapwriter.SHARD_PREFIX)).items]


def _naming(leaf: str, shards: Iterable[ShardConfig]) -> tuple[int, ...]:
    named = (each.id for each in shards if leaf in each.desired or any(replica.leaf == leaf for replica in each.replicas))
    return tuple(sorted(named))


def unknown_leaf(leaf: str, known: Iterable[str]) -> LeafNotFound:
    """The error for a leaf that the cluster does not have; it suggests the one that may have been meant."""
    return LeafNotFound(f"there is no leaf {leaf!r}{_nearest(leaf, list(known))}", ErrorDetails(field="leaf"))


def still_holds(leaf: str, shards: tuple[int, ...], is_draining: bool) -> FailedPrecondition:
    """The error for a leaf that cannot be removed yet; it names what the leaf holds."""
    advice = "it is being drained, wait for that" if is_draining else f"drain it first: kvshard leaf drain {leaf}"
    return FailedPrecondition(f"leaf {leaf} still holds {_count(shards)}; {advice}", ErrorDetails(shards=shards))


def _count(shards: tuple[int, ...]) -> str:
    listed = ", ".join(map(str, shards[:SHARDS_NAMED_MAX])) + (", ..." if len(shards) > SHARDS_NAMED_MAX else "")
    return f"{len(shards)} shard{'s' if len(shards) != 1 else ''} ({listed})"


def _nearest(name: str, known: list[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if found:
        return f"; did you mean {found[0]}?"
    return f"; there are {', '.join(sorted(known)[:SHARDS_NAMED_MAX])}" if known else ""
