"""What is written into the map for the split of a shard: the wish, and at its end parent and child together.

A shard's number is never used again, so the child's is one more than every number that the map has, wanted children among them.
Two who ask at the same time would choose the same one: every wish also rewrites `map/meta`, and compares it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from kvshard.clustermap import SHARD_ID_MAX, ShardConfig, WantedSplit
from kvshard.coordination.base import ABSENT, Compare, Coordinator, CoordinatorUnavailable, KeyValue, Put
from kvshard.coordination.mapwriter import (
    META_KEY,
    SHARD_PREFIX,
    decode_shard,
    encode_meta,
    put_shard,
    read_meta,
    read_shard,
    replace_keys,
    shard_key,
    until_done,
)
from kvshard.coordination.replica_sets import CasOutcome, CasResult
from kvshard.errors import ErrorDetails, FailedPrecondition, ResourceExhausted, ShardNotFound
from kvshard.limits import SHARDS_MAX
from kvshard.splitting import divided

WISHES_MAX: Final = 100
"""Of one transaction: with `map/meta` they stay under what a coordinator takes."""


async def request_splits(coordinator: Coordinator, shards: Sequence[int] | None) -> dict[int, WantedSplit]:
    """Wish that shards (None: every one that has more than one slot) be split in the middle. Returns the wishes, by shard.

    A split of a shard that is wanted already is returned as it is. Raises ShardNotFound; FailedPrecondition for a shard of one
    slot; ResourceExhausted when the map would have too many shards; then nothing has been written.
    """
    asked: set[int] | None = None if shards is None else set(shards)
    wanted: dict[int, WantedSplit] = {}
    tried: dict[int, WantedSplit] = {}

    async def attempt() -> bool | None:
        nonlocal asked
        meta_item, meta = await read_meta(coordinator)
        items = (await coordinator.get_prefix(SHARD_PREFIX)).items
        held = {config.id: (item, config) for item, config in ((item, decode_shard(item)) for item in items)}
        if asked is None:  # Fixed at the first look: the children that come meanwhile are not to be split too.
            asked = {shard for shard, (_, config) in held.items() if config.last_slot > config.first_slot}
        configs = {shard: config for shard, (_, config) in held.items()}
        wanted.update({shard: split for shard, split in tried.items() if _is_done(configs, split)})
        wanted.update({each.id: each.split for each in configs.values() if each.id in asked and each.split is not None})
        chosen = _choose(configs, sorted(asked - wanted.keys()))
        some = dict(list(chosen.items())[:WISHES_MAX])
        if not some:
            return True
        expected: list[tuple[str, KeyValue | None]] = [(META_KEY, meta_item)]
        expected += [(shard_key(shard), held[shard][0]) for shard in some]
        tried.update(some)
        writes = [put_shard(replace(held[shard][1], split=split)) for shard, split in some.items()]
        if await replace_keys(coordinator, expected, [Put(META_KEY, encode_meta(meta)), *writes]):
            wanted.update(some)
        return True if wanted.keys() >= asked else None

    # Each turn writes so many wishes; whoever comes between costs a turn.
    turns = 32 + SHARDS_MAX // WISHES_MAX
    await until_done(attempt, "ask for the split of shards", turns)
    return wanted


def _is_done(held: Mapping[int, ShardConfig], split: WantedSplit) -> bool:
    """Whether a wish whose answer was lost has been written, and fulfilled already."""
    child = held.get(split.child)
    return child is not None and child.first_slot == split.at_slot


def _choose(held: Mapping[int, ShardConfig], shards: Sequence[int]) -> dict[int, WantedSplit]:
    """The wishes for these shards. Raises when one of them cannot be."""
    wishes = [config.split for config in held.values() if config.split is not None]
    if shards and len(held) + len(wishes) + len(shards) > SHARDS_MAX:
        text = f"the map would have more than {SHARDS_MAX} shards"
        raise ResourceExhausted(text, ErrorDetails(field="shards", limit=SHARDS_MAX))
    next_id = max([*held, *(wish.child for wish in wishes)]) + 1
    if shards and next_id + len(shards) - 1 > SHARD_ID_MAX:
        raise ResourceExhausted(f"no shard numbers up to {SHARD_ID_MAX} are left", ErrorDetails(limit=SHARD_ID_MAX))
    chosen: dict[int, WantedSplit] = {}
    for child, shard in enumerate(shards, next_id):
        config = held.get(shard)
        details = ErrorDetails(field="shards", shards=(shard,))
        if config is None:
            raise ShardNotFound(f"there is no shard {shard}", details)
        if config.first_slot == config.last_slot:
            raise FailedPrecondition(f"shard {shard} has a single token slot, which cannot be split", details)
        chosen[shard] = WantedSplit(child, config.middle_slot)
    return chosen


async def finish_split(
    coordinator: Coordinator, shard: int, epoch: int, wanted: WantedSplit, members: frozenset[str]
) -> CasResult:
    """Write parent and child as they are after a split, if the parent still is in this epoch and wants it; tried once.

    members: leaves with a replica in sync in that epoch which have the child's data whole on disk, the primary among them.

    SUCCEEDED, with the parent, too when it has been done already.
    """
    try:
        item, held = await read_shard(coordinator, shard)
        if held.split != wanted:
            is_done = await coordinator.get(shard_key(wanted.child)) is not None
            return CasResult(CasOutcome.SUCCEEDED if is_done else CasOutcome.FAILED, held)
        if held.epoch != epoch or held.primary not in members or not all(each.incarnation for each in held.in_sync):
            return CasResult(CasOutcome.FAILED, held)
        parent, child = divided(held, members)
        compares = [Compare(item.key, item.revision), Compare(shard_key(child.id), ABSENT)]
        result = await coordinator.txn(compares, [put_shard(parent), put_shard(child)])
        return CasResult(CasOutcome.SUCCEEDED if result.has_succeeded else CasOutcome.FAILED, parent)
    except CoordinatorUnavailable:
        return CasResult(CasOutcome.UNKNOWN)
