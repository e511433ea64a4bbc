"""Changes of a collection's schema in the map: begun, called off, done; each one compare-and-set on the collection's key.

While a change is in the map, every leaf builds the indexes of the new schema beside those that serve, and reports under
`reindex/` for which shards it has them. When no replica in sync lacks its own, whoever holds the balancer's key puts the new
schema in the place of the old one: that is the switch, and every search is answered wholly by one or wholly by the other.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Collection as Several
from dataclasses import replace

from kvshard.clustermap import DEFAULT_COLLECTION, ClusterMap, Collection, SchemaChange
from kvshard.coordination.base import ABSENT, Compare, Coordinator, Delete, Put
from kvshard.coordination.collections import read_collection
from kvshard.coordination.mapwriter import decode_collection, put_collection, replace_keys, until_done
from kvshard.errors import ChangeConflict, ErrorDetails, FailedPrecondition, InvalidArgument
from kvshard.schema import BOOLEAN, DATE, FLOAT, INTEGER, KEYWORD, TEXT, VECTOR, base_type, parse_schema
from kvshard.vectors import parse_vector_type

REPORT_PREFIX = "reindex/"
"""Not under map/: what leaves report is no part of the map."""

_KINDS = {TEXT: "strings", KEYWORD: "strings", DATE: "strings", INTEGER: "numbers", FLOAT: "numbers", BOOLEAN: "booleans"}

Reports = Mapping[str, Several[int]]
"""Leaf -> shards of which it has the new index."""


def report_key(collection_id: int, version: int, leaf: str) -> str:
    """Under which a leaf reports of one change."""
    return f"{REPORT_PREFIX}{collection_id}/{version}/{leaf}"


def with_fields(collection: Collection, fields: Mapping[str, str]) -> dict[str, str]:
    """The collection's schema with fields added. Raises InvalidArgument for one that is there with another type."""
    for name, field_type in fields.items():
        held = collection.schema.get(name)
        if held not in (None, field_type):
            message = f"field {name!r} is of type {held} in {collection.name}; to change it, reindex the collection"
            raise InvalidArgument(message, ErrorDetails(field=f"fields.{name}"))
    return parse_schema({**collection.schema, **fields})


def with_types(collection: Collection, fields: Mapping[str, str]) -> dict[str, str]:
    """The collection's schema with fields changed, or added.

    Raises InvalidArgument where no value of a field could fit its new type, FailedPrecondition where there is nothing to index.
    """
    for name, field_type in parse_schema(fields).items():
        held = collection.schema.get(name)
        was, becomes = _kind(held or field_type), _kind(field_type)
        if was != becomes:
            message = (
                f"field {name!r} is of type {held} in {collection.name}: its values are {was}, none would fit {field_type}"
            )
            raise InvalidArgument(message, ErrorDetails(field=f"fields.{name}"))
    wanted = parse_schema({**collection.schema, **fields})
    if not wanted:
        raise FailedPrecondition(
            f"collection {collection.name!r} has no schema, so it has no index", ErrorDetails(field="name")
        )
    return wanted


def _kind(field_type: str) -> str:
    """What the values of a field are in JSON."""
    base = base_type(field_type)
    return f"vectors of {parse_vector_type(field_type).dim} numbers" if base == VECTOR else _KINDS[base]


async def add_fields(coordinator: Coordinator, name: str, fields: Mapping[str, str]) -> Collection:
    """Begin to add fields to a collection's schema; one that has them all already is left as it is.

    Raises CollectionNotFound; InvalidArgument; ChangeConflict while another change is under way.
    """
    if not fields:
        raise InvalidArgument("name the fields to add", ErrorDetails(field="fields"))
    return await _begin(coordinator, name, lambda held: with_fields(held, fields), is_repeatable=True)


async def reindex(coordinator: Coordinator, name: str, fields: Mapping[str, str]) -> Collection:
    """Begin to build a collection's indexes anew, with fields of another type, or more of them.

    Raises CollectionNotFound; InvalidArgument; FailedPrecondition; ChangeConflict while another change is under way.
    """
    return await _begin(coordinator, name, lambda held: with_types(held, fields), is_repeatable=False)


async def _begin(
    coordinator: Coordinator, name: str, schema_of: Callable[[Collection], dict[str, str]], *, is_repeatable: bool
) -> Collection:
    """is_repeatable: where the schema is as it is wanted, there is nothing to do."""

    async def attempt() -> Collection | None:
        item = await read_collection(coordinator, name)
        held = decode_collection(item)
        if held.id == DEFAULT_COLLECTION.id:
            message = "the default collection holds plain values; make a collection with a schema for documents"
            raise InvalidArgument(message, ErrorDetails(field="name"))
        schema = schema_of(held)
        if held.change is not None:
            if dict(held.change.schema) == schema:
                return held  # Begun already, by this very call, perhaps, whose answer was lost.
            message = f"the schema of {held.name} is being changed already, to version {held.change.version}"
            raise ChangeConflict(f"{message}; wait until that is done, or call it off", ErrorDetails(field="name"))
        if is_repeatable and dict(held.schema) == schema:
            return held
        version = held.versions + 1
        wanted = replace(held, change=SchemaChange(schema, version), versions=version)
        return wanted if await replace_keys(coordinator, [(item.key, item)], [put_collection(wanted)]) else None

    return await until_done(attempt, f"change the schema of {name}")


async def call_off(coordinator: Coordinator, name: str) -> Collection:
    """Call off the change of a collection's schema that is under way; without one nothing happens."""

    async def attempt() -> Collection | None:
        item = await read_collection(coordinator, name)
        held = decode_collection(item)
        if held.change is None:
            return held
        wanted = replace(held, change=None)
        return wanted if await replace_keys(coordinator, [(item.key, item)], [put_collection(wanted)]) else None

    return await until_done(attempt, f"call off the change of {name}")


async def finish(coordinator: Coordinator, collection: Collection, guards: Sequence[Compare] = ()) -> bool:
    """Put the schema that a collection is to get in the place of the one it has, if that change is still under way.

    guards: must hold too. Tried once. Raises CoordinatorUnavailable.
    """
    item = await read_collection(coordinator, collection.name)
    held = decode_collection(item)
    if held.id != collection.id or held.change is None or held.change != collection.change:
        return False
    compares = [Compare(item.key, item.revision), *guards]
    return (await coordinator.txn(compares, [put_collection(held.changed())])).has_succeeded


async def report(coordinator: Coordinator, key: str, shards: Several[int]) -> bool:
    """Say for which shards this leaf has the new index. False: it is to be said again."""
    value = json.dumps(sorted(shards)).encode()
    item = await coordinator.get(key)
    if item is not None and item.value == value:
        return True
    compare = Compare(key, item.revision if item is not None else ABSENT)
    return (await coordinator.txn([compare], [Put(key, value)])).has_succeeded


async def read_reports(coordinator: Coordinator) -> dict[tuple[int, int], dict[str, frozenset[int]]]:
    """What leaves have reported: (collection id, version) -> leaf -> shards."""
    found: dict[tuple[int, int], dict[str, frozenset[int]]] = {}
    for item in (await coordinator.get_prefix(REPORT_PREFIX)).items:
        collection_id, version, leaf = item.key.removeprefix(REPORT_PREFIX).split("/", 2)
        found.setdefault((int(collection_id), int(version)), {})[leaf] = frozenset(json.loads(item.value))
    return found


async def forget_reports(coordinator: Coordinator, change: tuple[int, int], leaves: Several[str]) -> None:
    """Remove the reports of a change that is over."""
    for leaf in leaves:
        await coordinator.txn([], [Delete(report_key(*change, leaf))])


def lacking(cluster_map: ClusterMap, reports: Reports) -> list[tuple[int, str]]:
    """Replicas in sync, as (shard, leaf), that have not reported a change's index yet."""
    return [
        (shard.id, replica.leaf)
        for shard in cluster_map.shards.values()
        for replica in shard.in_sync
        if shard.id not in reports.get(replica.leaf, ())
    ]
