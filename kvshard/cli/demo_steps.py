"""The steps of `kvshard demo`, and how they look in a terminal.

May live here: loading, searching, reading and measuring through the client, and the printing of it. The texts come from
`pydocs.py`, the arithmetic from `demo_report.py`, the cluster from `kvshard/local_cluster.py`, the flags from `demo.py`.
"""

import asyncio
import contextlib
import itertools
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from kvshard.cli import pydocs
from kvshard.cli.demo_display import fragment, keep_hint, latency_table, tail_table
from kvshard.cli.demo_failure import Killing
from kvshard.cli.demo_report import FAN_OUTS, FanOutSamples, explanation, picture, query_words, rotated
from kvshard.cli.demo_tail import EXPLAINED_DELAY_S, EXPLAINED_TRIES, SlowLeaves, explain, search_rate
from kvshard.cli.demo_tail_report import CONDITIONS, READ_KINDS, tail_explanation, tail_legend, tail_picture, tail_svg, titles
from kvshard.cli.tail_status import tail_lines
from kvshard.cli.timings import show_timing, straggler_text
from kvshard.client.client import Client
from kvshard.client.collection import Collection
from kvshard.client.results import SearchPage, Timing
from kvshard.clock import SystemClock
from kvshard.local_cluster import LocalCluster

BATCH_DOCUMENTS = 500
"""Documents of one put_many: about 200 KB, large enough to share fsyncs, small enough for the progress bar to move."""

LOAD_TIMEOUT_S = 30.0
MEASURE_S = 20.0
TAIL_ENDS_S = 135.0
"""On a slow machine the fan-outs are measured for so long, and the slow leaves until so long after the start, a turn of 18 s
begun before then included: the whole demo stays under three minutes. The tables say what n is."""

WARM_UP_ROUNDS = 50
_WORD = re.compile(r"[a-z]{4,}")
_SEED = 20_240_501


@dataclass(frozen=True, slots=True)
class ExampleSearch:
    """A search that a Python programmer would make."""

    question: str
    query: str
    filters: tuple[str, ...] = ()
    facets: tuple[str, ...] = ()
    sort: str = ""


EXAMPLES = (
    ExampleSearch(
        "How do I parse a date from a string?", "parse date string", ("kind:function OR kind:method", "is_public:true")
    ),
    ExampleSearch("Who offers a context manager, and where?", '"context manager"', facets=("kind", "package")),
    ExampleSearch("What passes items between threads?", "queue* AND thread*", ("is_public:true",)),
    ExampleSearch("Timeouts, but only in asyncio", "timeout OR cancel*", ("package:asyncio",), ("module",)),
    ExampleSearch("The longest documentation that mentions compression", "compress*", ("length:[2000 TO *]",), sort="-length"),
)


class _RateColumn(ProgressColumn):
    """Documents per second since the start."""

    def render(self, task: Task) -> Text:
        """The rate, once there is one."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="cyan")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done. documents: loaded at most. rounds: searches of each fan-out. seconds: of reads beside slow leaves."""

    documents: int
    rounds: int
    seconds: float


class Demo:
    """The steps, in order, over one client."""

    def __init__(self, console: Console, cluster: LocalCluster, scale: Scale, svg_file: Path | None) -> None:
        self._console = console
        self._cluster = cluster
        self._documents = scale.documents
        self._rounds = scale.rounds
        self._seconds = scale.seconds
        self._svg_file = svg_file
        self._clock = SystemClock()
        self._began = self._clock.monotonic()
        self._search_s = 0.0
        self._words: Counter[str] = Counter()
        self._loaded = 0

    async def run(self, keep: bool) -> int:
        """The whole demo; returns the exit code."""
        began = self._began = self._clock.monotonic()
        self._title("A cluster on this machine")
        address = await self._cluster.start()
        self._say(
            f"{len(self._cluster.leaves)} leaves, {len(self._cluster.shards)} shards of {self._cluster.replicas} replicas each "
            f"and a router at [bold]{address}[/], ready after {self._clock.monotonic() - began:.1f} s"
        )
        async with Client(address, timeout=10.0) as kv:
            docs = kv.collection("pydocs")
            await self._load(docs)
            await self._search(docs)
            await self._read(kv, docs)
            await self._measure(docs)
            if self._cluster.replicas > 1:
                await self._slow(kv, docs)
                await self._explain(kv, docs)
                await self._kill(kv)
        self._say(f"\nDone in {self._clock.monotonic() - began:.0f} s.")
        if keep:
            self._say(keep_hint(address))
            # Until a signal cancels it, which is how this ends well; the cluster stays supervised meanwhile.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return 0

    def _title(self, text: str) -> None:
        self._console.print()
        self._console.rule(f"[bold]{text}[/]", align="left")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False)

    async def _load(self, docs: Collection[str]) -> None:
        self._title("The documentation of this Python, read from its sources")
        await docs.create(pydocs.SCHEMA)
        columns = (BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn())
        pairs = pydocs.documents(self._documents)
        began = self._clock.monotonic()
        with Progress(TextColumn("{task.description}"), *columns, console=self._console) as progress:
            bar = progress.add_task("parse, store, index", total=self._documents)
            batch = await asyncio.to_thread(self._next_batch, pairs)
            while batch:
                # The next batch is parsed on a thread while the leaves work on this one.
                results, following = await asyncio.gather(
                    docs.put_many(batch, timeout=LOAD_TIMEOUT_S), asyncio.to_thread(self._next_batch, pairs)
                )
                results.raise_for_failures()
                self._loaded += len(batch)
                progress.update(bar, completed=self._loaded)
                batch = following
            progress.update(bar, total=self._loaded)
        page = await docs.search("*", limit=1, refresh=True, timeout=LOAD_TIMEOUT_S)
        took = self._clock.monotonic() - began
        self._say(
            f"{self._loaded:,} texts stored durably and searchable after {took:.1f} s "
            f"({self._loaded / took:,.0f}/s with the parsing); a search for everything finds {page.total:,}"
        )

    def _next_batch(self, pairs: Iterator[tuple[str, dict[str, object]]]) -> list[tuple[str, dict[str, Any]]]:
        batch = list(itertools.islice(pairs, BATCH_DOCUMENTS))
        for _, document in batch:
            self._words.update(set(_WORD.findall(str(document["doc"]).lower())))
        return batch

    async def _search(self, docs: Collection[str]) -> None:
        self._title("Searches")
        for example in EXAMPLES:
            page = await docs.search(
                example.query,
                limit=3,
                filters=example.filters,
                facets=example.facets,
                facet_limit=6,
                sort=example.sort,
                highlight=["doc"],
                explain_timing=True,
            )
            self._show(example, page)

    def _show(self, example: ExampleSearch, page: SearchPage[str]) -> None:
        filters = "".join(f"  filter [cyan]{escape(each)}[/]" for each in example.filters)
        sort = f"  sort [cyan]{example.sort}[/]" if example.sort else ""
        took = f" in {page.timing.total_us / 1000:.1f} ms" if page.timing else ""
        self._say(f"\n[bold]{example.question}[/]\n  [cyan]{escape(example.query)}[/]{filters}{sort}")
        self._say(f"  [dim]{page.total:,} matches on {page.coverage.legs_ok} of {page.coverage.legs} shards{took}[/]")
        for hit in page.hits:
            document = hit.document or {}
            rank = f"{document.get('length', 0):,} characters" if example.sort else f"{hit.score:.1f}"
            self._say(f"  [green]{escape(hit.key)}[/]  [dim]{document.get('kind')}, {rank}[/]")
            self._console.print(Padding(fragment(hit), (0, 0, 0, 4)))
        for name, facet in page.facets.items():
            counts = ", ".join(f"{value.value} {value.count:,}" for value in facet.values)
            self._console.print(Padding(f"[dim]by {name}:[/] {escape(counts or 'nothing')}", (0, 0, 0, 2)), highlight=False)

    async def _read(self, kv: Client[str], docs: Collection[str]) -> None:
        self._title("Keys and values")
        with self._timed("a durable put, a get, a conditional put") as say:
            version = await kv.put("demo:greeting", b"hello")
            item = await kv.get("demo:greeting")
            assert item is not None
            second = await kv.put("demo:greeting", b"hello again", if_version=version)
            say(f"version {version}, then {second}")
        keys = [item.key async for item in docs.scan(keys_only=True, limit=1_000)]
        with self._timed(f"get_many of {len(keys):,} keys") as say:
            found = await docs.get_many(keys)
            found.raise_for_failures()
            say(f"{sum(item is not None for item in found):,} found")
        with self._timed('scan(prefix="json"), in order over all shards') as say:
            names = [item.key async for item in docs.scan(prefix="json", keys_only=True, limit=200)]
            say(", ".join([f"{len(names)} keys", *names[:3]]) + (" ..." if len(names) > 3 else ""))

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[Any]:
        began, notes = self._clock.monotonic(), list[str]()
        yield notes.append
        took = (self._clock.monotonic() - began) * 1000
        self._say(f"  {what}: [bold]{took:.1f} ms[/]  [dim]{escape('; '.join(notes))}[/]")

    async def _kill(self, kv: Client[str]) -> None:
        self._title("A leaf is killed while clients write and read")
        found = await Killing(kv, self._cluster.pids, self._clock).run()
        self._say(
            f"  kill -9 of {found.leaf}: {len(found.acknowledged):,} writes acknowledged, [bold]{found.lost} lost[/]; "
            f"{found.reads:,} reads of what was just written, [bold]{found.wrong_reads} stale[/]"
        )
        self._say(
            f"  longest time without any write: [bold]{found.longest_gap_s:.1f} s[/]; "
            f"calls that failed: [bold]{found.refused}[/]"
        )

    async def _measure(self, docs: Collection[str]) -> None:
        self._title("What fan-out does to latency")
        words = self._query_words()
        fan_outs = [each for each in FAN_OUTS if each <= len(self._cluster.shards)]
        samples = FanOutSamples()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            bar = progress.add_task("searches, fan-outs taking turns", total=self._rounds)
            rng, began = random.Random(_SEED), self._clock.monotonic()
            for turn in range(-WARM_UP_ROUNDS, self._rounds):
                query = " ".join(rng.sample(words, min(len(words), rng.randint(1, 3))))
                for fan_out in rotated(fan_outs, turn):
                    asked = rng.sample(self._cluster.shards, fan_out)
                    page = await docs.search(query, shards=asked, explain_timing=True)
                    if turn >= 0 and page.timing is not None:
                        samples.add(fan_out, page.timing.total_us, [leg.total_us for leg in page.timing.first_legs])
                progress.update(bar, completed=max(0, turn + 1))
                if turn > 0 and self._clock.monotonic() - began > MEASURE_S:
                    break
        self._console.print(latency_table(samples))
        for line in picture(samples.single_leg, samples.rows()):
            self._console.print(line, highlight=False, markup=False)
        self._say("\n" + explanation(samples, os.cpu_count() or 1, self._cluster.replicas))
        self._search_s = samples.widest_mean_s

    def _query_words(self) -> list[str]:
        return query_words(self._words, self._loaded) or ["python"]

    async def _slow(self, kv: Client[str], docs: Collection[str]) -> None:
        self._title("What slow leaves do to it, with and without the defences")
        self._say(tail_legend())
        slow, rate = SlowLeaves(kv, docs, self._query_words(), self._clock, _SEED), search_rate(self._search_s)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            bar = progress.add_task("blocks of searches and batches, arms taking turns", total=None)
            await slow.run(
                rate,
                self._seconds,
                self._began + TAIL_ENDS_S,
                lambda done, of: progress.update(bar, completed=done, total=of),
            )
        samples = slow.samples
        for kind in READ_KINDS:
            self._console.print(tail_table(samples.rows(kind), titles(slow.fan_out)[kind]))
            for line in tail_picture(samples.rows(kind)):
                self._console.print(line, highlight=False, markup=False)
            self._console.print()
        self._say(f"At {rate:.0f} searches a second and twice as many batches: {tail_explanation(samples)}")
        tail = (await kv.status()).tail
        for text in tail_lines(tail) if tail is not None else ():
            self._say(f"  [dim]{escape(text)}[/]")
        if self._svg_file is not None:
            self._svg_file.write_text(tail_svg(samples, slow.fan_out), encoding="utf-8")
            self._say(f"The picture is in {self._svg_file}.")

    async def _explain(self, kv: Client[str], docs: Collection[str]) -> None:
        self._title("Where the time of a search went")
        # Another leaf than the one that was slow before, and that the router still remembers.
        leaf = next(each for each in self._cluster.leaves if each not in CONDITIONS[-1].leaves)
        query = "context manager"
        found = await explain(kv, docs, query, leaf)
        self._say(
            f"  {leaf} answers every search {EXPLAINED_DELAY_S * 1000:.0f} ms late from now on. The first one, as it comes:"
        )
        self._account(found.with_defences.timing)
        self._say(f"\n  The slowest of {EXPLAINED_TRIES} without the defences (--replica-choice random --hedge off):")
        self._account(found.without.timing)
        self._say(f"\n  The same for any read: [cyan]kvshard search pydocs {query!r} --timing[/]; afterwards: kvshard slowlog")

    def _account(self, timing: Timing | None) -> None:
        if timing is None:
            return
        self._say(f"  straggler: [bold]{escape(straggler_text(timing))}[/]")
        show_timing(self._console, timing)
