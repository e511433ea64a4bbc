"""The aggregations of a search, from what the shards said to the answer; off the event loop when there is much of it."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from kvshard.aggregations.finish import finish_all
from kvshard.aggregations.merge import merge_named
from kvshard.aggregations.model import Aggregation
from kvshard.aggregations.partial import Partial, Rows
from kvshard.aggregations.results import AggregationResult
from kvshard.errors import Unimplemented
from kvshard.schema import Schema

ROWS_AT_ONCE: Final = 2_000
"""Merged on the event loop: some milliseconds. The 160,000 rows that 8 shards may return take some 80, in which nothing else
would be answered."""


async def aggregated(
    aggregations: Mapping[str, Aggregation], parts: Sequence[Mapping[str, Partial]], schema: Schema
) -> dict[str, AggregationResult]:
    """The answers, by name. parts: of each shard that answered.

    Raises InvalidArgument as `finish_all` does, and Unimplemented when a shard has not answered to one: its leaf runs a version
    that does not know it, and without its documents the counts would be wrong.
    """
    for part in parts:
        if not part.keys() >= aggregations.keys():
            raise Unimplemented("a leaf runs a version that knows no aggregations; update it first")

    def finished() -> dict[str, AggregationResult]:
        return finish_all(aggregations, merge_named(parts), schema)

    rows = sum(_rows(partial) for part in parts for partial in part.values())
    return finished() if rows <= ROWS_AT_ONCE else await asyncio.to_thread(finished)


def _rows(partial: Partial) -> int:
    """About as many steps as merging it takes."""
    if not isinstance(partial, Rows):
        return 1
    return len(partial.keys) + sum(_rows(child) for column in partial.children.values() for child in column)
