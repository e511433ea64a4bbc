"""From names and keys to shards and leaves: what the router needs of the cluster map, and nothing that awaits a leaf."""

from typing import Protocol

from kvshard.clustermap import DEFAULT_COLLECTION, ClusterMap, Collection
from kvshard.errors import CollectionNotFound, ErrorDetails, Unavailable


class MapSource(Protocol):
    """Where the cluster map comes from; `kvshard.coordination.mapstore.MapStore` is one, tests bring their own."""

    @property
    def has_map(self) -> bool:
        """True once a map is known."""
        ...

    @property
    def current(self) -> ClusterMap:
        """The newest map that is known."""
        ...

    async def refresh(self) -> ClusterMap:
        """Read the map anew."""
        ...

    async def wait_newer(self, version: int, timeout: float) -> ClusterMap:
        """The current map as soon as it is newer than version; after the timeout whatever it is then."""
        ...


def known_map(maps: MapSource) -> ClusterMap:
    """The current map. Raises Unavailable while there is none."""
    if not maps.has_map:
        raise Unavailable("the router does not know the cluster map yet", ErrorDetails(retry_after_ms=200))
    return maps.current


def resolve_known(maps: MapSource, name: str) -> tuple[ClusterMap, Collection] | None:
    """What `resolve` finds, if it need not await anything for that; else None."""
    if not maps.has_map:
        return None
    current = maps.current
    collection = current.collection(name or DEFAULT_COLLECTION.name)
    return None if collection is None else (current, collection)


async def resolve(maps: MapSource, name: str) -> tuple[ClusterMap, Collection]:
    """The map and the collection of that name or alias in it; the empty name is the default collection.

    A name that the map lacks may just have been created through another router, so the map is read anew once.
    """
    name = name or DEFAULT_COLLECTION.name
    current = known_map(maps)
    collection = current.collection(name)
    if collection is None:
        current = await maps.refresh()
        collection = current.collection(name)
    if collection is None:
        raise CollectionNotFound(f"there is no collection {name!r}", ErrorDetails(field="collection"))
    return current, collection
