"""Changes of the map that concern collections and their aliases.

An alias is another name of one collection. It never has the name of a collection, nor stands for another alias. Whoever makes
or moves an alias, and whoever makes or drops a collection, compares and writes `map/meta` with it: so each sees what the other
has done, and an alias of nothing cannot come to be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kvshard import clustermap_text as text
from kvshard.clustermap import DEFAULT_COLLECTION, Collection, Hedging
from kvshard.coordination.base import Coordinator, Delete, KeyValue, Put
from kvshard.coordination.mapwriter import (
    ALIAS_PREFIX,
    COLLECTION_PREFIX,
    META_KEY,
    alias_key,
    check_collection_name,
    collection_key,
    decode_alias,
    decode_collection,
    encode_meta,
    put_collection,
    read_meta,
    replace_keys,
    until_done,
)
from kvshard.errors import (
    AliasNotFound,
    ChangeConflict,
    CollectionExists,
    CollectionNotFound,
    ErrorDetails,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
)
from kvshard.hedge_settings import check_hedging, merged
from kvshard.schema import parse_schema
from kvshard.synonyms import check_synonyms

COLLECTIONS_MAX = 1_000
"""Every collection is in every copy of the map, and one with a schema is a search index on every shard."""

ALIASES_MAX = 1_000
"""Every alias is in every copy of the map."""

_NAME = ErrorDetails(field="name")


async def create_collection(
    coordinator: Coordinator, name: str, schema: Mapping[str, str], hedging: Hedging | None = None
) -> Collection:
    """Create a collection; one with the same schema is returned as it is. Raises CollectionExists when the schemas differ.

    hedging: how its reads are hedged; None says nothing of it, anything else must be as an existing collection has it.
    """
    check_collection_name(name)
    wanted = parse_schema(schema)
    hedging = None if hedging is None else check_hedging(hedging)

    async def attempt() -> Collection | None:
        item = await coordinator.get(collection_key(name))
        if item is not None:
            existing = decode_collection(item)
            if dict(existing.schema) != wanted:
                raise CollectionExists(f"collection {name!r} exists with another schema")
            if hedging not in (None, existing.hedging):
                raise CollectionExists(f"collection {name!r} exists with other hedging settings; they can be changed")
            return existing
        meta_item, meta = await read_meta(coordinator)
        if await coordinator.get(alias_key(name)) is not None:
            raise CollectionExists(f"{name!r} is an alias; a collection cannot have its name", _NAME)
        if len((await coordinator.get_prefix(COLLECTION_PREFIX)).items) >= COLLECTIONS_MAX:
            raise ResourceExhausted(
                f"the cluster has {COLLECTIONS_MAX} collections already", ErrorDetails(limit=COLLECTIONS_MAX)
            )
        created = Collection(name, meta.next_collection_id, wanted, hedging or Hedging())
        new_meta = replace(meta, next_collection_id=meta.next_collection_id + 1)
        writes = [put_collection(created), Put(META_KEY, encode_meta(new_meta))]
        is_done = await replace_keys(coordinator, [(collection_key(name), None), (META_KEY, meta_item)], writes)
        return created if is_done else None

    return await until_done(attempt, f"create collection {name}")


async def update_collection(
    coordinator: Coordinator, name: str, hedging: Hedging, names: Sequence[str], synonyms: Sequence[str] | None = None
) -> Collection:
    """Change the named fields of a collection's hedging settings, and leave the others. name: its own, or an alias.

    synonyms: the rules in place of those there are; None leaves them. Raises CollectionNotFound; InvalidArgument for settings
    that there are not, and for rules that are none.
    """
    change = check_hedging(merged(Hedging(), hedging, names))
    rules = None if synonyms is None else check_synonyms(synonyms)

    async def attempt() -> Collection | None:
        item = await read_collection(coordinator, name)
        held = decode_collection(item)
        wanted = replace(held, hedging=merged(held.hedging, change, names))
        if rules is not None:
            wanted = replace(wanted, synonyms=rules)
        if wanted == held:
            return held
        return wanted if await replace_keys(coordinator, [(item.key, item)], [put_collection(wanted)]) else None

    return await until_done(attempt, f"update collection {name}")


async def drop_collection(coordinator: Coordinator, name: str) -> Collection:
    """Drop a collection.

    Raises CollectionNotFound; InvalidArgument for the default collection; FailedPrecondition for an alias, and for what an
    alias stands for.
    """
    if name == DEFAULT_COLLECTION.name:
        raise InvalidArgument("the default collection cannot be dropped", ErrorDetails(field="name"))
    seen: Collection | None = None

    async def attempt() -> Collection | None:
        nonlocal seen
        item = await coordinator.get(collection_key(name))
        if item is None:
            if seen is not None:
                return seen  # our own drop whose answer was lost, or another's: it is gone either way
            if await coordinator.get(alias_key(name)) is not None:
                raise FailedPrecondition(f"{name!r} is an alias: remove it, or drop the collection that it stands for", _NAME)
            raise CollectionNotFound(f"there is no collection {name!r}")
        seen = decode_collection(item)
        # Whoever changes an alias writes the meta too, so none can be made between this look and the drop.
        meta_item, meta = await read_meta(coordinator)
        aliases = [alias for alias, target in await read_aliases(coordinator) if target == name]
        if aliases:
            raise FailedPrecondition(f"alias {', '.join(aliases)} stands for collection {name!r}; remove it first", _NAME)
        writes: list[Put | Delete] = [Delete(item.key), Put(META_KEY, encode_meta(meta))]
        return seen if await replace_keys(coordinator, [(item.key, item), (META_KEY, meta_item)], writes) else None

    return await until_done(attempt, f"drop collection {name}")


async def read_collection(coordinator: Coordinator, name: str) -> KeyValue:
    """A collection, by its name or an alias, as it is stored. Raises CollectionNotFound."""
    alias = await coordinator.get(alias_key(name))
    item = await coordinator.get(collection_key(decode_alias(alias)[1] if alias is not None else name))
    if item is None:
        raise CollectionNotFound(f"there is no collection {name!r}", _NAME)
    return item


async def read_aliases(coordinator: Coordinator) -> list[tuple[str, str]]:
    """Every alias with its collection, as they are stored."""
    return [decode_alias(item) for item in (await coordinator.get_prefix(ALIAS_PREFIX)).items]


async def set_alias(coordinator: Coordinator, alias: str, collection: str, expected: str | None = None) -> None:
    """Let an alias stand for a collection from now on; what it stood for before it no longer does, at once.

    expected: the collection that it must stand for now, "" for a new alias; None: whatever it is. An alias that stands for the
    collection already is left as it is. Raises CollectionNotFound; CollectionExists when a collection has the alias's name;
    InvalidArgument when `collection` is an alias; ChangeConflict when it stands for another collection than expected.
    """
    check_collection_name(alias)

    async def attempt() -> bool | None:
        meta_item, meta = await read_meta(coordinator)
        item = await coordinator.get(alias_key(alias))
        held = decode_alias(item)[1] if item is not None else ""
        if held == collection:
            return True
        await _check_alias(coordinator, alias, collection)
        if expected is not None and held != expected:
            stands = f"stands for {held!r}" if held else "does not exist"
            wanted = f"for {expected!r}" if expected else "to be new"
            raise ChangeConflict(f"alias {alias!r} {stands}, and was expected {wanted}", ErrorDetails(field="if_collection"))
        if item is None and len(await read_aliases(coordinator)) >= ALIASES_MAX:
            raise ResourceExhausted(f"the cluster has {ALIASES_MAX} aliases already", ErrorDetails(limit=ALIASES_MAX))
        writes = [_alias_put(alias, collection), Put(META_KEY, encode_meta(meta))]
        return await replace_keys(coordinator, [(alias_key(alias), item), (META_KEY, meta_item)], writes) or None

    await until_done(attempt, f"set alias {alias}")


async def _check_alias(coordinator: Coordinator, alias: str, collection: str) -> None:
    if await coordinator.get(collection_key(alias)) is not None:
        raise CollectionExists(f"{alias!r} is a collection; an alias cannot have its name", ErrorDetails(field="alias"))
    if await coordinator.get(collection_key(collection)) is None:
        if await coordinator.get(alias_key(collection)) is not None:
            message = f"{collection!r} is an alias itself; an alias stands for a collection"
            raise InvalidArgument(message, ErrorDetails(field="collection"))
        raise CollectionNotFound(f"there is no collection {collection!r}", ErrorDetails(field="collection"))


async def remove_alias(coordinator: Coordinator, alias: str) -> str:
    """Remove an alias; the collection stays. Returns its name. Raises AliasNotFound."""
    seen = ""

    async def attempt() -> str | None:
        nonlocal seen
        meta_item, meta = await read_meta(coordinator)
        item = await coordinator.get(alias_key(alias))
        if item is None:
            if seen:
                return seen  # our own removal whose answer was lost, or another's: it is gone either way
            raise AliasNotFound(f"there is no alias {alias!r}", ErrorDetails(field="alias"))
        seen = decode_alias(item)[1]
        expected: list[tuple[str, KeyValue | None]] = [(item.key, item), (META_KEY, meta_item)]
        writes: list[Put | Delete] = [Delete(item.key), Put(META_KEY, encode_meta(meta))]
        return seen if await replace_keys(coordinator, expected, writes) else None

    return await until_done(attempt, f"remove alias {alias}")


def _alias_put(alias: str, collection: str) -> Put:
    return Put(alias_key(alias), text.encode(text.alias_data(alias, collection)).encode())
