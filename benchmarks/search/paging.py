"""A whole result page by page: every hit, once, where it belongs, and whether the last pages take longer than the first."""

import time
from collections.abc import Mapping, Sequence
from typing import Final

from benchmarks.figures import Figure, percentile
from benchmarks.search.loaded import Documents
from benchmarks.search.reference import NUMBER_FIELD
from kvshard.client.collection import Collection

PAGE: Final = 1_000
"""Hits of a page, the most that there may be."""

ENDS: Final = 10
"""Pages at either end whose times are compared."""


async def whole_result(texts: Collection[str], sort: str, page_hits: int = PAGE) -> tuple[list[str], list[float]]:
    """The keys of all documents in this order, and the seconds of each page."""
    keys: list[str] = []
    seconds: list[float] = []
    token = b""
    while True:
        began = time.perf_counter()
        page = await texts.search("*", sort=sort, limit=page_hits, next=token, keys_only=True)
        seconds.append(time.perf_counter() - began)
        keys += [hit.key for hit in page.hits]
        token = page.next
        if not token:
            return keys, seconds


async def paging(texts: Collection[str], documents: Documents, page_hits: int = PAGE) -> list[Figure]:
    """Hits that are missing, there twice or in the wrong place, in the order of the keys and by a number that many share."""
    by_key = sorted(documents, key=str.encode)
    errors = pages = 0
    ratios: list[float] = []
    for sort, right in (("_key", by_key), (f"-{NUMBER_FIELD},_key", _by_number(by_key, documents))):
        keys, seconds = await whole_result(texts, sort, page_hits)
        errors += _errors(keys, right)
        pages += len(seconds)
        ratios.append(percentile(seconds[-ENDS - 1 : -1] or seconds, 0.5) / percentile(seconds[1 : ENDS + 1] or seconds, 0.5))
    longer = " and ".join(f"{ratio:.2f}" for ratio in ratios)
    note = f"{pages} pages, by key and by {NUMBER_FIELD}; the last full ones take {longer} x as long as the first ones"
    name = f"hits missing, twice or misplaced among all {len(documents):,}, page by page"
    return [Figure(name, errors, "", 2 * len(documents), 0, note=note, goal=0)]


def _by_number(by_key: Sequence[str], documents: Mapping[str, Mapping[str, object]]) -> list[str]:
    return sorted(by_key, key=lambda key: -int(str(documents[key][NUMBER_FIELD])))


def _errors(keys: Sequence[str], right: Sequence[str]) -> int:
    """Places at which another hit stands, and those that only one of the two has."""
    return sum(one != other for one, other in zip(keys, right, strict=False)) + abs(len(keys) - len(right))
