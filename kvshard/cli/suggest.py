"""`kvshard suggest`: how a half typed text may go on, and what it may have meant."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from kvshard.cli.console import EXIT_OK, Connect, complain, print_json, rich_console, with_client
from kvshard.cli.reading import ANYHOW, WHOLE, Gathering, Reading, missing_lines

if TYPE_CHECKING:
    from kvshard.client.client import Client
    from kvshard.client.options import ReadOverrides
    from kvshard.client.suggestions import Suggestions

_DEFAULTS = Connect()


def register(app: App) -> None:
    """Add the verb to the command line."""
    app.command(suggest)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be suggested.

    Parameters
    ----------
    fields
        Take suggestions from this field; may be given several times. From all texts without it.
    limit
        Completions wanted.
    filters
        A query that documents must match to count; may be given several times.
    """

    fields: Annotated[tuple[str, ...], Parameter(name="--field", negative="")] = ()
    limit: int = 5
    filters: Annotated[tuple[str, ...], Parameter(name="--filter", negative="")] = ()


_ANYTHING = Wanted()


def suggest(
    collection: str,
    text: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    wanted: Wanted = _ANYTHING,
    reading: Reading = ANYHOW,
    gathering: Gathering = WHOLE,
    connect: Connect = _DEFAULTS,
) -> int:
    """Say how a half typed text may go on, and what its misspelt words may have meant.

    Parameters
    ----------
    collection
        Collection to take suggestions from.
    text
        What was typed so far.
    """
    options: ReadOverrides = {**reading.overrides(), **gathering.overrides()}

    async def work(kv: "Client[bytes]") -> int:
        found = await kv.collection(collection).suggest(
            text, field=wanted.fields, limit=wanted.limit, filters=wanted.filters, **options
        )
        if connect.as_json:
            print_json(_as_json(found))
        else:
            _show(found)
        return EXIT_OK

    return with_client(connect, work)


def _show(found: "Suggestions") -> None:
    from rich.table import Table
    from rich.text import Text

    console = rich_console()
    if found.corrected is not None:
        console.print(Text.assemble("did you mean: ", (found.corrected, "bold")))
    table = Table(box=None, pad_edge=False, show_header=False)
    about = "at least " if found.error_bound else ""
    for each in found.completions:
        table.add_row(Text(each.text), Text(f"{about}{each.documents:,} document{'' if each.documents == 1 else 's'}", "dim"))
    if found.completions:
        console.print(table)
    elif found.corrected is None:
        console.print("nothing to suggest")
    for line in missing_lines(found.coverage):
        complain(line)


def _as_json(found: "Suggestions") -> dict[str, object]:
    coverage = found.coverage
    return {
        "completions": [asdict(each) for each in found.completions],
        "error_bound": found.error_bound,
        "words": [asdict(each) for each in found.words],
        "corrected": found.corrected,
        "complete": found.complete,
        "coverage": {"fraction": coverage.fraction, "legs": coverage.legs, "legs_ok": coverage.legs_ok},
    }
