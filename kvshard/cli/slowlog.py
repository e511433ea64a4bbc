"""`kvshard slowlog`: the slowest reads that a router answered lately, and what made them slow."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from kvshard.cli.console import EXIT_OK, EXIT_UNAVAILABLE, Connect, complain, print_json, rich_console, with_client
from kvshard.cli.timings import attempts_text, blame_text, show_timing
from kvshard.workers import ROUTER

if TYPE_CHECKING:
    from rich.table import Table

    from kvshard.client.client import Client
    from kvshard.client.results import SlowRead, SlowReads

_DEFAULTS = Connect()


def register(app: App) -> None:
    """Add the verb to the command line."""
    app.command(slowlog)


def slowlog(
    *,
    limit: int = 20,
    method: str = "",
    explain: Annotated[bool, Parameter(negative="")] = False,
    reset: Annotated[bool, Parameter(negative="")] = False,
    connect: Connect = _DEFAULTS,
) -> int:
    """Show the slowest reads of the last ten minutes at one router, in all of its processes, and what each waited for.

    Parameters
    ----------
    limit
        Reads wanted at most.
    method
        Only reads of this method: Get, BatchGet, Scan, Search or Suggest.
    explain
        Show where the time of each went, leg by leg.
    reset
        Let the router forget them afterwards.
    """

    async def work(kv: "Client[bytes]") -> int:
        reads = await kv.slow_reads(limit, method=method, reset=reset)
        if connect.as_json:
            for read in reads:
                print_json(asdict(read))
            return _tell_silent(reads)
        console = rich_console()
        if not explain:
            console.print(_table(reads) if reads else "nothing yet")
            return _tell_silent(reads)
        for read in reads:
            where = f"{read.method} in {read.collection} at {read.worker or 'the router'}"
            console.print(f"{_when(read)} {where}, {read.code}: {read.detail}", markup=False)
            show_timing(console, read.timing)
        return _tell_silent(reads)

    return with_client(connect, work)


def _tell_silent(reads: "SlowReads") -> int:
    if not reads.silent:
        return EXIT_OK
    complain(f"no answer from {', '.join(reads.silent)}; what they have is missing here")
    return EXIT_UNAVAILABLE


def _table(reads: "SlowReads") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    has_workers = any(
        read.worker not in ("", ROUTER) for read in reads
    )  # Which process it was says nothing where there is one.
    for column in ("ended", *(["worker"] if has_workers else []), "method", "collection"):
        table.add_column(column, no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    for column in ("status", "waited for last", "attempts"):
        table.add_column(column)
    table.add_column("asked for", overflow="ellipsis", no_wrap=True, max_width=60)
    for read in reads:
        code = read.code if read.code == "OK" else f"[red]{read.code}[/]"
        took = f"{read.timing.total_us / 1000:,.2f} ms"
        asked = (escape(blame_text(read.timing)), attempts_text(read.timing), escape(read.detail))
        worker = [read.worker] if has_workers else []
        table.add_row(_when(read), *worker, read.method, escape(read.collection), took, code, *asked)
    return table


def _when(read: "SlowRead") -> str:
    return read.at.astimezone().strftime("%H:%M:%S.%f")[:-3]
