"""`kvshard shard list`: the cluster map, as tables or as JSON."""

from typing import TYPE_CHECKING

from cyclopts import App

from kvshard.cli.console import EXIT_OK, Connect, with_client

if TYPE_CHECKING:
    from kvshard.client.client import Client

_DEFAULTS = Connect()


def register(app: App) -> None:
    """Add the verbs to the command line."""
    shard = App(name="shard", help="Look at the shards.")
    shard.command(show, name="list")
    app.command(shard)


def show(*, connect: Connect = _DEFAULTS) -> int:
    """Show the cluster map: leaves, shards with their token ranges and replicas, collections. --json: the map as it is kept."""

    async def work(kv: "Client[bytes]") -> int:
        from kvshard import clustermap_text

        cluster_map = await kv.map()
        print(clustermap_text.to_json(cluster_map) if connect.as_json else clustermap_text.pretty(cluster_map))
        return EXIT_OK

    return with_client(connect, work)
