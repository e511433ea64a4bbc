"""`kvshard put`, `get`, `delete` and `scan`: single keys and key ranges, with values as raw bytes."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from kvshard.cli.console import (
    EXIT_NOT_FOUND,
    EXIT_OK,
    Connect,
    complain,
    json_bytes,
    key_of,
    one_line,
    parse_token,
    print_json,
    rich_console,
    token_text,
    with_client,
)
from kvshard.cli.reading import ANYHOW, WHOLE, Gathering, Reading, coverage_text, missing_lines
from kvshard.cli.timings import show_timing, timing_json

if TYPE_CHECKING:
    from kvshard.client.client import Client
    from kvshard.client.options import ReadOverrides
    from kvshard.client.results import Item, ReadState
    from kvshard.client.scan import Scan

_DEFAULTS = Connect()


def register(app: App) -> None:
    """Add the verbs to the command line."""
    for verb in (put, get, delete, scan):
        app.command(verb)


def put(
    key: Annotated[str, Parameter(allow_leading_hyphen=True)],
    value: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *,
    file: Path | None = None,
    ttl: float | None = None,
    if_version: int | None = None,
    if_absent: Annotated[bool, Parameter(negative="")] = False,
    collection: str = "default",
    refresh: Annotated[bool, Parameter(negative="")] = False,
    wait: Annotated[bool, Parameter(negative="")] = False,
    connect: Connect = _DEFAULTS,
) -> int:
    """Write a key.

    Parameters
    ----------
    key
        The key.
    value
        The value; "-" reads it from standard input.
    file
        Take the value from this file.
    ttl
        Seconds after which the key vanishes.
    if_version
        Write only if the key has this version.
    if_absent
        Write only if there is no such key.
    collection
        Collection to write to.
    refresh
        Return only when a search can see the write, and hurry that.
    wait
        The same without hurry: after the next regular refresh.
    """
    data = _value(value, file)

    async def work(kv: "Client[bytes]") -> int:
        docs = kv.collection(collection)
        version = await docs.raw.put(
            key_of(key),
            data,
            ttl=ttl,
            if_version=if_version,
            if_absent=if_absent,
            refresh="wait" if wait and not refresh else refresh,
        )
        if connect.as_json:
            print_json({**json_bytes("key", key_of(key)), "version": version, **_written(docs.watermark())})
        else:
            print(f"version {version}")
        return EXIT_OK

    return with_client(connect, work)


def _written(token: bytes) -> dict[str, str]:
    """What `kvshard search --min-versions` takes, of a write to a collection that can be searched."""
    return {"written": token_text(token)} if token else {}


def _value(value: str | None, file: Path | None) -> bytes:
    from kvshard.client.checks import check_value, invalid
    from kvshard.limits import VALUE_MAX_BYTES

    if (value is None) == (file is None):
        raise invalid('give a value: VALUE, "-" for standard input, or --file FILE', "value")
    # One byte more than may be is read, so that an endless input is refused instead of eating the memory.
    if file is not None:
        with file.open("rb") as source:
            return check_value(source.read(VALUE_MAX_BYTES + 1))
    return check_value(sys.stdin.buffer.read(VALUE_MAX_BYTES + 1) if value == "-" else key_of(value or ""))


def get(
    key: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    explain: Annotated[bool, Parameter(negative="")] = False,
    collection: str = "default",
    reading: Reading = ANYHOW,
    connect: Connect = _DEFAULTS,
) -> int:
    """Print the value of a key, byte for byte.

    Parameters
    ----------
    key
        The key.
    explain
        Show on stderr where the time went.
    collection
        Collection to read from.
    """
    options = reading.overrides()

    async def work(kv: "Client[bytes]") -> int:
        keys = kv.collection(collection).raw
        if explain:
            item, timing = await keys.explain_get(key_of(key), **options)
            if not (connect.as_json and item is not None):
                show_timing(rich_console(is_on_stderr=True), timing)
        else:
            item = await keys.get(key_of(key), **options)
        if item is None:
            complain(f"not found: {one_line(key_of(key))}")
            return EXIT_NOT_FOUND
        if connect.as_json:
            print_json(_row(item))
        else:
            if item.state is not None:
                complain(f"shard {item.state.shard}: through write {item.state.seqno}{_age(item.state)}")
            sys.stdout.buffer.write(item.value)
            if sys.stdout.isatty():
                print()
        return EXIT_OK

    return with_client(connect, work)


def delete(
    key: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    if_version: int | None = None,
    collection: str = "default",
    refresh: Annotated[bool, Parameter(negative="")] = False,
    wait: Annotated[bool, Parameter(negative="")] = False,
    connect: Connect = _DEFAULTS,
) -> int:
    """Delete a key; exit code 1 if it was not there.

    Parameters
    ----------
    key
        The key.
    if_version
        Delete only if the key has this version.
    collection
        Collection to delete from.
    refresh
        Return only when a search no longer sees the key, and hurry that.
    wait
        The same without hurry: after the next regular refresh.
    """

    async def work(kv: "Client[bytes]") -> int:
        docs = kv.collection(collection)
        existed = await docs.raw.delete(key_of(key), if_version=if_version, refresh="wait" if wait and not refresh else refresh)
        if connect.as_json:
            print_json({**json_bytes("key", key_of(key)), "existed": existed, **_written(docs.watermark())})
        elif not existed:
            complain(f"not found: {one_line(key_of(key))}")
        return EXIT_OK if existed else EXIT_NOT_FOUND

    return with_client(connect, work)


def scan(
    *,
    prefix: str = "",
    start: str = "",
    end: str = "",
    limit: int | None = None,
    keys_only: Annotated[bool, Parameter(negative="")] = False,
    resume: str | None = None,
    explain: Annotated[bool, Parameter(negative="")] = False,
    collection: str = "default",
    reading: Reading = ANYHOW,
    gathering: Gathering = WHOLE,
    connect: Connect = _DEFAULTS,
) -> int:
    """Print keys and values in key order, one a line.

    Parameters
    ----------
    prefix
        Only keys that begin with this.
    start
        Only keys from this one on.
    end
        Only keys before this one.
    limit
        At most this many.
    keys_only
        Leave the values out.
    resume
        Go on behind an earlier scan: the token that it printed.
    explain
        Show on stderr where the time went, with --json in a last line of its own.
    collection
        Collection to read.
    """
    options: ReadOverrides = {**reading.overrides(), **gathering.overrides(), "explain_timing": explain}

    async def work(kv: "Client[bytes]") -> int:
        found = kv.collection(collection).raw.scan(
            prefix=key_of(prefix),
            start=key_of(start),
            end=key_of(end),
            limit=limit,
            keys_only=keys_only,
            resume=parse_token(resume),
            **options,
        )
        async with found:
            async for item in found:
                if connect.as_json:
                    print_json(_row(item, has_value=not keys_only))
                else:
                    print(one_line(item.key) if keys_only else f"{one_line(item.key)}\t{one_line(item.value)}")
        _tell_end(found, as_json=connect.as_json)
        return EXIT_OK

    return with_client(connect, work)


def _tell_end(found: "Scan[bytes, bytes]", *, as_json: bool) -> None:
    """What there is to say of a scan beside its keys."""
    if found.token:
        complain(f"there is more: --resume {token_text(found.token)}")
    if found.coverage and not found.coverage.complete:
        complain(coverage_text(found.coverage))
        for line in missing_lines(found.coverage):
            complain(line)
    for state in found.states:
        complain(f"shard {state.shard}: through write {state.seqno}{_age(state)}")
    if found.timing is not None and as_json:
        print_json({"timing": timing_json(found.timing)})
    elif found.timing is not None:
        show_timing(rich_console(is_on_stderr=True), found.timing)


def _age(state: "ReadState") -> str:
    return ", of unknown age" if state.age_ms is None else f", at most {state.age_ms} ms old"


def _row(item: "Item[bytes, bytes]", *, has_value: bool = True) -> dict[str, object]:
    row: dict[str, object] = {**json_bytes("key", item.key)}
    if has_value:
        row.update(json_bytes("value", item.value))
    row["version"] = item.version
    if item.state is not None:
        row.update(seqno=item.state.seqno, age_ms=item.state.age_ms)
    if item.expires_at is not None:
        row["expires_at"] = item.expires_at.isoformat()
    if item.timing is not None:
        row["timing"] = timing_json(item.timing)
    return row
