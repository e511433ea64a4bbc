"""`kvshard search -i`: the hits change with every letter that is typed.

There is one search under way at a time, for what is typed when it begins; when it ends, what is typed by then is looked for.
So a slow cluster makes the hits lag behind, and never a queue of searches that nobody waits for.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Final, TypeAlias

from kvshard.cli.console import one_line
from kvshard.cli.reading import coverage_text
from kvshard.cli.screen_keys import Typed, decode_keys, press, query_of
from kvshard.errors import ErrorDetails, InvalidArgument, KvShardError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from kvshard.client.collection import Collection
    from kvshard.client.results import Hit, SearchPage

Finder: TypeAlias = "Callable[[str, int], Awaitable[SearchPage[bytes]]]"
"""(query, hits wanted) -> a page."""

READ_BYTES: Final = 1_024
"""Of the terminal at once: a pasted line; more comes with the next read."""

ESCAPE_WAIT_S: Final = 0.05
"""A terminal sends the bytes of one key together; an escape that nothing follows for so long is the key of that name."""

LINES_BESIDE_HITS: Final = 6
LINES_A_HIT: Final = 2

_FOOT = "↑↓ choose   ⏎ show the document   ⇥ complete   ^U clear   esc leave"


class SearchScreen:
    """The screen over one collection."""

    def __init__(
        self,
        console: "Console",
        collection: "Collection[bytes]",
        find: "Callable[[str, int], Awaitable[SearchPage[bytes]]]",
        text: str = "",
    ) -> None:
        self._console = console
        self._collection = collection
        self._find = find
        self._typed = Typed(text, len(text))
        self._page: SearchPage[bytes] | None = None
        self._found_for: str | None = None
        self._took_s = 0.0
        self._error = ""
        self._completion = ""
        self._corrected = ""
        self._changed = asyncio.Event()
        self._data = b""
        self._draw: Callable[[RenderableType], object] = lambda _: None

    async def run(self) -> None:
        """Until somebody leaves. Raises InvalidArgument where there is no terminal."""
        from rich.live import Live

        with _raw_terminal() as descriptor, Live(console=self._console, screen=True, auto_refresh=False) as live:
            self._draw = lambda shown: live.update(shown, refresh=True)
            loop = asyncio.get_running_loop()
            loop.add_reader(descriptor, self._read, descriptor, loop)
            try:
                self._show()
                await self._search()
            finally:
                loop.remove_reader(descriptor)

    def _read(self, descriptor: int, loop: asyncio.AbstractEventLoop) -> None:
        sent = os.read(descriptor, READ_BYTES)
        if not sent:  # The terminal is gone.
            self._take(["quit"])
            return
        keys, self._data = decode_keys(self._data + sent)
        self._take(keys)
        if self._data:
            loop.call_later(ESCAPE_WAIT_S, self._flush, self._data)

    def _flush(self, waiting: bytes) -> None:
        """What was not whole is taken as it is, if nothing has followed."""
        if waiting == self._data:
            keys, self._data = decode_keys(self._data, is_all=True)
            self._take(keys)

    def _take(self, keys: list[str]) -> None:
        for key in keys:
            hits = len(self._page.hits) if self._page else 0
            self._typed = press(self._typed, key, hits, self._completion)
        self._show()
        self._changed.set()

    @property
    def _room(self) -> int:
        return max(1, (self._console.height - LINES_BESIDE_HITS) // LINES_A_HIT)

    async def _search(self) -> None:
        """Look for what is typed, again and again, until somebody leaves."""
        while not self._typed.has_left:
            self._changed.clear()
            if self._found_for != self._typed.text:
                await self._look_for(self._typed.text)
                self._show()
            else:
                await self._changed.wait()

    async def _look_for(self, text: str) -> None:
        began = time.monotonic()
        try:
            self._page = await self._find(query_of(text), self._room)
            self._error = ""
        except KvShardError as error:
            self._error = error.message or error.reason.lower()
        self._took_s = time.monotonic() - began
        self._found_for = text
        self._completion = self._corrected = ""
        if text.strip() and not self._error and text == self._typed.text:
            self._show()
            await self._suggest(text)

    async def _suggest(self, text: str) -> None:
        # A query of fields and signs is no text to go on with.
        if not all(each.isalnum() or each.isspace() for each in text):
            return
        with contextlib.suppress(KvShardError):
            found = await self._collection.suggest(text, limit=1)
            self._completion = next((each for each in found if each != text), "")
            self._corrected = found.corrected or ""

    def _show(self) -> None:
        self._draw(shown(self._typed, self._page, self._status(), self._hint(), self._room))

    def _status(self) -> str:
        if self._error:
            return self._error
        if self._page is None:
            return "searching"
        total = self._page.total
        return f"{total:,} hit{'' if total == 1 else 's'} in {self._took_s * 1e3:.0f} ms, {coverage_text(self._page.coverage)}"

    def _hint(self) -> str:
        if self._page is not None and not self._page.hits and self._corrected:
            return f"did you mean {self._corrected}?"
        return f"⇥ {self._completion}" if self._completion else ""


def shown(typed: Typed, page: "SearchPage[bytes] | None", status: str, hint: str, room: int) -> "RenderableType":
    """The whole screen."""
    from rich.console import Group
    from rich.text import Text

    before, at, behind = typed.text[: typed.cursor], typed.text[typed.cursor : typed.cursor + 1], typed.text[typed.cursor + 1 :]
    line = Text.assemble(("search ", "dim"), before, (at or " ", "reverse"), behind, ("   " + hint, "green"))
    hits = list(page.hits[:room]) if page is not None else []
    if typed.is_open and typed.selected < len(hits):
        return Group(line, Text(status, "dim"), Text(), _document(hits[typed.selected]))
    rows = [row for number, hit in enumerate(hits) for row in _row(hit, is_selected=number == typed.selected)]
    return Group(line, Text(one_line(status.encode()), "dim"), Text(), *rows, Text(), Text(_FOOT, "dim"))


def _row(hit: "Hit[bytes]", *, is_selected: bool) -> "tuple[Text, Text]":
    from rich.text import Text

    mark = "> " if is_selected else "  "
    head = Text.assemble(
        (mark, "bold green"), (one_line(hit.key), "bold cyan" if is_selected else "cyan"), (f"  {hit.score:.3f}", "dim")
    )
    body = Text("    ")
    if hit.highlights:
        found = hit.highlights[0]
        text = Text("".join(char if char.isprintable() else " " for char in found.fragment))
        for start, end in found.spans:
            text.stylize("bold yellow", start, end)
        body.append_text(text)
    elif hit.document is not None:
        body.append(one_line(json.dumps(hit.document, ensure_ascii=False).encode()))
    for each in (head, body):
        each.no_wrap, each.overflow = True, "ellipsis"
    return head, body


def _document(hit: "Hit[bytes]") -> "RenderableType":
    from rich.json import JSON

    return JSON(json.dumps(hit.document, ensure_ascii=False))


@contextlib.contextmanager
def _raw_terminal() -> Iterator[int]:
    """The terminal, key by key and without echo; as it was afterwards."""
    try:
        import termios
        import tty
    except ImportError:
        raise _no_terminal() from None
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise _no_terminal()
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor, termios.TCSADRAIN)
    # Line breaks of what is drawn are still to become line starts.
    mode = termios.tcgetattr(descriptor)
    mode[1] |= termios.OPOST
    termios.tcsetattr(descriptor, termios.TCSADRAIN, mode)
    try:
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _no_terminal() -> InvalidArgument:
    return InvalidArgument("search -i needs a terminal; without one, give the query", ErrorDetails(field="interactive"))
