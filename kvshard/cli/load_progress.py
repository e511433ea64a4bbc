"""How far a load is, on stderr: a bar on a terminal, a line every few seconds elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from kvshard.clock import Clock

LINE_EVERY_S = 5.0
"""Between two lines of plain progress: often enough to see that it lives, rare enough for a log file."""


class ShowProgress(Protocol):
    """Shows how far a load is."""

    def __call__(self, records: int, offset: int) -> None:
        """records: done in this run; offset: bytes of the file that are done."""
        ...


@contextmanager
def shown_progress(start: int, total: int | None, clock: Clock) -> Iterator[ShowProgress]:
    """Progress of a load that begins at a byte offset; total: the file's bytes, None where nobody knows."""
    if not sys.stderr.isatty():
        yield _PlainProgress(start, total, clock)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[records]:>10,} records {task.fields[rate]:>9,.0f}/s")
    columns = (BarColumn(), TaskProgressColumn(), rate, TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("load", total=total, completed=start, records=0, rate=0.0)
        began = clock.monotonic()

        def show(records: int, offset: int) -> None:
            rate_now = records / max(1e-6, clock.monotonic() - began)
            progress.update(task, completed=offset, records=records, rate=rate_now)

        yield show


class _PlainProgress:
    def __init__(self, start: int, total: int | None, clock: Clock) -> None:
        self._start = start
        self._total = total
        self._clock = clock
        self._began = clock.monotonic()
        self._next_at = self._began + LINE_EVERY_S

    def __call__(self, records: int, offset: int) -> None:
        now = self._clock.monotonic()
        if now >= self._next_at:
            self._next_at = now + LINE_EVERY_S
            print(progress_line(records, offset, self._start, self._total, now - self._began), file=sys.stderr, flush=True)


def progress_line(records: int, offset: int, start: int, total: int | None, seconds: float) -> str:
    """Records, rate, share and time left as one line."""
    line = f"{records:,} records, {records / seconds:,.0f}/s"
    if total and offset > start:
        left_s = (total - offset) * seconds / (offset - start)
        line += f", {100 * offset / total:.0f} %, ETA {left_s:,.0f} s"
    return line
