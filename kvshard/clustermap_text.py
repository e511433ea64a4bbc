"""Text forms of the cluster map: canonical JSON of the whole and of its parts, and tables for people.

Canonical: keys sorted, no spaces, numbers in one form; the same map gives the same bytes. Reading is strict about what must be
there and how it is typed (InvalidMap), and lenient about fields it does not know, so that an older process can read what a
newer one wrote.

Pure: imports only the standard library and other pure files.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TypeVar

from kvshard.clustermap import (
    HEDGED_AS_THE_ROUTER_SAYS,
    ClusterMap,
    Collection,
    Hedging,
    InvalidMap,
    Leaf,
    Replica,
    SchemaChange,
    ShardConfig,
    WantedSplit,
)
from kvshard.hedge_settings import hedging_text

FORMAT = 1
"""Raised when an older reader would misunderstand the text."""

_MARKS = ("draining", "removed")
"""What an operator may say of a leaf; absent where nothing was said, so that a map without them reads as it always did."""

T = TypeVar("T", str, int, list[object], dict[str, object])


def encode(data: object) -> str:
    """Canonical JSON of plain data."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def decode(text: str | bytes, what: str) -> dict[str, object]:
    """The JSON object in a text. Raises InvalidMap that names what it was to be."""
    try:
        value: object = json.loads(text)
    except ValueError as error:
        raise InvalidMap(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidMap(f"{what} is not a JSON object")
    return value


def read(data: dict[str, object], name: str, kind: type[T]) -> T:
    """A field that must be there and of this type."""
    value = data.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InvalidMap(f"field {name!r} is not of type {kind.__name__}: {value!r}")
    return value


def leaf_data(leaf: Leaf) -> dict[str, object]:
    """A leaf as plain data."""
    marks = [name for name in _MARKS if getattr(leaf, f"is_{name}")]
    data: dict[str, object] = {"id": leaf.id, "address": leaf.address, "zone": leaf.zone, "weight": float(leaf.weight)}
    return {**data, "marks": marks} if marks else data


def leaf_of(data: dict[str, object]) -> Leaf:
    """The leaf that leaf_data described."""
    weight = _number(data, "weight")
    marks = _texts(_items(data, "marks"), "marks") if "marks" in data else []
    place = (read(data, "id", str), read(data, "address", str), read(data, "zone", str), weight)
    return Leaf(*place, is_draining="draining" in marks, is_removed="removed" in marks)


def shard_data(shard: ShardConfig) -> dict[str, object]:
    """A shard as plain data; "split" is there only while one is wanted, "cuts" once there was one."""
    data: dict[str, object] = {
        "id": shard.id,
        "first_slot": shard.first_slot,
        "last_slot": shard.last_slot,
        "epoch": shard.epoch,
        "primary": shard.primary,
        "in_sync": [[replica.leaf, replica.incarnation] for replica in shard.in_sync],
        "learners": [[replica.leaf, replica.incarnation] for replica in shard.learners],
        "desired": list(shard.desired),
    }
    if shard.split is not None:
        data["split"] = {"child": shard.split.child, "at_slot": shard.split.at_slot}
    if shard.cuts:
        data["cuts"] = shard.cuts
    return data


def shard_of(data: dict[str, object]) -> ShardConfig:
    """The shard that shard_data described."""
    return ShardConfig(
        id=read(data, "id", int),
        first_slot=read(data, "first_slot", int),
        last_slot=read(data, "last_slot", int),
        epoch=read(data, "epoch", int),
        primary=read(data, "primary", str),
        in_sync=tuple(_replica_of(each) for each in _items(data, "in_sync")),
        learners=tuple(_replica_of(each) for each in _items(data, "learners")),
        desired=tuple(_texts(_items(data, "desired"), "desired")),
        split=_split_of(data),
        cuts=read(data, "cuts", int) if "cuts" in data else 0,
    )


def collection_data(collection: Collection) -> dict[str, object]:
    """A collection as plain data; the schema keeps the order of its fields, so it is a list of pairs.

    "hedging" is there only where something was said of it, and in it only what was said; "synonyms" where there are some; what
    tells of changes of the schema where there was one.
    """
    data: dict[str, object] = {"name": collection.name, "id": collection.id, "schema": _pairs(collection.schema)}
    hedging = hedging_data(collection.hedging)
    if hedging:
        data["hedging"] = hedging
    if collection.synonyms:
        data["synonyms"] = list(collection.synonyms)
    if collection.versions > 1:
        data |= {"version": collection.version, "versions": collection.versions}
    if collection.change is not None:
        data["change"] = {"schema": _pairs(collection.change.schema), "version": collection.change.version}
    return data


def collection_of(data: dict[str, object]) -> Collection:
    """The collection that collection_data described."""
    hedging = _hedging_of(_object(data["hedging"], "hedging")) if "hedging" in data else HEDGED_AS_THE_ROUTER_SAYS
    synonyms = tuple(_texts(_items(data, "synonyms"), "synonyms")) if "synonyms" in data else ()
    change = _object(data["change"], "change") if "change" in data else None
    return Collection(
        read(data, "name", str),
        read(data, "id", int),
        _schema_of(data),
        hedging,
        synonyms,
        version=read(data, "version", int) if "version" in data else 1,
        change=None if change is None else SchemaChange(_schema_of(change), read(change, "version", int)),
        versions=read(data, "versions", int) if "versions" in data else 1,
    )


def _pairs(schema: Mapping[str, str]) -> list[list[str]]:
    return [[name, kind] for name, kind in schema.items()]


def _schema_of(data: dict[str, object]) -> dict[str, str]:
    return dict(_pair(each, "schema") for each in _items(data, "schema"))


def alias_data(alias: str, collection: str) -> dict[str, object]:
    """An alias as plain data."""
    return {"alias": alias, "collection": collection}


def alias_of(data: dict[str, object]) -> tuple[str, str]:
    """The alias that alias_data described, and its collection."""
    return read(data, "alias", str), read(data, "collection", str)


def hedging_data(hedging: Hedging) -> dict[str, object]:
    """What was said of hedging, as plain data."""
    data: dict[str, object] = {"policy": hedging.policy} if hedging.policy else {}
    if hedging.budget is not None:
        data["budget"] = float(hedging.budget)
    if hedging.max_attempts:
        data["max_attempts"] = hedging.max_attempts
    return data


def _hedging_of(data: dict[str, object]) -> Hedging:
    return Hedging(
        policy=read(data, "policy", str) if "policy" in data else "",
        budget=_number(data, "budget") if "budget" in data else None,
        max_attempts=read(data, "max_attempts", int) if "max_attempts" in data else 0,
    )


def to_json(cluster_map: ClusterMap) -> str:
    """The map as canonical JSON; "aliases" only where there are some."""
    data: dict[str, object] = {
        "format": FORMAT,
        "version": cluster_map.version,
        "seed": cluster_map.seed,
        "replicas": cluster_map.replicas,
        "leaves": [leaf_data(each) for each in cluster_map.leaves.values()],
        "shards": [shard_data(each) for each in cluster_map.shards.values()],
        "collections": [collection_data(each) for each in cluster_map.collections.values()],
    }
    if cluster_map.aliases:
        data["aliases"] = [alias_data(alias, name) for alias, name in cluster_map.aliases.items()]
    return encode(data)


def from_json(text: str | bytes) -> ClusterMap:
    """The map that to_json wrote. Raises InvalidMap."""
    data = decode(text, "the cluster map")
    if read(data, "format", int) != FORMAT:
        raise InvalidMap(f"the cluster map has format {data['format']}, this version reads {FORMAT}")
    leaves = [leaf_of(_object(each, "leaves")) for each in _items(data, "leaves")]
    shards = [shard_of(_object(each, "shards")) for each in _items(data, "shards")]
    collections = [collection_of(_object(each, "collections")) for each in _items(data, "collections")]
    aliases = [alias_of(_object(each, "aliases")) for each in (_items(data, "aliases") if "aliases" in data else ())]
    names = [("leaf", leaf.id) for leaf in leaves] + [("shard", str(shard.id)) for shard in shards]
    names += [("collection", collection.name) for collection in collections] + [("alias", alias) for alias, _ in aliases]
    if len(set(names)) < len(names):
        raise InvalidMap("the cluster map names something twice")
    return ClusterMap(
        version=read(data, "version", int),
        seed=read(data, "seed", int),
        leaves={leaf.id: leaf for leaf in leaves},
        shards={shard.id: shard for shard in shards},
        collections={collection.name: collection for collection in collections},
        replicas=read(data, "replicas", int) if "replicas" in data else 0,
        aliases=dict(aliases),
    )


def pretty(cluster_map: ClusterMap) -> str:
    """The map as tables for people."""
    leaves = [
        (
            leaf.id,
            leaf.address or "-",
            leaf.zone or "-",
            f"{leaf.weight:g}",
            str(len(cluster_map.shards_on(leaf.id))),
            ", ".join(name for name in _MARKS if getattr(leaf, f"is_{name}")) or "-",
        )
        for leaf in cluster_map.leaves.values()
    ]
    shard_heads = ["shard", "slots", "epoch", "primary", "in sync", "learners", "desired"]
    if any(shard.split is not None for shard in cluster_map.shards.values()):
        shard_heads.append("to be split")
    shards = [_shard_row(shard)[: len(shard_heads)] for shard in cluster_map.shards.values()]
    collection_heads = ["collection", "id", "schema"]
    if any(hedging_text(each.hedging) for each in cluster_map.collections.values()):
        collection_heads.append("hedging")
    collections = [_collection_row(each)[: len(collection_heads)] for each in cluster_map.collections.values()]
    return "\n".join(
        [
            f"cluster map, version {cluster_map.version}, seed {cluster_map.seed}",
            "",
            *_table(("leaf", "address", "zone", "weight", "replicas", "marks"), leaves),
            "",
            *_table(tuple(shard_heads), shards),
            "",
            *_table(tuple(collection_heads), collections),
            "",
            *([*_table(("alias", "of"), list(cluster_map.aliases.items())), ""] if cluster_map.aliases else ()),
        ]
    )


def _items(data: dict[str, object], name: str) -> list[object]:
    value = data.get(name)
    if not isinstance(value, list):
        raise InvalidMap(f"field {name!r} is not a list: {value!r}")
    return value


def _number(data: dict[str, object], name: str) -> float:
    value = data.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidMap(f"field {name!r} is not a number: {value!r}")
    return float(value)


def _object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InvalidMap(f"{where}: not an object: {value!r}")
    return value


def _texts(values: list[object], where: str) -> list[str]:
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values):
        raise InvalidMap(f"{where}: not a list of texts: {values!r}")
    return texts


def _pair(value: object, where: str) -> tuple[str, str]:
    texts = _texts(value, where) if isinstance(value, list) else []
    if len(texts) != 2:
        raise InvalidMap(f"{where}: not a pair of texts: {value!r}")
    return texts[0], texts[1]


def _replica_of(value: object) -> Replica:
    return Replica(*_pair(value, "replica"))


def _split_of(data: dict[str, object]) -> WantedSplit | None:
    if data.get("split") is None:
        return None
    split = _object(data["split"], "split")
    return WantedSplit(read(split, "child", int), read(split, "at_slot", int))


def _shard_row(shard: ShardConfig) -> tuple[str, ...]:
    slots = f"{shard.first_slot:#06x}-{shard.last_slot:#06x}"
    desired = ", ".join(shard.desired) or "-"
    split = f"into {shard.split.child} at {shard.split.at_slot:#06x}" if shard.split is not None else "-"
    members = _names(shard.in_sync), _names(shard.learners)
    return str(shard.id), slots, str(shard.epoch), shard.primary, *members, desired, split


def _collection_row(collection: Collection) -> tuple[str, ...]:
    schema = ", ".join(f"{name}: {kind}" for name, kind in collection.schema.items())
    return collection.name, str(collection.id), schema or "-", hedging_text(collection.hedging) or "-"


def _names(replicas: Sequence[Replica]) -> str:
    return ", ".join(replica.leaf for replica in replicas) or "-"


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (heads, *rows)]
