"""How many queries get the very page that one index of the whole corpus gives."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.figures import Figure
from benchmarks.search.reference import Best, Reference, is_same, is_same_set
from kvshard.client.collection import Collection
from kvshard.client.options import ReadOverrides

TOP = 10
CALLERS = 4
BOUND, GOAL = 99.5, 100.0
ROUND_TRIPS_BOUND, ROUND_TRIPS_GOAL = 0.05, 0.01


@dataclass(slots=True)
class Judged:
    """What came of some queries. different: those whose page was another, in order or in its documents; other_sets: those in
    its documents; wrong_totals: those that matched another number of documents.
    """

    asked: int = 0
    different: list[str] = field(default_factory=list)
    wrong_totals: list[str] = field(default_factory=list)
    other_sets: int = 0
    incomplete: int = 0
    statistics: Counter[str] = field(default_factory=Counter)
    round_trips: int = 0

    @property
    def percent(self) -> float:
        """Of the queries that got the reference's page."""
        return 100.0 * (self.asked - len(self.different)) / max(1, self.asked)

    @property
    def kinds(self) -> str:
        """What the scores rested on, as text."""
        return ", ".join(f"{kind}: {number:,}" for kind, number in self.statistics.most_common())

    def figure(self, name: str, *, is_bound: bool = True) -> Figure:
        """As a row. is_bound: it has to keep the bound; else it is there to compare with."""
        remarks = []
        if self.different:
            same_sets = 100.0 * (self.asked - self.other_sets) / self.asked
            remarks.append(f"the same documents in another order included {same_sets:.1f} %")
            remarks.append(f"not: {', '.join(map(repr, self.different[:2]))}")
        if self.wrong_totals:
            remarks.append(f"{len(self.wrong_totals)} totals differ")
        if self.incomplete:
            remarks.append(f"{self.incomplete} answers without every shard")
        if self.statistics:
            remarks.append(self.kinds)
        bound, goal = (BOUND, GOAL) if is_bound else (None, None)
        return Figure(name, self.percent, "%", self.asked, bound, False, "; ".join(remarks), goal)


def best_pages(reference: Reference, queries: Sequence[str]) -> dict[str, Best]:
    """What the reference answers."""
    return {query: reference.best(query, TOP) for query in queries}


def round_trip_figure(judged: Judged) -> Figure:
    """How many further round trips a query took for the statistics of its words."""
    value = judged.round_trips / max(1, judged.asked)
    name = "extra round trips for statistics per query, warm"
    return Figure(name, value, "", judged.asked, ROUND_TRIPS_BOUND, note=judged.kinds, goal=ROUND_TRIPS_GOAL)


async def judge(texts: Collection[str], right: Mapping[str, Best], statistics: str = "exact", replicas: str = "") -> Judged:
    """Ask all the queries. statistics: what scores are to rest on; replicas: which ones to ask ("": whichever is quick)."""
    judged, left = Judged(), iter(right.items())

    choice: ReadOverrides = {"replica_choice": replicas} if replicas else {}  # type: ignore[typeddict-item]

    async def caller() -> None:
        for query, best in left:
            page = await texts.search(query, limit=TOP, keys_only=True, statistics=statistics, **choice)
            judged.asked += 1
            judged.incomplete += not page.complete
            judged.statistics[page.statistics.kind] += 1
            judged.round_trips += page.statistics.extra_round_trips
            keys = [hit.key for hit in page.hits]
            if not is_same(keys, best, TOP):
                judged.different.append(query)
                judged.other_sets += not is_same_set(keys, best, TOP)
            if page.total != best.total:
                judged.wrong_totals.append(query)

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(caller())
    return judged
