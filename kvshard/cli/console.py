"""What all verbs share: how they connect, how they print, and how they fail.

Nothing here may import grpc or rich at the start: `kvshard --help` must stay quick.
"""

import binascii
import json
import os
import re
import sys
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from kvshard.errors import (
    AliasNotFound,
    ChangeConflict,
    CollectionExists,
    CollectionNotFound,
    Compacted,
    ErrorDetails,
    FailedPrecondition,
    InvalidArgument,
    InvalidToken,
    KvShardError,
    LeafNotFound,
    MalformedQuery,
    ShardNotFound,
    VersionConflict,
)

if TYPE_CHECKING:
    from rich.console import Console

    from kvshard.client.client import Client

EXIT_OK = 0
EXIT_NOT_FOUND = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 3
EXIT_INTERRUPTED = 130
"""What shells give to a command that Ctrl-C ended."""

_NOT_FOUND_OR_CONFLICT = (
    AliasNotFound,
    CollectionNotFound,
    LeafNotFound,
    ShardNotFound,
    ChangeConflict,
    CollectionExists,
    VersionConflict,
    Compacted,
)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """How a verb reaches the service and prints.

    Parameters
    ----------
    router
        Address of a router.
    timeout
        Seconds for each call, its retries included.
    as_json
        Print JSON, for programs.
    """

    router: Annotated[str, Parameter(env_var="KVSHARD_ROUTER")] = "127.0.0.1:7700"
    timeout: float = 10.0
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False


def with_client(connect: Connect, work: "Callable[[Client[bytes]], Awaitable[int]]") -> int:
    """Run a verb's work with a client, and give its exit code."""
    import asyncio

    from kvshard.client.client import Client

    async def connected() -> int:
        async with Client(connect.router, keys=bytes, timeout=connect.timeout) as client:
            return await work(client)

    return asyncio.run(connected())


def key_of(argument: str) -> bytes:
    """A key as it was typed, byte for byte, whatever the shell's encoding."""
    return os.fsencode(argument)


def complain(text: str) -> None:
    """One line on stderr."""
    print(f"kvshard: {text}", file=sys.stderr)


def explain(error: KvShardError, query: str | None = None) -> None:
    """Say on stderr what went wrong; under a malformed query a caret shows where."""
    complain(error.message or error.reason.lower())
    position = error.details.position
    if query is not None and isinstance(error, MalformedQuery) and position is not None:
        # Control characters would move the caret away from its place.
        shown = "".join(char if char.isprintable() else " " for char in query)
        print(f"  {shown}\n  {' ' * position}^", file=sys.stderr)
    if error.details.maybe_applied:
        print("  it is not known whether the write took effect", file=sys.stderr)


def exit_code_of(error: KvShardError) -> int:
    """The exit code that tells a script what kind of error it was."""
    # A precondition that names a field: what the request asks for makes no sense there, and waiting changes nothing.
    if isinstance(error, InvalidArgument) or (isinstance(error, FailedPrecondition) and error.details.field is not None):
        return EXIT_USAGE
    return EXIT_NOT_FOUND if isinstance(error, _NOT_FOUND_OR_CONFLICT) else EXIT_UNAVAILABLE


def print_json(value: Any) -> None:
    """One JSON value on a line of its own."""
    print(json.dumps(value, ensure_ascii=False, default=str))


def json_bytes(name: str, data: bytes) -> dict[str, str]:
    """Bytes as a JSON member: text under the name where they are UTF-8, else base64 under name_base64."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": b64encode(data).decode()}


def one_line(data: bytes) -> str:
    """Bytes as text without line breaks, tabs and other control characters."""
    text = data.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def rich_console(*, is_on_stderr: bool = False) -> "Console":
    """The terminal, or plain text of generous width where there is none. is_on_stderr: beside what programs may read."""
    from rich.console import Console

    stream = sys.stderr if is_on_stderr else sys.stdout
    return Console(highlight=False, width=None if stream.isatty() else 160, file=stream)


def token_text(token: bytes) -> str:
    """A page token as text that fits into a shell and JSON."""
    return urlsafe_b64encode(token).rstrip(b"=").decode()


def parse_token(text: str | None) -> bytes | None:
    """The page token in a text. Raises InvalidToken."""
    if not text:
        return None
    try:
        return b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidToken("the token is not valid: it was altered", ErrorDetails(field="token")) from None


def parse_pairs(text: str) -> dict[str, str]:
    """`title=text,at:vector(3,l2)` as a mapping. Raises InvalidArgument."""
    from kvshard.client.checks import invalid

    pairs: dict[str, str] = {}
    # A type may have commas of its own, as in vector(384,l2).
    for part in filter(None, (part.strip() for part in re.split(r",(?![^(]*\))", text))):
        name, *kind = (each.strip() for each in re.split("[=:]", part, maxsplit=1))
        if not kind:
            raise invalid(f'a field is written as "title:text" or "title=text"; {part!r} does not fit', "schema")
        if name in pairs:
            raise invalid(f"field {name!r} stands there twice", "schema")
        pairs[name] = kind[0]
    return pairs
