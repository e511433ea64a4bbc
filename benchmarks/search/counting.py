"""Counts over the whole corpus, value by value, against the reference's."""

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.figures import Figure
from benchmarks.search.reference import KEYWORD_FIELDS, Reference
from kvshard.client.collection import Collection

VALUES_MAX = 1_000
"""Of a facet. Every value that both sides return is compared."""


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
