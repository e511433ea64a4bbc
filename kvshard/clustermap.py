"""The cluster map: which leaf holds which shard of which token range, and which collections exist.

A map is immutable and has a version; a newer one replaces it whole. Servers never change a map: they write to the coordinator
(`kvshard/coordination/mapstore.py`) and install what the watch brings. A map that contradicts itself cannot be constructed.

Pure apart from the token hash (`kvshard/hashing.py`). Its text forms are in `clustermap_text.py`.
"""

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from kvshard import hashing
from kvshard.errors import ErrorDetails, Internal, InvalidArgument
from kvshard.limits import SHARDS_MAX

TOKEN_SLOTS = 1 << hashing.SLOT_BITS
"""Shard boundaries lie on multiples of 2^64 / TOKEN_SLOTS, so that a table of this size finds a token's shard in O(1)."""

SHARD_ID_MAX = TOKEN_SLOTS - 1
"""Shard ids fit the 16-bit cells of the slot table; a split's children take new ids, so ids outgrow the number of shards."""

LEAF_WEIGHT_MAX = 1000.0
"""Weights are relative: a wider spread than this is a slip of the unit, and each unit costs virtual nodes on the ring."""


class InvalidMap(Internal):
    """A cluster map contradicts itself; it is never installed."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf. address: host:port, empty while it has never been up. weight 0: it is to hold no replicas.

    is_draining: what it holds is to move to other leaves. is_removed: it is dead and will not come back; nobody waits for what
    it held, and its entry goes when no shard names it any more.
    """

    id: str
    address: str = ""
    zone: str = ""
    weight: float = 1.0
    is_draining: bool = False
    is_removed: bool = False

    @property
    def may_hold(self) -> bool:
        """Whether replicas may be placed on it."""
        return self.weight > 0 and not self.is_draining and not self.is_removed


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica: the leaf, and the random identity of its data (empty until the leaf has created it)."""

    leaf: str
    incarnation: str = ""


@dataclass(frozen=True, slots=True)
class WantedSplit:
    """A split that was asked for and is not done: the slots from at_slot on are to leave for a new shard, the child."""

    child: int
    at_slot: int


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """Where a shard lives. Its token range is [first_slot, last_slot] in token slots, both inclusive.

    epoch: version of the replica set, only grows. desired: where the balancer wants it to live. split: the shard is to be cut
    in two. cuts: how often it was; each time its range lost its upper part. Neither a wish nor the split itself changes the
    epoch: the replica set stays what it is.
    """

    id: int
    first_slot: int
    last_slot: int
    epoch: int
    primary: str
    in_sync: tuple[Replica, ...]
    learners: tuple[Replica, ...] = ()
    desired: tuple[str, ...] = ()
    split: WantedSplit | None = None
    cuts: int = 0

    @property
    def first_token(self) -> int:
        """First token of the range."""
        return self.first_slot << (hashing.TOKEN_BITS - hashing.SLOT_BITS)

    @property
    def last_token(self) -> int:
        """Last token of the range, inclusive."""
        return ((self.last_slot + 1) << (hashing.TOKEN_BITS - hashing.SLOT_BITS)) - 1

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """Every replica, in sync or learning."""
        return self.in_sync + self.learners

    @property
    def middle_slot(self) -> int:
        """Where a split cuts: the first slot of the upper half. Of a shard of one slot, which cannot be split, that slot."""
        return (self.first_slot + self.last_slot + 1) // 2

    def succeeded_by(self, asked: "ShardConfig") -> "ShardConfig":
        """What the coordinator is to hold instead of this when a replica set is asked for.

        Token range and `desired` stay. So do identities: who asks may not have heard of one yet, and if it were forgotten, data
        created after a loss could take the place of what was acknowledged.
        """
        in_sync = with_identities(asked.in_sync, self.in_sync)
        return replace(self, epoch=asked.epoch, primary=asked.primary, in_sync=in_sync, learners=asked.learners)


def with_identities(replicas: Iterable[Replica], known: Iterable[Replica]) -> tuple[Replica, ...]:
    """Replicas, those without an identity with the one that is known."""
    by_leaf = {each.leaf: each for each in known}
    return tuple(each if each.incarnation else by_leaf.get(each.leaf, each) for each in replicas)


@dataclass(frozen=True, slots=True)
class Hedging:
    """How reads of a collection are hedged where a request does not say. What is empty: as the router has it.

    policy: in the syntax of `kvshard/tail/hedging.py`. budget: hedges allowed, as a part of the first attempts; 0 allows none.
    max_attempts: of a leg, the first one included; 0: as the router has it. The map carries what it was given, so that an older
    process can read what a newer one wrote; who writes it checks it (`kvshard/hedge_settings.py`).
    """

    policy: str = ""
    budget: float | None = None
    max_attempts: int = 0


HEDGED_AS_THE_ROUTER_SAYS = Hedging()
"""Nothing was said."""


@dataclass(frozen=True, slots=True)
class SchemaChange:
    """The schema that a collection is to get once every index of it is built. version: its number."""

    schema: Mapping[str, str]
    version: int


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection. schema maps a field's name to its type, see `kvshard/schema.py`.

    Values of a collection with an empty schema are plain bytes. synonyms: rules, see `kvshard/synonyms.py`; who writes them
    checks them. version: of the schema, from 1 on. change: the schema that it is to get; its indexes are built beside those
    that serve. versions: how many numbers were ever given, so that none is given twice, be it after a change that was called
    off.
    """

    name: str
    id: int
    schema: Mapping[str, str] = field(default_factory=dict)
    hedging: Hedging = HEDGED_AS_THE_ROUTER_SAYS
    synonyms: tuple[str, ...] = ()
    version: int = 1
    change: SchemaChange | None = None
    versions: int = 1

    @property
    def written_schema(self) -> Mapping[str, str]:
        """What documents that are written now must fit: the schema to come, where there is one."""
        return self.schema if self.change is None else self.change.schema

    def changed(self) -> "Collection":
        """The collection once its change is done."""
        if self.change is None:
            return self
        return replace(self, schema=self.change.schema, version=self.change.version, change=None)


DEFAULT_COLLECTION = Collection("default", 1)
"""Always exists."""


@dataclass(frozen=True, slots=True)
class ClusterMap:
    """The whole map at one version. Construction checks it (InvalidMap) and builds the lookup tables.

    version: revision of the coordinator's last write to it, only grows. seed: of the token hash, fixed at bootstrap.
    replicas: wanted of each shard, fixed at bootstrap; when not given, as many as the shards' own plans say.
    The mappings are by leaf id, shard id, collection name and alias; do not change them. aliases: further names of collections.
    """

    version: int
    seed: int
    leaves: Mapping[str, Leaf]
    shards: Mapping[int, ShardConfig]
    collections: Mapping[str, Collection]
    replicas: int = 0
    aliases: Mapping[str, str] = field(default_factory=dict)
    _shard_of_slot: "array[int]" = field(init=False, repr=False, compare=False)
    _collection_of_id: dict[int, Collection] = field(init=False, repr=False, compare=False)
    _collection_of_name: dict[str, Collection] = field(init=False, repr=False, compare=False)
    _shards_on: dict[str, list[ShardConfig]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("leaves", "shards", "collections", "aliases"):
            object.__setattr__(self, name, dict(sorted(getattr(self, name).items())))
        planned = max([1, *(len(each.desired or each.in_sync) for each in self.shards.values())])
        object.__setattr__(self, "replicas", self.replicas or planned)
        check(self)
        object.__setattr__(self, "_shard_of_slot", _slot_table(self.shards.values()))
        object.__setattr__(self, "_collection_of_id", {each.id: each for each in self.collections.values()})
        aliased = {alias: self.collections[name] for alias, name in self.aliases.items()}
        object.__setattr__(self, "_collection_of_name", {**self.collections, **aliased})
        shards_on: dict[str, list[ShardConfig]] = {leaf: [] for leaf in self.leaves}
        for shard in self.shards.values():
            for replica in shard.replicas:
                shards_on[replica.leaf].append(shard)
        object.__setattr__(self, "_shards_on", shards_on)

    def shard_of_key(self, key: bytes) -> int:
        """The shard that a key belongs to."""
        return self._shard_of_slot[hashing.slot(key, self.seed)]

    def shards_of_keys(self, keys: Sequence[bytes]) -> list[int]:
        """The shards that keys belong to, in order."""
        return list(map(self._shard_of_slot.__getitem__, hashing.slots(keys, self.seed)))

    def shard_of_slot(self, slot: int) -> int:
        """The shard that a token slot belongs to."""
        return self._shard_of_slot[slot]

    def collection(self, name: str) -> Collection | None:
        """The collection of that name or alias."""
        return self._collection_of_name.get(name)

    def aliases_of(self, name: str) -> list[str]:
        """The aliases of a collection."""
        return [alias for alias, collection in self.aliases.items() if collection == name]

    def collection_by_id(self, collection_id: int) -> Collection | None:
        """The collection of that number."""
        return self._collection_of_id.get(collection_id)

    def leaf_address(self, leaf: str) -> str | None:
        """Where a leaf serves; None when it is unknown or has never been up."""
        known = self.leaves.get(leaf)
        return known.address or None if known else None

    def shards_on(self, leaf: str) -> list[ShardConfig]:
        """The shards that have a replica on a leaf, by id."""
        return list(self._shards_on.get(leaf, ()))


def equal_ranges(shards: int) -> list[tuple[int, int]]:
    """The (first slot, last slot) of each of so many shards, equal in size give or take one slot; every slot is in one."""
    if not 1 <= shards <= SHARDS_MAX:
        raise InvalidArgument(
            f"the number of shards must be 1 to {SHARDS_MAX}, not {shards}", ErrorDetails(field="shards", limit=SHARDS_MAX)
        )
    bounds = [TOKEN_SLOTS * shard // shards for shard in range(shards + 1)]
    return [(first, after - 1) for first, after in pairwise(bounds)]


def check(cluster_map: ClusterMap) -> None:
    """Raise InvalidMap unless every invariant of a map holds.

    The shards' ranges cover every slot exactly once. A shard's replicas are on different known leaves and its primary is in
    sync. Names and ids agree with the keys they stand under. Collection numbers differ, and the default collection is there.
    An alias has no collection's name and stands for one that is there.
    A wanted split cuts inside its shard, and its child is a new shard, of one split only.
    """
    _require(cluster_map.version >= 0, f"version {cluster_map.version} is negative")
    _require(0 <= cluster_map.seed <= hashing.SEED_MAX, f"seed {cluster_map.seed} does not fit 32 bits")
    _require(cluster_map.replicas >= 1, f"{cluster_map.replicas} replicas are wanted, not at least 1")
    for name, leaf in cluster_map.leaves.items():
        _require(bool(name) and leaf.id == name, f"leaf {leaf.id!r} stands under the name {name!r}")
        is_weight = math.isfinite(leaf.weight) and 0 <= leaf.weight <= LEAF_WEIGHT_MAX
        _require(is_weight, f"leaf {name}: weight {leaf.weight} is not within 0 to {LEAF_WEIGHT_MAX:g}")
    _check_ranges(cluster_map.shards)
    for shard in cluster_map.shards.values():
        _check_shard(shard, cluster_map.leaves)
    _check_splits(cluster_map.shards)
    _check_collections(cluster_map.collections)
    for alias, name in cluster_map.aliases.items():
        _require(name in cluster_map.collections, f"alias {alias!r} stands for {name!r}, which is no collection")
        _require(bool(alias) and alias not in cluster_map.collections, f"alias {alias!r} has the name of a collection")


def _require(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise InvalidMap(f"invalid cluster map: {otherwise}")


def _check_ranges(shards: Mapping[int, ShardConfig]) -> None:
    _require(1 <= len(shards) <= SHARDS_MAX, f"{len(shards)} shards, not 1 to {SHARDS_MAX}")
    next_slot = 0
    for shard in sorted(shards.values(), key=lambda each: each.first_slot):
        problem = "a gap" if shard.first_slot > next_slot else "an overlap"
        _require(shard.first_slot == next_slot, f"{problem} before slot {shard.first_slot} of shard {shard.id}")
        _require(shard.last_slot >= shard.first_slot, f"shard {shard.id} ends before it begins")
        next_slot = shard.last_slot + 1
    _require(next_slot == TOKEN_SLOTS, f"the shards end at slot {next_slot - 1}, not at {TOKEN_SLOTS - 1}")
    for shard_id, shard in shards.items():
        _require(shard.id == shard_id and 0 <= shard_id <= SHARD_ID_MAX, f"shard {shard.id} stands under the number {shard_id}")


def _check_shard(shard: ShardConfig, leaves: Mapping[str, Leaf]) -> None:
    where = f"shard {shard.id}"
    _require(shard.epoch >= 1, f"{where}: epoch {shard.epoch} is below 1")
    _require(shard.cuts >= 0, f"{where}: {shard.cuts} cuts")
    _require(
        any(replica.leaf == shard.primary for replica in shard.in_sync), f"{where}: primary {shard.primary!r} is not in sync"
    )
    for role, held in (("replicas", [replica.leaf for replica in shard.replicas]), ("desired replicas", list(shard.desired))):
        _require(len(set(held)) == len(held), f"{where}: two {role} on one leaf: {', '.join(held)}")
        unknown = [leaf for leaf in held if leaf not in leaves]
        _require(not unknown, f"{where}: {role} on unknown leaves: {', '.join(unknown)}")


def _check_splits(shards: Mapping[int, ShardConfig]) -> None:
    children = [shard.split.child for shard in shards.values() if shard.split is not None]
    _require(len(set(children)) == len(children), "two shards are to be split into the same one")
    for shard in shards.values():
        if shard.split is not None:
            child, at_slot = shard.split.child, shard.split.at_slot
            where = f"shard {shard.id}"
            _require(shard.first_slot < at_slot <= shard.last_slot, f"{where} is to be cut at slot {at_slot}, outside of it")
            is_new = child not in shards and 0 <= child <= SHARD_ID_MAX
            _require(is_new, f"{where} is to be split into {child}, which is no new shard")


def _check_collections(collections: Mapping[str, Collection]) -> None:
    default = collections.get(DEFAULT_COLLECTION.name)
    _require(default is not None and default.id == DEFAULT_COLLECTION.id, "the default collection is missing")
    for name, collection in collections.items():
        _require(collection.name == name, f"collection {collection.name!r} stands under the name {name!r}")
        _require(collection.id >= 1, f"collection {name}: number {collection.id} is below 1")
        change = collection.change
        newest = collection.version if change is None else change.version
        is_version = 1 <= collection.version <= newest <= collection.versions
        _require(is_version, f"collection {name}: schema version {collection.version}, change {change}")
        _require(change is None or change.version > collection.version, f"collection {name}: a change to an old version")
    _require(len({each.id for each in collections.values()}) == len(collections), "two collections have the same number")


def _slot_table(shards: Iterable[ShardConfig]) -> "array[int]":
    table = array("H")
    for shard in sorted(shards, key=lambda each: each.first_slot):
        table.extend(array("H", [shard.id]) * (shard.last_slot - shard.first_slot + 1))
    return table
