"""`kvshard load`: JSON lines or CSV, from a file or standard input, into a collection."""

import asyncio
import io
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

from cyclopts import App, Parameter

from kvshard.cli.console import EXIT_NOT_FOUND, EXIT_OK, Connect, complain, parse_pairs, print_json, with_client
from kvshard.clock import Clock, SystemClock
from kvshard.errors import CollectionNotFound, InvalidArgument, KvShardError

if TYPE_CHECKING:
    from kvshard.cli.load_sources import Source
    from kvshard.cli.load_state import LoadState, StateFile
    from kvshard.cli.loader import Progress
    from kvshard.client.client import Client
    from kvshard.client.results import CollectionInfo

_DEFAULTS = Connect()
_STDIN = "-"


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be loaded, how and where to. file None: standard input, which cannot be resumed, as nothing but a file can."""

    file: Path | None
    format: str
    collection: str
    key_field: str
    schema: dict[str, str]
    batch_size: int
    is_resumed: bool
    state: Path
    rejects: Path
    retry_for_s: float


def register(app: App) -> None:
    """Add the verb to the command line."""
    app.command(load)


def load(
    file: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    collection: str = "default",
    key_field: str = "id",
    file_format: Annotated[Literal["jsonl", "csv", "tsv"] | None, Parameter(name="--format")] = None,
    schema: str = "",
    batch_size: int = 1000,
    resume: bool = True,
    state: Path | None = None,
    reject: Path | None = None,
    retry_for: float = 30.0,
    connect: Connect = _DEFAULTS,
) -> int:
    """Load a file, one record a line. An interrupted load goes on where it stopped when it is started again.

    Lines that cannot be loaded are kept, with number and reason, in a reject file; the exit code is then 1.

    Parameters
    ----------
    file
        The file, or "-" for standard input.
    collection
        Collection to load into.
    key_field
        Field or column whose value is the key.
    file_format
        By the file's extension if not given; JSON lines from standard input.
    schema
        Create the collection with this schema if there is none: "title=text,year=integer".
    batch_size
        Records written together.
    resume
        Go on from the state of an interrupted load.
    state
        Where the state is kept; FILE.load-state.json if not given.
    reject
        Where bad lines are kept; FILE.rejects.jsonl if not given.
    retry_for
        Seconds for which a batch is written again while the service does not answer.
    """
    from kvshard.client.checks import invalid
    from kvshard.limits import BATCH_MAX_KEYS

    if not 1 <= batch_size <= BATCH_MAX_KEYS:
        raise invalid(f"--batch-size must be 1 to {BATCH_MAX_KEYS:,}", "batch-size", BATCH_MAX_KEYS)
    path = None if file == _STDIN else Path(file)
    stem = "stdin" if path is None else str(path)
    plan = _Plan(
        file=path,
        format=file_format or _format_of(path),
        collection=collection,
        key_field=key_field,
        schema=parse_pairs(schema),
        batch_size=batch_size,
        is_resumed=resume,
        state=state or Path(f"{stem}.load-state.json"),
        rejects=reject or Path(f"{stem}.rejects.jsonl"),
        retry_for_s=retry_for,
    )
    return with_client(connect, lambda kv: _load(kv, plan, connect.as_json, SystemClock()))


def _format_of(path: Path | None) -> str:
    suffix = ".jsonl" if path is None else path.suffix.lower()
    known = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv"}
    if suffix not in known:
        raise InvalidArgument(f"the extension {suffix!r} does not tell the format: say --format jsonl, csv or tsv")
    return known[suffix]


async def _load(kv: "Client[bytes]", plan: _Plan, as_json: bool, clock: Clock) -> int:
    from kvshard.cli.load_progress import shown_progress
    from kvshard.cli.load_state import LoadState, RejectFile, StateFile
    from kvshard.cli.loader import Loader, Progress
    from kvshard.cli.stoppable_file import StoppableFile

    with ExitStack() as stack:
        raw = StoppableFile(sys.stdin.fileno() if plan.file is None else plan.file)
        stream = stack.enter_context(io.BufferedReader(raw))
        stack.callback(raw.stop)  # Whoever interrupts the load must not wait for the thread that reads.
        info = await _collection(kv, plan)
        target = f"{info.name}/{info.id} {plan.format} {plan.key_field} {sorted(info.schema.items())}"
        cluster_map = await kv.map()
        incarnations = sorted({replica.incarnation for shard in cluster_map.shards.values() for replica in shard.replicas})
        # What comes through a pipe is read once, and cannot be gone on with.
        state_file = StateFile(plan.state, plan.file) if plan.file is not None and plan.file.is_file() else None
        state = _state_to_resume(state_file, plan, target, incarnations) or LoadState(target, incarnations)
        rejects = stack.enter_context(RejectFile(plan.rejects, state.rejects_bytes))
        show = stack.enter_context(shown_progress(state.offset, _size(plan.file), clock))

        def settled(progress: Progress) -> None:
            show(progress.loaded + progress.rejected - state.loaded - state.rejected, progress.offset)
            if state_file is not None:
                counts = (progress.offset, progress.line, progress.loaded, progress.rejected)
                state_file.write(LoadState(target, incarnations, *counts, rejects.bytes))

        loader = Loader(
            kv.collection(plan.collection).raw,
            _source(stream, plan, info, state),
            clock,
            batch_records=plan.batch_size,
            retry_for_s=plan.retry_for_s,
            keep_rejects=rejects.append,
            on_settled=settled,
            progress=Progress(state.offset, state.line, state.loaded, state.rejected),
        )
        began = clock.monotonic()
        try:
            progress = await loader.run()
        except (KvShardError, asyncio.CancelledError):
            _say_how_far(loader.progress, state_file)
            raise
        if state_file is not None:
            state_file.remove()
    return _summary(progress, state, clock.monotonic() - began, plan, as_json)


async def _collection(kv: "Client[bytes]", plan: _Plan) -> "CollectionInfo":
    if plan.schema:
        return await kv.collection(plan.collection).create(plan.schema)
    for info in await kv.collections():
        if info.name == plan.collection:
            return info
    raise CollectionNotFound(f"there is no collection {plan.collection!r}; --schema creates it")


def _state_to_resume(state_file: "StateFile | None", plan: _Plan, target: str, incarnations: list[str]) -> "LoadState | None":
    if state_file is None or not state_file.path.exists():
        return None
    found = state_file.read(target, incarnations) if plan.is_resumed else None
    if found is None:
        state_file.remove()
        complain(
            "starting anew" if not plan.is_resumed else "starting anew: file, collection or cluster are not those of before"
        )
    else:
        complain(f"resuming behind line {found.line:,}: {found.loaded:,} loaded, {found.rejected:,} rejected before")
    return found


def _source(stream: BinaryIO, plan: _Plan, info: "CollectionInfo", state: "LoadState") -> "Source":
    from kvshard.cli.load_sources import Csv, JsonLines, Lines

    lines = Lines(stream)
    source: Source
    if plan.format == "jsonl":
        source = JsonLines(lines, plan.key_field)
    else:
        source = Csv(lines, plan.key_field, info.schema, "\t" if plan.format == "tsv" else ",")
    if state.offset:
        lines.move_to(state.offset, state.line)
    return source


def _size(file: Path | None) -> int | None:
    return file.stat().st_size if file is not None and file.is_file() else None


def _say_how_far(progress: "Progress", state_file: "StateFile | None") -> None:
    again = "" if state_file is None else "; start the load again to go on from there"
    complain(f"stopped behind line {progress.line:,}: {progress.loaded:,} loaded, {progress.rejected:,} rejected{again}")


def _summary(progress: "Progress", state: "LoadState", seconds: float, plan: _Plan, as_json: bool) -> int:
    records = progress.loaded - state.loaded
    rate = records / seconds if seconds else 0.0
    kept = plan.rejects if progress.rejected else None
    if as_json:
        print_json(
            {
                "loaded": progress.loaded,
                "rejected": progress.rejected,
                "resumed_at_line": state.line,
                "seconds": round(seconds, 3),
                "records_per_second": round(rate, 1),
                "rejects": None if kept is None else str(kept),
            }
        )
    else:
        before = f" ({state.loaded:,} of them before)" if state.loaded else ""
        where = f" (kept in {kept})" if kept else ""
        print(f"loaded {progress.loaded:,}{before}, rejected {progress.rejected:,}{where}, {seconds:.1f} s, {rate:,.0f}/s")
    return EXIT_NOT_FOUND if progress.rejected else EXIT_OK
