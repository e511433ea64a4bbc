"""Every change that is made to the cluster map: compare-and-set on the coordinator's keys, never a blind write.

Keys: `map/meta`, `map/leaf/<id>`, `map/shard/<id>`, `map/collection/<name>`, `map/alias/<name>`, each canonical JSON. The map's
version is the highest revision among them; a change that deletes a key therefore also rewrites `map/meta`, so that who reads
the keys later finds the same version as whoever watched the change.

An answer of the coordinator that was lost is never taken as a no: the keys are read again, and the change is made only if they
do not show it. Where it cannot be told (a new epoch), making it twice is harmless.
"""

import asyncio
import math
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import structlog

from kvshard import clustermap_text as text
from kvshard.clustermap import (
    DEFAULT_COLLECTION,
    LEAF_WEIGHT_MAX,
    Collection,
    InvalidMap,
    Leaf,
    Replica,
    ShardConfig,
    equal_ranges,
)
from kvshard.coordination.base import (
    ABSENT,
    TXN_OPERATIONS_MAX,
    Compare,
    Coordinator,
    CoordinatorUnavailable,
    Delete,
    KeyValue,
    Put,
)
from kvshard.errors import (
    ErrorDetails,
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
)
from kvshard.limits import COLLECTION_NAME_MAX_CHARS
from kvshard.placement import PlacementProblem, solve
from kvshard.ring import RingLeaf

PREFIX = "map/"
META_KEY = "map/meta"
LEAF_PREFIX = "map/leaf/"
SHARD_PREFIX = "map/shard/"
COLLECTION_PREFIX = "map/collection/"
ALIAS_PREFIX = "map/alias/"

CLAIM_KEY = "bootstrap/claim"
"""Who is writing the first map piece by piece; not under map/, so that nobody takes it for a part of the map."""

CLAIM_PAUSE_S = 0.2
CLAIM_PATIENCE = 15
"""A claim that does not move for so many looks, 3 s in all, is that of a dead process. A live one writes a piece in far less;
should it be slower, it fails by its compare and begins again."""

BOOTSTRAP_TRIES_MAX = 200
"""Looks at a claim count as tries: a rival that is alive writes the largest map within these 40 s."""

TRIES_MAX = 32
"""Each lost race means that another writer got through; a cluster's start has one writer a leaf, and more than this many in
turn do not race for one key."""

RETRY_PAUSE_S = 0.05
RETRY_PAUSE_MAX_S = 1.0
"""Pause after a coordinator that did not answer, growing up to the maximum: all tries together last about half a minute."""

_LEAF_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_COLLECTION_NAME = re.compile(rf"[A-Za-z][A-Za-z0-9_-]{{0,{COLLECTION_NAME_MAX_CHARS - 1}}}")

log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MapMeta:
    """What the map's other keys hang on. cluster_id: random name of the cluster. replicas: wanted for each shard."""

    seed: int
    cluster_id: str
    next_collection_id: int
    replicas: int


@dataclass(frozen=True, slots=True)
class BootstrapPlan:
    """The cluster to begin with: leaves (id, zone and weight; addresses come when they start), shards, replicas of each.

    seed: of the token hash. The same plan gives the same placement.
    """

    leaves: tuple[Leaf, ...]
    shards: int = 8
    replicas: int = 1
    seed: int = 0
    cluster_id: str = field(default_factory=lambda: secrets.token_hex(8))


def leaf_key(leaf: str) -> str:
    """The key of a leaf."""
    return f"{LEAF_PREFIX}{leaf}"


def shard_key(shard: int) -> str:
    """The key of a shard."""
    return f"{SHARD_PREFIX}{shard}"


def collection_key(name: str) -> str:
    """The key of a collection."""
    return f"{COLLECTION_PREFIX}{name}"


def alias_key(alias: str) -> str:
    """The key of an alias."""
    return f"{ALIAS_PREFIX}{alias}"


def encode_meta(meta: MapMeta) -> bytes:
    """The value of map/meta."""
    data = {"seed": meta.seed, "cluster_id": meta.cluster_id, "next_collection_id": meta.next_collection_id}
    return text.encode({**data, "replicas": meta.replicas}).encode()


def decode_meta(value: bytes) -> MapMeta:
    """The meta that a value of map/meta holds. Raises InvalidMap."""
    data = text.decode(value, META_KEY)
    return MapMeta(
        seed=text.read(data, "seed", int),
        cluster_id=text.read(data, "cluster_id", str),
        next_collection_id=text.read(data, "next_collection_id", int),
        replicas=text.read(data, "replicas", int),
    )


def decode_leaf(item: KeyValue) -> Leaf:
    """The leaf that a key holds. Raises InvalidMap."""
    return text.leaf_of(text.decode(item.value, item.key))


def decode_shard(item: KeyValue) -> ShardConfig:
    """The shard that a key holds. Raises InvalidMap."""
    return text.shard_of(text.decode(item.value, item.key))


def decode_collection(item: KeyValue) -> Collection:
    """The collection that a key holds. Raises InvalidMap."""
    return text.collection_of(text.decode(item.value, item.key))


def decode_alias(item: KeyValue) -> tuple[str, str]:
    """The alias that a key holds, and its collection. Raises InvalidMap."""
    return text.alias_of(text.decode(item.value, item.key))


def check_leaf(leaf: Leaf) -> None:
    """Raise InvalidArgument unless the leaf may stand in a map: one bad entry would make every process refuse the whole map."""
    if not _LEAF_ID.fullmatch(leaf.id):
        allowed = "a letter or digit, then letters, digits, '_', '.' and '-', at most 64 characters"
        raise InvalidArgument(f"leaf id {leaf.id!r} is not {allowed}", ErrorDetails(field="leaf"))
    if not (math.isfinite(leaf.weight) and 0 <= leaf.weight <= LEAF_WEIGHT_MAX):
        raise InvalidArgument(
            f"leaf {leaf.id}: weight {leaf.weight} is not within 0 to {LEAF_WEIGHT_MAX:g}", ErrorDetails(field="weight")
        )


def check_collection_name(name: str) -> None:
    """Raise InvalidArgument unless a collection may have this name."""
    if not _COLLECTION_NAME.fullmatch(name):
        allowed = f"a letter, then letters, digits, '_' and '-', at most {COLLECTION_NAME_MAX_CHARS} characters"
        details = ErrorDetails(field="name", limit=COLLECTION_NAME_MAX_CHARS)
        raise InvalidArgument(f"collection name {name!r} is not {allowed}", details)


def put_leaf(leaf: Leaf) -> Put:
    """The write of a leaf."""
    return Put(leaf_key(leaf.id), text.encode(text.leaf_data(leaf)).encode())


def put_shard(shard: ShardConfig) -> Put:
    """The write of a shard."""
    return Put(shard_key(shard.id), text.encode(text.shard_data(shard)).encode())


def put_collection(collection: Collection) -> Put:
    """The write of a collection."""
    return Put(collection_key(collection.name), text.encode(text.collection_data(collection)).encode())


def plan_shards(plan: BootstrapPlan) -> list[ShardConfig]:
    """The shards of a new cluster: equal ranges, placed on its leaves, every epoch 1."""
    if not 0 <= plan.seed < 1 << 32:
        raise InvalidArgument(f"the seed must fit 32 bits, not {plan.seed}", ErrorDetails(field="seed"))
    for each in plan.leaves:
        check_leaf(each)
    ranges = equal_ranges(plan.shards)
    leaves = tuple(RingLeaf(leaf.id, leaf.zone, leaf.weight) for leaf in plan.leaves)
    solution = solve(PlacementProblem(leaves, tuple(range(plan.shards)), plan.replicas, plan.seed))
    return [
        ShardConfig(
            id=shard,
            first_slot=first,
            last_slot=last,
            epoch=1,
            primary=solution.replicas[shard][0],
            in_sync=tuple(Replica(leaf) for leaf in solution.replicas[shard]),
            desired=solution.replicas[shard],
        )
        for shard, (first, last) in enumerate(ranges)
    ]


async def bootstrap(coordinator: Coordinator, plan: BootstrapPlan) -> bool:
    """Write the first map. False when one exists already, which is left as it is.

    A map may be more than one transaction takes. Then its keys are written piece by piece under a claim, and `map/meta`,
    without which there is no map, comes last. A bootstrap that ends half way is harmless: the next one takes the claim over,
    deletes what is not its own and begins again.
    """
    shards = plan_shards(plan)
    meta = MapMeta(plan.seed, plan.cluster_id, DEFAULT_COLLECTION.id + 1, plan.replicas)
    writes = [put_collection(DEFAULT_COLLECTION), *(put_leaf(leaf) for leaf in plan.leaves)]
    writes += [put_shard(shard) for shard in shards]
    rival = ABSENT
    patience = 0

    async def attempt() -> bool | None:
        nonlocal rival, patience
        existing = await coordinator.get(META_KEY)
        if existing is not None:
            # The random cluster id tells our own write, whose answer was lost, from that of another.
            return decode_meta(existing.value).cluster_id == plan.cluster_id
        claim = await coordinator.get(CLAIM_KEY)
        if claim is not None and claim.value != plan.cluster_id.encode():
            # Each piece that is written writes the claim too. As long as that goes on, somebody else is at it.
            rival, patience = claim.revision, patience + 1 if claim.revision == rival else 0
            if patience < CLAIM_PATIENCE:
                await asyncio.sleep(CLAIM_PAUSE_S)
                return None
        left_over = await coordinator.get_prefix(PREFIX) if claim is not None else None
        own = {META_KEY, *(write.key for write in writes)}
        deletes = [Delete(item.key) for item in (left_over.items if left_over else ()) if item.key not in own]
        return await _write_pieces(coordinator, [*deletes, *writes], Put(META_KEY, encode_meta(meta)), claim)

    return await until_done(attempt, "bootstrap the cluster", BOOTSTRAP_TRIES_MAX)


async def _write_pieces(
    coordinator: Coordinator, writes: Sequence[Put | Delete], meta: Put, claim: KeyValue | None
) -> bool | None:
    """Write the keys of a new map and then its meta. None when another writer came between."""
    revision = claim.revision if claim else ABSENT
    held = Put(CLAIM_KEY, decode_meta(meta.value).cluster_id.encode())
    size = TXN_OPERATIONS_MAX - 2  # room for the claim and for meta
    pieces = [writes[first : first + size] for first in range(0, len(writes), size)]
    for piece in pieces[:-1]:
        result = await coordinator.txn([Compare(META_KEY, ABSENT), Compare(CLAIM_KEY, revision)], [held, *piece])
        if not result.has_succeeded:
            return None
        revision = result.revision
    compares = [Compare(META_KEY, ABSENT), Compare(CLAIM_KEY, revision)]
    result = await coordinator.txn(compares, [Delete(CLAIM_KEY), meta, *pieces[-1]])
    return True if result.has_succeeded else None


async def register_leaf(
    coordinator: Coordinator, leaf: str, address: str, zone: str | None, weight: float | None, *, may_join: bool = True
) -> Leaf:
    """Say where a leaf serves. zone, weight None: as the map has it; whatever else the map says of the leaf stays.

    may_join: add the leaf when the map does not have it; else that raises InvalidArgument. Raises FailedPrecondition for a leaf
    that was removed by force: what it holds is not waited for any more, so it may not come back with it.
    """

    async def attempt() -> Leaf | None:
        item = await coordinator.get(leaf_key(leaf))
        if item is None and not may_join:
            raise unknown_leaf(leaf)
        held = Leaf(leaf) if item is None else decode_leaf(item)
        if held.is_removed:
            raise FailedPrecondition(f"leaf {leaf} was removed from the cluster; join with a new id and an empty directory")
        wanted = replace(
            held,
            address=address,
            zone=held.zone if zone is None else zone,
            weight=held.weight if weight is None else weight,
        )
        check_leaf(wanted)
        if item is not None and held == wanted:
            return wanted
        return wanted if await replace_keys(coordinator, [(leaf_key(leaf), item)], [put_leaf(wanted)]) else None

    return await until_done(attempt, f"register leaf {leaf}")


def unknown_leaf(leaf: str) -> InvalidArgument:
    """What a leaf is told that wants to serve in a cluster which does not know it."""
    known = f"the cluster has no leaf {leaf!r}"
    return InvalidArgument(f"{known}; start it with --join to make it part of the cluster", ErrorDetails(field="id"))


async def replace_keys(
    coordinator: Coordinator, expected: Sequence[tuple[str, KeyValue | None]], writes: Sequence[Put | Delete]
) -> bool:
    """Write if the keys are still as they were read."""
    compares = [Compare(key, item.revision if item else ABSENT) for key, item in expected]
    return (await coordinator.txn(compares, writes)).has_succeeded


async def read_shard(coordinator: Coordinator, shard: int) -> tuple[KeyValue, ShardConfig]:
    """A shard as it is stored. Raises FailedPrecondition when there is none."""
    item = await coordinator.get(shard_key(shard))
    if item is None:
        raise FailedPrecondition(f"the map has no shard {shard}", ErrorDetails(shards=(shard,)))
    return item, decode_shard(item)


async def read_meta(coordinator: Coordinator) -> tuple[KeyValue, MapMeta]:
    """The map's meta as it is stored. Raises FailedPrecondition when there is no map."""
    item = await coordinator.get(META_KEY)
    if item is None:
        raise FailedPrecondition("the cluster has no map yet")
    return item, decode_meta(item.value)


async def until_done(attempt: Callable[[], Awaitable[T | None]], what: str, tries_max: int = TRIES_MAX) -> T:
    """Run an attempt until it returns something: None means that a race was lost, so everything is read again."""
    pause, why, unanswered = RETRY_PAUSE_S, "too many writers raced for the same keys", 0
    for _ in range(tries_max):
        try:
            done = await attempt()
        except CoordinatorUnavailable as error:
            why = str(error)
            unanswered += 1
            if unanswered == TRIES_MAX:
                break
            log.warning("coordinator unavailable, will try again", what=what, error=why, pause_s=pause)
            await asyncio.sleep(pause)
            pause = min(RETRY_PAUSE_MAX_S, pause * 2)
        except InvalidMap:
            log.exception("the cluster map is damaged", what=what)
            raise
        else:
            if done is not None:
                return done
    raise Unavailable(f"cannot {what}: {why}", ErrorDetails(maybe_applied=True))
