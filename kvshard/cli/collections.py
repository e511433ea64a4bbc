"""`kvshard collection create|list|drop`."""

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from kvshard.cli.console import EXIT_OK, EXIT_USAGE, Connect, complain, parse_pairs, print_json, rich_console, with_client

if TYPE_CHECKING:
    from kvshard.client.client import Client
    from kvshard.client.results import CollectionInfo

_DEFAULTS = Connect()


def register(app: App) -> None:
    """Add the verbs to the command line."""
    group = App(name="collection", help="Create, list and drop collections.")
    group.command(create)
    group.command(list_collections, name="list")
    group.command(drop)
    app.command(group)


def create(name: str, /, *, schema: str = "", connect: Connect = _DEFAULTS) -> int:
    """Create a collection; nothing happens where it exists with this very schema.

    Parameters
    ----------
    name
        Its name.
    schema
        Its searchable fields, as "title=text,year=integer"; types are text, keyword, integer, float, boolean, date.
    """
    fields = parse_pairs(schema)

    async def work(kv: "Client[bytes]") -> int:
        info = await kv.collection(name).create(fields)
        if connect.as_json:
            print_json(_row(info))
        else:
            print(f"collection {info.name}: {_schema_text(info)}")
        return EXIT_OK

    return with_client(connect, work)


def list_collections(*, connect: Connect = _DEFAULTS) -> int:
    """List the collections with their schemas."""

    async def work(kv: "Client[bytes]") -> int:
        infos = await kv.collections()
        if connect.as_json:
            print_json([_row(info) for info in infos])
            return EXIT_OK
        from rich.table import Table

        table = Table("collection", "schema", box=None, pad_edge=False)
        for info in infos:
            table.add_row(info.name, _schema_text(info))
        rich_console().print(table)
        return EXIT_OK

    return with_client(connect, work)


def drop(
    name: str, /, *, yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative="")] = False, connect: Connect = _DEFAULTS
) -> int:
    """Drop a collection with all its keys.

    Parameters
    ----------
    name
        Its name.
    yes
        Do not ask.
    """
    if not yes:
        if not sys.stdin.isatty():
            complain(f"this drops {name} with all its keys; say --yes")
            return EXIT_USAGE
        if input(f"Drop collection {name} with all its keys? [y/N] ").strip().lower() not in ("y", "yes"):
            complain("nothing dropped")
            return EXIT_USAGE

    async def work(kv: "Client[bytes]") -> int:
        await kv.collection(name).drop()
        if connect.as_json:
            print_json({"dropped": name})
        else:
            print(f"dropped {name}")
        return EXIT_OK

    return with_client(connect, work)


def _schema_text(info: "CollectionInfo") -> str:
    return ", ".join(f"{field}={kind}" for field, kind in info.schema.items()) or "plain values"


def _row(info: "CollectionInfo") -> dict[str, object]:
    return {"name": info.name, "id": info.id, "schema": dict(info.schema)}
