"""Search over 100,000 real texts in 8 shards, beside one tantivy index of them in this process: `python -m benchmarks.search`.

Exits 1 when a bound is not kept. The parts run one after the other; one that fails is told, fails the run, and the others are
measured all the same.
"""

import argparse
import asyncio
import pathlib
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import uvloop

from benchmarks.figures import Figure, show
from benchmarks.processes import echo
from benchmarks.search.accuracy import best_pages, judge, round_trip_figure
from benchmarks.search.corpus import TEXTS, Text, corpus, origins
from benchmarks.search.costs import rate_figures, rates, time_figures, times
from benchmarks.search.counting import aggregating, counting
from benchmarks.search.floor import shard_indexes
from benchmarks.search.freshness import freshness
from benchmarks.search.indexing import indexing
from benchmarks.search.isolation import isolation
from benchmarks.search.loaded import SHARDS, Documents, Loaded, new_folder, running, settled, write
from benchmarks.search.paging import paging
from benchmarks.search.queries import sample_queries, vocabulary
from benchmarks.search.reference import Reference
from benchmarks.turns import Pace

QUERIES = 1_000
SEED = 6
REPLICAS = 2
UPDATED_SHARE = 0.2
COUNTED_QUERIES = 20
STATISTICS_HEARD_S = 2.0
"""After many updates answers rest on statistics from before, and say so, until the new ones are heard with other answers."""
TARGET = pathlib.Path("bench-results/search.json")
PACE = Pace(turns=6, seconds=1.5)


PARTS = ("indexing", "accuracy", "speed", "counts", "aggregations", "paging", "isolation", "updates", "freshness")


@dataclass(slots=True)
class Bench:
    """What the parts share. documents: as they are stored now. wanted: names of parts, empty: all. figures: measured so far."""

    texts: list[Text]
    folder: pathlib.Path
    queries: list[str]
    documents: Documents
    wanted: frozenset[str] = frozenset()
    figures: list[Figure] = field(default_factory=list)

    async def part(self, name: str, measure: Callable[[], Awaitable[list[Figure]]]) -> None:
        """Measure, if it is wanted; a failure is a row that is never met."""
        if self.wanted and name not in self.wanted:
            return
        began = time.perf_counter()
        try:
            measured = await measure()
        except Exception as error:
            traceback.print_exc()
            measured = [Figure(f"{name}: failures", 1, "", 1, 0, note=f"{type(error).__name__}: {error}")]
        self.figures += measured
        print(f"{name}: {time.perf_counter() - began:.0f} s")
        for figure in measured:  # At once: on a busy machine the whole may be ended before its table is printed.
            print(f"  {figure.name}: {figure.value} {figure.unit} (n {figure.samples:,}; {figure.note})", flush=True)


def updated(texts: list[Text], share: float, seed: int) -> dict[str, dict[str, object]]:
    """New documents for a share of the keys: each gets the text of another one of them in front of a part of its own."""
    rng = random.Random(seed)
    chosen = rng.sample(texts, int(len(texts) * share))
    others = chosen[1:] + chosen[:1]
    changed: dict[str, dict[str, object]] = {}
    for text, other in zip(chosen, others, strict=True):
        words = str(text.document["doc"]).split()
        doc = f"{other.document['doc']}\n{' '.join(words[: len(words) // 2])}"
        changed[text.key] = text.document | {"doc": doc, "words": len(doc.split())}
    return changed


async def accuracy(bench: Bench, loaded: Loaded, when: str) -> list[Figure]:
    """Every query against the reference of what is stored now: first anywhere, then at replicas by chance, then uncorrected."""
    right = await asyncio.to_thread(lambda: best_pages(Reference(bench.documents), bench.queries))
    name = f"top 10 as the reference's{when}"
    rows = []
    if when:
        rows.append((await judge(loaded.texts, right)).figure(f"{name}, at once", is_bound=False))
        await asyncio.sleep(STATISTICS_HEARD_S)
    rows.append((await judge(loaded.texts, right)).figure(name))
    again = await judge(loaded.texts, right, replicas="random")
    rows += [again.figure(f"{name}, at any replica"), round_trip_figure(again)]
    uncorrected = await judge(loaded.texts, right, statistics="local")
    return [*rows, uncorrected.figure(f"{name}, by local scores", is_bound=False)]


async def after_update(bench: Bench, loaded: Loaded) -> list[Figure]:
    """The same once a fifth of the documents are others, some before and some after merges took out the old ones."""
    changed = updated(bench.texts, UPDATED_SHARE, SEED)
    await write(loaded.texts, changed)
    bench.documents = {**bench.documents, **changed}
    return await accuracy(bench, loaded, f", {UPDATED_SHARE:.0%} updated")


async def speed(bench: Bench, loaded: Loaded) -> list[Figure]:
    """Rates, processor time, and the time of one search."""
    reference = await asyncio.to_thread(Reference, bench.documents)
    most = await settled(loaded.texts, bench.queries)
    figures = [Figure("segments of an index, at most", most, "", REPLICAS * SHARDS, note="merged once it has been quiet")]
    indexes = await shard_indexes(loaded, bench.documents)
    figures += rate_figures(await rates(loaded, reference, indexes, bench.queries, PACE))
    with echo() as bare:
        return figures + time_figures(await times(loaded, reference, indexes, bare, bench.queries, PACE))


async def measure(bench: Bench) -> list[Figure]:
    """Everything."""
    await bench.part("indexing", lambda: indexing(bench.documents, bench.folder))
    async with running(new_folder(bench.folder, "cluster"), REPLICAS) as loaded:
        await write(loaded.texts, bench.documents)
        await bench.part("accuracy", lambda: accuracy(bench, loaded, ""))
        await bench.part("speed", lambda: speed(bench, loaded))
        await bench.part("counts", lambda: _counts(bench, loaded))
        await bench.part("aggregations", lambda: aggregating(loaded.texts, bench.documents))
        await bench.part("paging", lambda: paging(loaded.texts, bench.documents))
        await bench.part("isolation", lambda: _isolation(bench, loaded))
        await bench.part("updates", lambda: after_update(bench, loaded))
        await bench.part("freshness", lambda: freshness(loaded.texts))
    return bench.figures


async def _counts(bench: Bench, loaded: Loaded) -> list[Figure]:
    reference = await asyncio.to_thread(Reference, bench.documents)
    return await counting(loaded.texts, reference, bench.queries[:COUNTED_QUERIES], len(bench.documents))


async def _isolation(bench: Bench, loaded: Loaded) -> list[Figure]:
    return (await isolation(loaded.texts, bench.queries)).figures()


def main() -> int:
    """Measure on clusters of its own; print and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--texts", type=int, default=TEXTS, help="texts of the corpus (%(default)s)")
    parser.add_argument("--queries", type=int, default=QUERIES, help="queries (%(default)s)")
    parser.add_argument("--part", action="append", choices=PARTS, default=[], help="measure only this; may be given again")
    options = parser.parse_args()
    began = time.perf_counter()
    texts = corpus(options.texts)
    queries = sample_queries(vocabulary(str(text.document["doc"]) for text in texts), options.queries, SEED)
    print(f"{len(texts):,} texts: {origins(texts)}; {len(queries):,} queries; {time.perf_counter() - began:.0f} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="kvshard-search-") as folder:
        documents = {text.key: text.document for text in texts}
        bench = Bench(texts, pathlib.Path(folder), queries, documents, frozenset(options.part))
        figures = uvloop.run(measure(bench))
    figures.insert(0, Figure("texts in the corpus", len(texts), "", len(texts), TEXTS, False, origins(texts)))
    return 0 if show(figures, TARGET) else 1


if __name__ == "__main__":
    sys.exit(main())
