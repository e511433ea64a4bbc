"""`kvshard status`: the leaves, the shards, and what they hold; the router, and what it does against slow leaves."""

from typing import TYPE_CHECKING

from cyclopts import App

from kvshard.cli.console import EXIT_OK, Connect, print_json, rich_console, with_client
from kvshard.cli.schema_progress import change_json, change_text
from kvshard.cli.tail_status import leaf_health_table, leg_kinds_table, tail_lines
from kvshard.workers import ROUTER, added_up

if TYPE_CHECKING:
    from rich.table import Table

    from kvshard.client.client import Client
    from kvshard.client.status import ClusterStatus, LeafStatus
    from kvshard.clustermap import Collection, ShardConfig
    from kvshard.model import CatchUpRecord
    from kvshard.tail.status import TailStatus
    from kvshard.workers import WorkerStatus

_DEFAULTS = Connect()


def register(app: App) -> None:
    """Add the verb to the command line."""
    app.command(status)


def status(*, connect: Connect = _DEFAULTS) -> int:
    """Show the state of every leaf and shard, with documents and bytes, and what the router does against slow leaves."""

    async def work(kv: "Client[bytes]") -> int:
        found = await kv.status()
        if connect.as_json:
            print_json(_as_json(found))
            return EXIT_OK
        console = rich_console()
        console.print(_leaves(found))
        console.print(_shards(found))
        console.print(_collections(found))
        if found.workers:
            console.print(_workers(found))
        if tails := _tails(found):
            console.print(leg_kinds_table(tails))
            console.print(leaf_health_table(tails))
            for line in tail_lines(added_up(list(tails.values()))):
                console.print(line, markup=False, soft_wrap=True)
        total = f"{found.documents():,} documents, {byte_text(found.bytes())}, map version {found.map.version}"
        console.print(f"{total}, {_changing_text(found)}", markup=False)
        return EXIT_OK

    return with_client(connect, work)


def byte_text(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def progress_text(learner: "CatchUpRecord") -> str:
    """How far a learner is, for people."""
    if not learner.bytes_total:
        return f"{learner.leaf} lacks {learner.lag:,} entries"
    share = learner.bytes_sent / learner.bytes_total
    left = eta_s(learner)
    tail = "" if left is None else f", {left:,.0f} s left"
    size = f"{byte_text(learner.bytes_sent)} of {byte_text(learner.bytes_total)}"
    return f"{learner.leaf} has {share:.0%}, {size}, {byte_text(learner.bytes_per_s)}/s{tail}"


def eta_s(learner: "CatchUpRecord") -> float | None:
    """Seconds until a learner's snapshot has been sent, at its rate so far; None where that cannot be told."""
    if not learner.bytes_total or learner.bytes_per_s <= 0:
        return None
    return max(0.0, (learner.bytes_total - learner.bytes_sent) / learner.bytes_per_s)


def _changing_text(found: "ClusterStatus") -> str:
    changing = [shard for shard in found.map.shards if found.is_changing(shard)]
    short = [shard.id for shard in found.map.shards.values() if len(shard.in_sync) < found.map.replicas]
    return f"{len(changing)} shards under change, {len(short)} with fewer than {found.map.replicas} replicas in sync"


def _state_of_leaf(leaf: "LeafStatus") -> str:
    from rich.markup import escape

    state = "[green]up[/]" if leaf.is_up else f"[red]down[/]: {escape(leaf.error)}"
    marks = [name for name, is_so in (("draining", leaf.leaf.is_draining), ("removed", leaf.leaf.is_removed)) if is_so]
    return ", ".join([state, *(f"[yellow]{mark}[/]" for mark in marks)])


def _table(title: str, *columns: str, numbers: tuple[str, ...] = ()) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", no_wrap=True)
    return table


def _leaves(found: "ClusterStatus") -> "Table":
    numbers = ("shards", "documents", "disk", "memory", "up for", "pid")
    table = _table("leaves", "leaf", "address", "zone", "state", *numbers, "version", numbers=numbers)
    for leaf in found.leaves:
        head = (leaf.leaf.id, leaf.leaf.address or "-", leaf.leaf.zone or "-")
        report = leaf.report
        if report is None:
            table.add_row(*head, _state_of_leaf(leaf), *("-" for _ in (*numbers, "version")))
            continue
        documents = sum(count.documents for replica in report.replicas for count in replica.collections)
        table.add_row(
            *head,
            _state_of_leaf(leaf),
            str(len(report.replicas)),
            f"{documents:,}",
            byte_text(report.disk_bytes),
            byte_text(report.resident_bytes),
            f"{report.uptime_s:,.0f} s",
            str(report.pid),
            report.software_version,
        )
    return table


def _tails(found: "ClusterStatus") -> "dict[str, TailStatus]":
    """What each process of the router does against slow leaves; a router that does not name them has one."""
    return found.tails or ({} if found.tail is None else {ROUTER: found.tail})


def _workers(found: "ClusterStatus") -> "Table":
    from rich.markup import escape

    numbers = ("in flight", "calls", "refused", "last wait", "memory", "up for", "pid", "metrics")
    table = _table("router", "process", "address", "state", *numbers, numbers=numbers)
    for worker in found.workers:
        head = (worker.worker, worker.address or "-")
        if not worker.is_up:
            table.add_row(*head, f"[red]down[/]: {escape(worker.error)}", *("-" for _ in numbers))
            continue
        table.add_row(
            *head,
            _state_of_worker(worker),
            f"{worker.calls_in_flight:,}",
            f"{worker.calls_total:,}",
            f"{worker.refused_total:,}",
            f"{worker.arrival_wait_ms:.1f} ms",
            byte_text(worker.resident_bytes),
            f"{worker.uptime_s:,.0f} s",
            str(worker.pid),
            str(worker.metrics_port or "-"),
        )
    return table


def _state_of_worker(worker: "WorkerStatus") -> str:
    share = worker.refused_share
    return f"[yellow]refuses {share:.0%} of the calls[/]" if share else "[green]up[/]"


def _shards(found: "ClusterStatus") -> "Table":
    from rich.markup import escape

    numbers = ("shard", "epoch", "in sync", "applied", "documents", "bytes")
    columns = ("shard", "primary", "epoch", "in sync", "state", "applied", "documents", "bytes", "on its way")
    table = _table("shards", *columns, numbers=numbers)
    for shard in found.map.shards.values():
        replica = found.primary_replica(shard.id)
        enough = "green" if len(shard.in_sync) >= found.map.replicas else "yellow"
        in_sync = f"[{enough}]{len(shard.in_sync)}/{found.map.replicas}[/]"
        head = (str(shard.id), shard.primary, str(shard.epoch), in_sync)
        if replica is None:
            table.add_row(*head, "[red]silent[/]", "-", "-", "-", "-")
            continue
        state = f"[red]{replica.role}[/]: {escape(replica.error)}" if replica.error else "[green]ok[/]"
        documents = sum(count.documents for count in replica.collections)
        size = sum(count.bytes for count in replica.collections)
        figures = (f"{replica.applied:,}", f"{documents:,}", byte_text(size))
        table.add_row(*head, state, *figures, escape(_way_of(found, shard)))
    return table


def _way_of(found: "ClusterStatus", shard: "ShardConfig") -> str:
    """What a shard still has to do to be where it is wanted, and as it is wanted."""
    split = split_text(found, shard)
    parts = [split] if split else []
    if found.is_changing(shard.id):
        parts += [progress_text(each) for each in found.catching_up(shard.id)] or [f"to {', '.join(shard.desired)}"]
    return "; ".join(parts) or "-"


def split_text(found: "ClusterStatus", shard: "ShardConfig") -> str:
    """How far the split of a shard is, in words; empty when none is under way."""
    progress = found.splitting(shard.id)
    if progress is None or (shard.split is not None and shard.split.child != progress.child):
        return f"split into {shard.split.child}: not begun" if shard.split is not None else ""
    if progress.is_done:
        return f"split into {progress.child}: cleaning up"
    if progress.is_copied:
        return f"split into {progress.child}: waiting for the other replicas"
    share = progress.walked / progress.total if progress.total else 0.0
    return f"split into {progress.child}: {min(share, 1.0):.0%} looked through"


def _collections(found: "ClusterStatus") -> "Table":
    from kvshard.hedge_settings import hedging_text

    columns = ("collection", "documents", "bytes", "schema", "hedging", "aliases", "on its way")
    table = _table("collections", *columns, numbers=("documents", "bytes"))
    for collection in found.map.collections.values():
        schema = ", ".join(f"{name}={kind}" for name, kind in collection.schema.items()) or "plain values"
        documents, size = found.documents(collection.id), found.bytes(collection.id)
        hedging = hedging_text(collection.hedging) or "-"
        aliases = ", ".join(found.map.aliases_of(collection.name)) or "-"
        way = _way_of_collection(found, collection)
        table.add_row(collection.name, f"{documents:,}", byte_text(size), schema, hedging, aliases, way)
    return table


def _way_of_collection(found: "ClusterStatus", collection: "Collection") -> str:
    """What is being done to its indexes, and what did not fit when that was done."""
    misfits = [f"{count:,} do not fit {field or 'as documents'}" for field, count in found.misfits(collection.id).items()]
    return "; ".join([change for change in (change_text(found, collection.id), *sorted(misfits)) if change]) or "-"


def _as_json(found: "ClusterStatus") -> dict[str, object]:
    from dataclasses import asdict

    from kvshard.hedge_settings import hedging_json

    return {
        "map_version": found.map.version,
        "replicas": found.map.replicas,
        "documents": found.documents(),
        "bytes": found.bytes(),
        "leaves": [
            {
                **asdict(leaf.leaf),
                "is_up": leaf.is_up,
                "error": leaf.error,
                "report": None if leaf.report is None else asdict(leaf.report),
            }
            for leaf in found.leaves
        ],
        "shards": [
            {
                **asdict(shard),
                "is_changing": found.is_changing(shard.id),
                "splitting": None if (progress := found.splitting(shard.id)) is None else asdict(progress),
                "catching_up": [{**asdict(each), "eta_s": eta_s(each)} for each in found.catching_up(shard.id)],
            }
            for shard in found.map.shards.values()
        ],
        "collections": [
            {
                "name": collection.name,
                "id": collection.id,
                "schema": dict(collection.schema),
                "hedging": hedging_json(collection.hedging),
                "aliases": found.map.aliases_of(collection.name),
                "version": collection.version,
                "change": change_json(found, collection.change, collection.id),
                "misfits": found.misfits(collection.id),
                "documents": found.documents(collection.id),
                "bytes": found.bytes(collection.id),
            }
            for collection in found.map.collections.values()
        ],
        "workers": [{**asdict(each), "is_up": each.is_up, "tail": _tail_json(each.tail)} for each in found.workers],
        "tail": _tail_json(added_up(list(tails.values())) if (tails := _tails(found)) else None),
    }


def _tail_json(tail: "TailStatus | None") -> dict[str, object] | None:
    from dataclasses import asdict

    return None if tail is None else {**asdict(tail), "extra": tail.extra, "won": tail.won}
