"""Merging what parts of the documents said. In any order, however the documents were split, it comes to the same: counts are
exact, and where keys are missing from a part the sum of what they may have had there is kept beside each count. (Sums and means
are doubles, and may differ in their last digits.)

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Mapping, Sequence

from kvshard.aggregations.distinct import merge_distinct
from kvshard.aggregations.partial import Distinct, Key, Moments, Partial, Rows, Spread
from kvshard.aggregations.spread import merge_spreads


def merge_named(parts: Sequence[Mapping[str, Partial]]) -> dict[str, Partial]:
    """What several parts said to the same aggregations; one that a part does not mention is as if that part had no
    documents."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: merge([part[name] for part in parts if name in part]) for name in names}


def merge(parts: Sequence[Partial]) -> Partial:
    """What several parts, at least one, said to one aggregation. Raises TypeError when they are of different kinds."""
    if len(parts) == 1:
        return parts[0]
    rows = [part for part in parts if isinstance(part, Rows)]
    moments = [part for part in parts if isinstance(part, Moments)]
    spreads = [part for part in parts if isinstance(part, Spread)]
    distinct = [part for part in parts if isinstance(part, Distinct)]
    if len(rows) == len(parts):
        return merge_rows(rows)
    if len(moments) == len(parts):
        return merge_moments(moments)
    if len(spreads) == len(parts):
        return merge_spreads(spreads)
    if len(distinct) == len(parts):
        return merge_distinct(distinct)
    raise TypeError("parts of different aggregations")


def merge_rows(parts: Sequence[Rows]) -> Rows:
    """Buckets of the same key together."""
    counts: dict[Key, int] = {}
    missed: dict[Key, int] = {}
    inside: dict[str, dict[Key, list[Partial]]] = {}
    error = sum(part.error for part in parts)
    for part in parts:
        for key, count in zip(part.keys, part.counts, strict=True):
            counts[key] = counts.get(key, 0) + count
        if part.errors or part.error:
            for key, own in zip(part.keys, part.errors or [0] * len(part.keys), strict=True):
                missed[key] = missed.get(key, 0) + part.error - own
        for name, column in part.children.items():
            found = inside.setdefault(name, {})
            for key, child in zip(part.keys, column, strict=True):
                found.setdefault(key, []).append(child)
    keys = list(counts)
    errors = [error - missed.get(key, 0) for key in keys]
    return Rows(
        keys=keys,
        counts=list(counts.values()),
        children={name: [merge(found[key]) for key in keys] for name, found in inside.items()},
        errors=errors if any(errors) else [],
        error=error,
        others=sum(part.others for part in parts),
    )


def merge_moments(parts: Sequence[Moments]) -> Moments:
    """Moments of all values together, by the method of Chan, Golub and LeVeque (1979)."""
    count, total, mean, squares = 0, 0.0, 0.0, 0.0
    for part in parts:
        if part.count:
            both = count + part.count
            distance = part.mean - mean
            squares += part.squares + distance * distance * (count * part.count / both)
            mean += distance * (part.count / both)
            count, total = both, total + part.total
    lows = [part.minimum for part in parts if part.minimum is not None]
    highs = [part.maximum for part in parts if part.maximum is not None]
    return Moments(count, total, min(lows, default=None), max(highs, default=None), mean, squares)


def trim(rows: Rows, most: int) -> Rows:
    """The `most` buckets with the highest counts, ties by key; what the others may have had becomes the error."""
    if len(rows.keys) <= most:
        return rows
    errors = rows.errors or [0] * len(rows.keys)
    order = sorted(range(len(rows.keys)), key=lambda at: (-rows.counts[at], rows.keys[at]))
    kept, dropped = order[:most], order[most:]
    return take(rows, kept, max(rows.error, *(rows.counts[at] + errors[at] for at in dropped)))


def take(rows: Rows, places: Sequence[int], error: int) -> Rows:
    """The buckets at these places alone. error: the most that a key which is not listed may have then."""
    kept = sum(rows.counts[at] for at in places)
    return Rows(
        keys=[rows.keys[at] for at in places],
        counts=[rows.counts[at] for at in places],
        children={name: [column[at] for at in places] for name, column in rows.children.items()},
        errors=[rows.errors[at] for at in places] if rows.errors else [],
        error=error,
        others=rows.others + sum(rows.counts) - kept,
    )
