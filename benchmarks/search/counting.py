"""Counts over the whole corpus, value by value, against the reference's and those of a plain loop over its documents."""

import time
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Final

from benchmarks.figures import Figure, percentile
from benchmarks.search.loaded import Documents
from benchmarks.search.reference import KEYWORD_FIELDS, NUMBER_FIELD, Reference
from kvshard import Aggregation, Histogram, Ranges, Terms
from kvshard.aggregations.results import BucketsResult
from kvshard.client.collection import Collection

VALUES_MAX = 1_000
"""Of a facet. Every value that both sides return is compared."""


INTERVAL: Final = 25
"""Of the histogram, in words."""

KINDS_MAX: Final = 8
"""Of each source: there are five."""

LIMITS: Final = (10, 100)
"""Between the ranges, in words."""

ASKED: Final[Mapping[str, Aggregation]] = {
    "kinds": Terms("kind", size=VALUES_MAX),
    "sources": Terms("source", size=VALUES_MAX, aggs={"kinds": Terms("kind", size=KINDS_MAX)}),
    "lengths": Histogram(NUMBER_FIELD, INTERVAL, min_doc_count=1),
    "ranges": Ranges(NUMBER_FIELD, [(None, LIMITS[0]), (LIMITS[0], LIMITS[1]), (LIMITS[1], None)]),
}
TIMES: Final = 5


async def aggregating(texts: Collection[str], documents: Documents) -> list[Figure]:
    """The largest error of a count of terms, nested terms, a histogram and ranges over all documents."""
    seconds: list[float] = []
    for _ in range(TIMES):
        began = time.perf_counter()
        page = await texts.search("*", limit=0, aggs=ASKED)
        seconds.append(time.perf_counter() - began)
    found: dict[Hashable, int] = {}
    for name in ASKED:
        result = page.aggregations[name]
        assert isinstance(result, BucketsResult), f"{name} has buckets"
        keys = [place if name == "ranges" else bucket.key for place, bucket in enumerate(result.buckets)]
        found.update({(name, key): bucket.count for key, bucket in zip(keys, result.buckets, strict=True)})
        for bucket in result.buckets:
            inside = bucket.aggregations.get("kinds")
            if isinstance(inside, BucketsResult):
                found.update({(name, bucket.key, each.key): each.count for each in inside.buckets})
    right = Counter(place for document in documents.values() for place in _places(document, found))
    error = max((abs(found.get(place, 0) - right[place]) for place in found.keys() | right.keys()), default=0)
    middle = percentile(seconds, 0.5) * 1e3
    note = f"terms, nested terms, histogram, ranges; n counts buckets; {middle:,.0f} ms each of {TIMES} times"
    return [Figure(f"error of aggregations over {len(documents):,} documents", error, "", len(found), 0, note=note, goal=0)]


def _places(document: Mapping[str, object], shown: Mapping[Hashable, int]) -> Iterable[Hashable]:
    """The buckets that a document belongs in; sources that did not make it among the first VALUES_MAX are left out."""
    words, source, kind = int(str(document[NUMBER_FIELD])), document["source"], document["kind"]
    yield ("kinds", kind)
    if ("sources", source) in shown:
        yield ("sources", source)
        yield ("sources", source, kind)
    yield ("lengths", float(words // INTERVAL * INTERVAL))
    yield ("ranges", sum(words >= limit for limit in LIMITS))


async def counting(texts: Collection[str], reference: Reference, queries: Sequence[str], documents: int) -> list[Figure]:
    """The largest error of a count, over all documents and over those that some queries match."""
    worst, compared, bounds = 0, 0, 0
    for query in ("", *queries):
        page = await texts.search(query, limit=1, facets=KEYWORD_FIELDS, facet_limit=VALUES_MAX)
        for name in KEYWORD_FIELDS:
            facet = page.facets[name]
            found = {value.value: value.count for value in facet.values}
            right = reference.counts(query, name, 10 * VALUES_MAX)
            worst = max(worst, count_error(found, right))
            compared += len(found)
            bounds = max(bounds, facet.error_bound)
    note = f"facets {' and '.join(KEYWORD_FIELDS)} of {1 + len(queries)} queries, largest error bound {bounds}; n counts values"
    return [Figure(f"error of counts over {documents:,} documents", worst, "", compared, 0, note=note, goal=0)]


def count_error(found: Mapping[str, int], right: Mapping[str, int]) -> int:
    """The largest difference of a count; of a value that is missing where there was room for it, its whole count."""
    return max(_differences(found, right), default=0)


def _differences(found: Mapping[str, int], right: Mapping[str, int]) -> Iterable[int]:
    for value, count in found.items():
        yield abs(count - right.get(value, 0))
    if len(found) < VALUES_MAX:
        for value in right.keys() - found.keys():
            yield right[value]
