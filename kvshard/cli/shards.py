"""`kvshard shard list`, `shard move` and `shard split`: where the shards live, where they are to live, and how many."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from kvshard.cli.console import EXIT_OK, EXIT_USAGE, Connect, complain, print_json, with_client
from kvshard.cli.waiting import MAX_WAIT_S, refused_is_conflict, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvshard.client.client import Client
    from kvshard.client.status import ClusterStatus
    from kvshard.clustermap import WantedSplit

_DEFAULTS = Connect()


def register(app: App) -> None:
    """Add the verbs to the command line."""
    shard = App(name="shard", help="Look at the shards, move them, and cut them in two.")
    shard.command(show, name="list")
    shard.command(move)
    shard.command(split)
    app.command(shard)


def show(*, connect: Connect = _DEFAULTS) -> int:
    """Show the cluster map: leaves, shards with their token ranges and replicas, collections. --json: the map as it is kept."""

    async def work(kv: "Client[bytes]") -> int:
        from kvshard import clustermap_text

        cluster_map = await kv.map()
        print(clustermap_text.to_json(cluster_map) if connect.as_json else clustermap_text.pretty(cluster_map))
        return EXIT_OK

    return with_client(connect, work)


def move(
    shard: int,
    /,
    *,
    source: Annotated[str | None, Parameter(name="--from")] = None,
    target: Annotated[str | None, Parameter(name="--to")] = None,
    primary: str | None = None,
    wait: Annotated[bool, Parameter(negative="")] = False,
    max_wait: float = MAX_WAIT_S,
    connect: Connect = _DEFAULTS,
) -> int:
    """Move a replica of a shard to another leaf (--from A --to B), or its primary to another of its leaves (--primary L).

    Parameters
    ----------
    shard
        Its number.
    source
        Leaf that gives its replica up.
    target
        Leaf that gets it; the primary too, where the wanted primary moves.
    primary
        Leaf that is to order the writes.
    wait
        Return only when the shard is there.
    max_wait
        Seconds to wait at most.
    """
    is_replica = source is not None and target is not None
    if is_replica == (primary is not None) or (source is None) != (target is None):
        complain("say either --from A --to B, or --primary L")
        return EXIT_USAGE

    async def work(kv: "Client[bytes]") -> int:
        if source is not None and target is not None:
            wanted = await kv.move_replica(shard, source, target)
        else:
            wanted = await kv.move_primary(shard, primary or "")
        if wait:
            await wait_until(kv, lambda found: _still_to_do(found, shard), f"shard {shard} to be there", max_wait)
        if connect.as_json:
            print_json({"shard": shard, "desired": list(wanted.desired), "is_there": wait})
        else:
            verb = "is on" if wait else "is wanted on"
            print(f"shard {shard} {verb} {', '.join(wanted.desired)}; the first orders the writes")
        return EXIT_OK

    return refused_is_conflict(lambda: with_client(connect, work))


def split(
    shard: int | None = None,
    /,
    *,
    every: Annotated[bool, Parameter(name="--all", negative="")] = False,
    wait: Annotated[bool, Parameter(negative="")] = False,
    max_wait: float = MAX_WAIT_S,
    connect: Connect = _DEFAULTS,
) -> int:
    """Cut a shard in two while it serves; or every shard, which doubles their number.

    Parameters
    ----------
    shard
        Its number.
    every
        Every shard that there is now.
    wait
        Return only when the new shards serve.
    max_wait
        Seconds to wait at most.
    """
    if every == (shard is not None):
        complain("say which shard, or --all")
        return EXIT_USAGE

    async def work(kv: "Client[bytes]") -> int:
        wanted = await kv.split_shards(None if shard is None else [shard])
        if wait:
            await wait_until(kv, lambda found: _still_to_split(found, wanted), "the new shards", max_wait)
        if connect.as_json:
            done = [{"shard": each, "child": split.child, "is_done": wait} for each, split in wanted.items()]
            print_json({"splits": done})
        else:
            verb = "was split into itself and" if wait else "is being split into itself and"
            for each, split in wanted.items():
                print(f"shard {each} {verb} {split.child}")
            if not wait:
                print("`kvshard status` shows how far")
        return EXIT_OK

    return refused_is_conflict(lambda: with_client(connect, work))


def _still_to_split(found: "ClusterStatus", wanted: "Mapping[int, WantedSplit]") -> str | None:
    """What keeps splits from being done, in words; None when all children serve."""
    from kvshard.cli.status import split_text

    left = [each for each, split in wanted.items() if split.child not in found.map.shards]
    if left:
        first = found.map.shards[left[0]]
        return f"{len(left)} of {len(wanted)} shards to be split; shard {first.id}: {split_text(found, first) or 'not begun'}"
    children = [split.child for split in wanted.values()]
    silent = [child for child in children if (replica := found.primary_replica(child)) is None or replica.role != "primary"]
    return f"{len(silent)} of {len(children)} new shards to serve" if silent else None


def _still_to_do(found: "ClusterStatus", shard: int) -> str | None:
    """What keeps a shard from being where it is wanted, in words; None when it is there."""
    from kvshard.cli.status import progress_text

    config = found.map.shards[shard]
    in_sync = {replica.leaf for replica in config.in_sync}
    if in_sync == set(config.desired) and config.primary == config.desired[0] and not config.learners:
        return None
    text = f"shard {shard} is in sync on {', '.join(sorted(in_sync))}, wanted on {', '.join(config.desired)}"
    return "; ".join([text, *(progress_text(each) for each in found.catching_up(shard))])
