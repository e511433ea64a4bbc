"""`kvshard shard list` and `shard move`: where the shards live, and where they are to live."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from kvshard.cli.console import EXIT_OK, EXIT_USAGE, Connect, complain, print_json, with_client
from kvshard.cli.waiting import MAX_WAIT_S, refused_is_conflict, wait_until

if TYPE_CHECKING:
    from kvshard.client.client import Client
    from kvshard.client.status import ClusterStatus

_DEFAULTS = Connect()


def register(app: App) -> None:
    """Add the verbs to the command line."""
    shard = App(name="shard", help="Look at the shards, and move them.")
    shard.command(show, name="list")
    shard.command(move)
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


def _still_to_do(found: "ClusterStatus", shard: int) -> str | None:
    """What keeps a shard from being where it is wanted, in words; None when it is there."""
    from kvshard.cli.status import progress_text

    config = found.map.shards[shard]
    in_sync = {replica.leaf for replica in config.in_sync}
    if in_sync == set(config.desired) and config.primary == config.desired[0] and not config.learners:
        return None
    text = f"shard {shard} is in sync on {', '.join(sorted(in_sync))}, wanted on {', '.join(config.desired)}"
    return "; ".join([text, *(progress_text(each) for each in found.catching_up(shard))])
