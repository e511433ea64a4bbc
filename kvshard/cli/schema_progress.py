"""How far the change of a collection's schema is, for people and for programs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvshard.client.status import ClusterStatus
    from kvshard.clustermap import SchemaChange


def change_text(status: "ClusterStatus", collection_id: int) -> str:
    """How far the change of a collection's schema is, in words; empty when none is under way."""
    progress = status.reindexing(collection_id)
    collection = status.map.collection_by_id(collection_id)
    if progress is None or collection is None or collection.change is None:
        return ""
    changed = [f"{name}={kind}" for name, kind in collection.change.schema.items() if collection.schema.get(name) != kind]
    return f"reindexing {progress.fraction:.0%}" + (f" for {', '.join(changed)}" if changed else "")


def change_json(status: "ClusterStatus | None", info_change: "SchemaChange | None", collection_id: int) -> object:
    """The change of a collection's schema for programs, with its progress where the leaves were asked; null without one."""
    if info_change is None:
        return None
    progress = None if status is None else status.reindexing(collection_id)
    row: dict[str, object] = {"schema": dict(info_change.schema), "version": info_change.version}
    if progress is not None:
        waiting = [{"shard": shard, "leaf": leaf} for shard, leaf in progress.waiting_for]
        row |= {"rebuilt": progress.rebuilt, "total": progress.total, "waiting_for": waiting}
    return row
