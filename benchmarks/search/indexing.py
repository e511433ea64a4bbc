"""Documents a second into a searchable cluster, beside bulk indexing by tantivy on one thread."""

import itertools
from pathlib import Path
from statistics import median

from benchmarks.figures import Figure
from benchmarks.processor_time import own_seconds, process_seconds
from benchmarks.search.loaded import Documents, Loaded, new_folder, running, write
from benchmarks.search.reference import Reference

BOUND, GOAL = 0.4, 0.8
TURNS = 3


async def indexing(documents: Documents, folder: Path, turns: int = TURNS) -> list[Figure]:
    """Write the corpus into an empty cluster with one replica a shard, and index it at the reference; in turns.

    A cluster's time is that from the first write until searches see the last one, each write durable. The reference's is that
    until its commit, in a folder on the same disk.
    """
    ours, theirs, used = list[float](), list[float](), list[float]()
    for turn in range(turns):
        theirs.append(len(documents) / Reference(documents, folder / f"reference-{turn}").seconds)
        async with running(new_folder(folder, f"cluster-{turn}"), replicas=1) as loaded:
            before, own = _servers(loaded), own_seconds()
            ours.append(len(documents) / await write(loaded.texts, documents))
            used.append((_servers(loaded) - before) / len(documents) * 1e6)
            client = (own_seconds() - own) / len(documents) * 1e6
    ratio = median(mine / other for mine, other in zip(ours, theirs, strict=True))
    note = (
        f"us a document: servers {median(used):,.0f}, client {client:,.0f} of processor; reference {1e6 / median(theirs):,.0f}"
    )
    count = turns * len(documents)
    return [
        Figure("indexing through the cluster", median(ours), "docs/s", count, note=f"1 replica; {_spread(ours)}"),
        Figure("bulk indexing of the reference", median(theirs), "docs/s", count, note=f"one thread; {_spread(theirs)}"),
        Figure("indexing / the reference's", ratio, "x", count, BOUND, False, note, GOAL),
    ]


def _servers(loaded: Loaded) -> float:
    return sum(process_seconds(pid) for pid in itertools.chain.from_iterable(loaded.processes.values()))


def _spread(rates: list[float]) -> str:
    return f"turns {min(rates):,.0f} to {max(rates):,.0f}"
