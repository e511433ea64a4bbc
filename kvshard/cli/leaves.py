"""`kvshard leaf drain` and `leaf remove`: taking leaves out of a running cluster. (`leaf run` is in `run.py`.)"""

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from kvshard.cli.console import EXIT_OK, EXIT_USAGE, Connect, complain, print_json, with_client
from kvshard.cli.waiting import MAX_WAIT_S, refused_is_conflict, wait_until

if TYPE_CHECKING:
    from kvshard.client.client import Client
    from kvshard.client.status import ClusterStatus

_DEFAULTS = Connect()


def register(app: App) -> None:
    """Add the verbs to the group that has `leaf run`."""
    app["leaf"].command(drain)
    app["leaf"].command(remove)


def drain(
    leaf: str,
    /,
    *,
    undo: Annotated[bool, Parameter(negative="")] = False,
    wait: Annotated[bool, Parameter(negative="")] = False,
    max_wait: float = MAX_WAIT_S,
    connect: Connect = _DEFAULTS,
) -> int:
    """Have a leaf emptied: what it holds moves to other leaves, and it gets nothing new.

    Parameters
    ----------
    leaf
        Its id.
    undo
        Take the order back.
    wait
        Return only when it is empty.
    max_wait
        Seconds to wait at most.
    """
    if undo and wait:
        complain("--wait is for draining, not for --undo")
        return EXIT_USAGE

    async def work(kv: "Client[bytes]") -> int:
        marked = await kv.drain_leaf(leaf, undo=undo)
        if wait:
            await wait_until(kv, lambda found: _left_on(found, leaf), f"leaf {leaf} to be empty", max_wait)
        if connect.as_json:
            print_json({"leaf": leaf, "is_draining": marked.is_draining, "is_empty": wait})
        elif wait:
            print(f"leaf {leaf} is empty; `kvshard leaf remove {leaf}` takes it out of the cluster")
        else:
            print(f"leaf {leaf} takes part again" if undo else f"leaf {leaf} is being drained; `kvshard status` shows how far")
        return EXIT_OK

    return refused_is_conflict(lambda: with_client(connect, work))


def remove(
    leaf: str,
    /,
    *,
    force: Annotated[bool, Parameter(negative="")] = False,
    connect: Connect = _DEFAULTS,
) -> int:
    """Take a leaf out of the cluster; refused while it holds something.

    Parameters
    ----------
    leaf
        Its id.
    force
        Also a leaf that holds something, if it is dead: what it held is made anew elsewhere at once.
    """

    async def work(kv: "Client[bytes]") -> int:
        is_done = await kv.remove_leaf(leaf, force=force)
        if connect.as_json:
            print_json({"leaf": leaf, "is_done": is_done})
        elif is_done:
            print(f"leaf {leaf} is removed")
        else:
            print(f"leaf {leaf} is not waited for any more; it is removed when what it held is made anew elsewhere")
        return EXIT_OK

    return refused_is_conflict(lambda: with_client(connect, work))


def _left_on(found: "ClusterStatus", leaf: str) -> str | None:
    """What a leaf still holds, in words; None when it is empty."""
    named = [
        shard.id
        for shard in found.map.shards.values()
        if leaf in shard.desired or any(replica.leaf == leaf for replica in shard.replicas)
    ]
    return f"{len(named)} shards left on leaf {leaf}" if named else None
