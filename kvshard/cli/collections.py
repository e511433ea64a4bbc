"""`kvshard collection create|set|add-field|reindex|alias|list|drop`."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from kvshard.cli.console import EXIT_OK, EXIT_USAGE, Connect, complain, parse_pairs, print_json, rich_console, with_client
from kvshard.cli.schema_progress import change_json, change_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvshard.client.client import Client
    from kvshard.client.results import CollectionInfo
    from kvshard.client.status import ClusterStatus

_DEFAULTS = Connect()


def register(app: App) -> None:
    """Add the verbs to the command line."""
    group = App(name="collection", help="Create, change, name, list and drop collections.")
    group.command(create)
    group.command(set_collection, name="set")
    group.command(add_field, name="add-field")
    group.command(reindex)
    group.command(alias)
    group.command(list_collections, name="list")
    group.command(drop)
    app.command(group)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Hedges:
    """How the reads of a collection are hedged.

    Parameters
    ----------
    hedge
        When to ask a spare replica too, for reads that do not say: "auto", "off", a delay as "10ms", a quantile as "p99",
        "min(p99,50ms)", "max(p95,10ms)"; "default": as the router has it.
    hedge_budget
        Extra requests allowed, as a part of the first ones in every 10 s: "5%", at most 50%; 0 allows none; "default".
    hedge_attempts
        Attempts of a shard's part of a read at most, the first one included, 1 to 3; 0: as the router has it.
    """

    hedge: str | None = None
    hedge_budget: str | None = None
    hedge_attempts: int | None = None


_UNSAID = Hedges()


def create(name: str, /, *fields: str, schema: str = "", hedges: Hedges = _UNSAID, connect: Connect = _DEFAULTS) -> int:
    """Create a collection; nothing happens where it exists with this very schema.

    Parameters
    ----------
    name
        Its name.
    fields
        Its searchable fields, as "title:text" or "title=text"; types are text, keyword, integer, float, boolean, date,
        vector(DIM). A text may name its analyzer, as "text(english)"; others are ascii, cjk, keyword, ngram and further
        languages.
    schema
        The same in one word, as "title=text,year=integer".
    """
    wanted = _fields_of((*fields, *filter(None, (schema,))))

    async def work(kv: "Client[bytes]") -> int:
        info = await kv.collection(name).create(wanted, **asdict(hedges))
        _show(info, connect)
        return EXIT_OK

    return with_client(connect, work)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Synonyms:
    """Which words of queries mean the same. What is given takes the place of all rules there are.

    Parameters
    ----------
    synonyms
        File with a rule on each line, "-" for standard input: "car, automobile" mean each other; by "laptop => notebook" who
        looks for laptop finds notebook too.
    synonym
        A rule; may be given several times.
    no_synonyms
        Remove all rules.
    """

    synonyms: str | None = None
    synonym: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    no_synonyms: Annotated[bool, Parameter(negative="")] = False

    def rules(self) -> list[str] | None:
        """What was said; None for nothing. Raises InvalidArgument, and OSError for a file that cannot be read."""
        from kvshard.client.checks import invalid

        said = self.synonyms is not None or bool(self.synonym)
        if said and self.no_synonyms:
            raise invalid("--no-synonyms and rules exclude each other", "synonyms")
        if self.no_synonyms:
            return []
        if not said:
            return None
        if self.synonyms is None:
            return list(self.synonym)
        try:
            text = sys.stdin.read() if self.synonyms == "-" else Path(self.synonyms).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise invalid(f"{self.synonyms} is not UTF-8 text", "synonyms") from None
        return [*text.splitlines(), *self.synonym]


_NO_RULES = Synonyms()


def set_collection(
    name: str, /, *, hedges: Hedges = _UNSAID, synonyms: Synonyms = _NO_RULES, connect: Connect = _DEFAULTS
) -> int:
    """Change how the reads of a collection are hedged, and its synonyms; what is left out stays as it is.

    Parameters
    ----------
    name
        Its name.
    """

    rules = synonyms.rules()

    async def work(kv: "Client[bytes]") -> int:
        _show(await kv.collection(name).update(**asdict(hedges), synonyms=rules), connect)
        return EXIT_OK

    return with_client(connect, work)


def add_field(
    name: str, /, *fields: str, wait: Annotated[bool, Parameter(negative="")] = False, connect: Connect = _DEFAULTS
) -> int:
    """Add searchable fields to a collection; they can be searched once the documents that are there are indexed.

    Parameters
    ----------
    name
        Its name.
    fields
        As "lang:keyword", or "lang=keyword"; see create for the types.
    wait
        Return when they can be searched.
    """
    added = _fields_of(fields)
    if not added:
        complain('name the fields to add, as "lang:keyword"')
        return EXIT_USAGE

    async def work(kv: "Client[bytes]") -> int:
        return await _follow(kv, await kv.collection(name).add_fields(added), wait, connect)

    return with_client(connect, work)


def reindex(
    name: str,
    /,
    *,
    field: tuple[str, ...] = (),
    cancel: Annotated[bool, Parameter(negative="")] = False,
    wait: Annotated[bool, Parameter(negative="")] = False,
    connect: Connect = _DEFAULTS,
) -> int:
    """Build the search index of a collection anew in the background, and switch to it at once.

    Parameters
    ----------
    name
        Its name.
    field
        A field that gets another type or analyzer, as "body=text(english)"; may be given several times.
    cancel
        Call off the change that is under way instead.
    wait
        Return when the new index is used.
    """
    if cancel and (field or wait):
        complain("--cancel goes without --field and --wait")
        return EXIT_USAGE
    fields = _fields_of(field)

    async def work(kv: "Client[bytes]") -> int:
        there = kv.collection(name)
        return await _follow(kv, await (there.cancel_reindex() if cancel else there.reindex(fields)), wait, connect)

    return with_client(connect, work)


async def _follow(kv: "Client[bytes]", info: "CollectionInfo", wait: bool, connect: Connect) -> int:
    """Show a collection whose schema is being changed, and how many documents do not fit when that is done."""
    if wait and info.change is not None:
        info = await kv.collection(info.name).wait_indexed()
    _show(info, connect)
    if wait and not connect.as_json:
        for field, count in sorted((await kv.status()).misfits(info.id).items()):
            where = f"field {field}" if field else "any field, for they are no JSON objects"
            print(f"{count:,} documents have a value that does not fit, and are not found by {where}")
    return EXIT_OK


def _fields_of(given: tuple[str, ...]) -> dict[str, str]:
    return parse_pairs(",".join(given))


def alias(
    name: str,
    collection: str = "",
    /,
    *,
    if_collection: str | None = None,
    remove: Annotated[bool, Parameter(negative="")] = False,
    connect: Connect = _DEFAULTS,
) -> int:
    """Let an alias stand for a collection from now on, or remove it.

    Parameters
    ----------
    name
        The alias.
    collection
        The collection that it is to stand for.
    if_collection
        Do it only if it stands for this collection now; "" if there is to be no such alias yet.
    remove
        Remove the alias; its collection stays.
    """
    if remove == bool(collection) or (remove and if_collection is not None):
        complain("name the collection that the alias is to stand for, or say --remove")
        return EXIT_USAGE

    async def work(kv: "Client[bytes]") -> int:
        if remove:
            removed = await kv.remove_alias(name)
            print_json({"removed": name, "collection": removed}) if connect.as_json else print(f"removed {name}, of {removed}")
            return EXIT_OK
        await kv.set_alias(name, collection, if_collection=if_collection)
        print_json({"alias": name, "collection": collection}) if connect.as_json else print(f"{name} stands for {collection}")
        return EXIT_OK

    return with_client(connect, work)


def list_collections(*, connect: Connect = _DEFAULTS) -> int:
    """List the collections with their schemas, how their reads are hedged, and their aliases."""

    async def work(kv: "Client[bytes]") -> int:
        infos = await kv.collections()
        # The leaves are asked only where there is something under way.
        status = await kv.status() if any(info.change is not None for info in infos) else None
        if connect.as_json:
            print_json([_row(info, status) for info in infos])
            return EXIT_OK
        from rich.table import Table

        from kvshard.hedge_settings import hedging_text

        heads = ("collection", "schema", "hedging", "aliases", *(("on its way",) if status is not None else ()))
        table = Table(*heads, box=None, pad_edge=False)
        for info in infos:
            cells = [_schema_text(info), hedging_text(info.hedging) or "-", ", ".join(info.aliases) or "-"]
            if status is not None:
                cells.append(change_text(status, info.id) or "-")
            table.add_row(info.name, *cells)
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
    return _pairs_text(info.schema) or "plain values"


def _pairs_text(schema: "Mapping[str, str]") -> str:
    return ", ".join(f"{field}={kind}" for field, kind in schema.items())


def _show(info: "CollectionInfo", connect: Connect) -> None:
    if connect.as_json:
        print_json(_row(info))
        return
    from kvshard.hedge_settings import hedging_text

    hedging, rules = hedging_text(info.hedging), len(info.synonyms)
    said = f"; hedging: {hedging}" if hedging else ""
    said += f"; {rules} synonym rule{'' if rules == 1 else 's'}" if rules else ""
    said += "" if info.change is None else f"; being indexed: {_pairs_text(info.change.schema)}"
    print(f"collection {info.name}: {_schema_text(info)}{said}")


def _row(info: "CollectionInfo", status: "ClusterStatus | None" = None) -> dict[str, object]:
    from kvshard.hedge_settings import hedging_json

    row: dict[str, object] = {
        "name": info.name,
        "id": info.id,
        "schema": dict(info.schema),
        "hedging": hedging_json(info.hedging),
    }
    change = change_json(status, info.change, info.id)
    row |= {"aliases": list(info.aliases), "synonyms": list(info.synonyms)}
    return {**row, "version": info.version, "change": change}
