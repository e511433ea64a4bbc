"""Aggregations computed the plain way, over lists of documents in memory: what the real ones are compared with."""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from kvshard.aggregations.model import (
    Aggregation,
    Cardinality,
    DateHistogram,
    Filter,
    Filters,
    Histogram,
    Missing,
    Percentiles,
    Ranges,
    Stats,
    Terms,
)
from kvshard.schema import BOOLEAN, DATE, Schema, check_of

Document = Mapping[str, Any]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Brute:
    """matches: (query string, document) -> does it match; only needed for filters."""

    def __init__(self, schema: Schema, matches: Callable[[str, Document], bool] = lambda _query, _document: True) -> None:
        self._schema = schema
        self._matches = matches

    def run(self, aggregations: Mapping[str, Aggregation], documents: Sequence[Document]) -> dict[str, Any]:
        """name -> of buckets a list of (key, count, inside), else a figure or a dict of them."""
        return {name: self._one(each, documents) for name, each in aggregations.items()}

    def values(self, name: str, document: Document) -> list[Any]:
        """Its different values; dates in microseconds."""
        given, check = document.get(name), check_of(self._schema[name])
        if given is None:
            return []
        return list(dict.fromkeys(check(name, item) for item in (given if isinstance(given, list) else (given,))))

    def _one(self, aggregation: Aggregation, documents: Sequence[Document]) -> Any:
        match aggregation:
            case Stats() | Percentiles() | Cardinality():
                values = [value for document in documents for value in self.values(aggregation.field, document)]
                return self._metric(aggregation, values)
            case Terms():
                return self._terms(aggregation, documents)
            case Histogram() | DateHistogram():
                return self._histogram(aggregation, documents)
            case Ranges():
                wanted = [
                    (f"{'(' if low is None else '['}{'*' if low is None else low}, {'*' if high is None else high})", low, high)
                    for low, high in aggregation.ranges
                ]
                return [
                    self._bucket(
                        aggregation, key, [each for each in documents if self._lies(aggregation.field, each, low, high)]
                    )
                    for key, low, high in wanted
                ]
            case Missing():
                return [
                    self._bucket(
                        aggregation, "missing", [each for each in documents if not self.values(aggregation.field, each)]
                    )
                ]
            case Filter():
                inside = [each for each in documents if self._matches(aggregation.query, each)]
                return [self._bucket(aggregation, "matching", inside)]
            case Filters():
                return [
                    self._bucket(aggregation, name, [each for each in documents if self._matches(query, each)])
                    for name, query in aggregation.queries.items()
                ]

    def _lies(self, name: str, document: Document, low: Any, high: Any) -> bool:
        return any((low is None or value >= low) and (high is None or value < high) for value in self.values(name, document))

    def _bucket(self, aggregation: Any, key: Any, documents: Sequence[Document]) -> tuple[Any, int, dict[str, Any]]:
        return key, len(documents), self.run(aggregation.aggs, documents)

    def _terms(self, aggregation: Terms, documents: Sequence[Document]) -> list[Any]:
        held: dict[Any, list[Document]] = {}
        for document in documents:
            for value in self.values(aggregation.field, document):
                held.setdefault(value, []).append(document)
        kept = [(key, inside) for key, inside in held.items() if len(inside) >= aggregation.min_doc_count]
        order = aggregation.order
        sign = -1 if order.startswith("-") else 1
        kept.sort(key=lambda each: each[0])
        if order == "-key":
            kept.reverse()
        elif order.endswith("count"):
            kept.sort(key=lambda each: sign * len(each[1]))
        elif order != "key":
            name, _, figure = order.removeprefix("-").partition(".")

            def by(each: tuple[Any, list[Document]]) -> tuple[bool, float]:
                found = self._one(aggregation.aggs[name], each[1])
                value = found[figure or "mean"] if isinstance(found, dict) else found
                return value is None, 0 if value is None else sign * value

            kept.sort(key=by)
        shown = [(self._shown(key, self._schema[aggregation.field]), inside) for key, inside in kept]
        return [self._bucket(aggregation, key, inside) for key, inside in shown[: aggregation.size]]

    def _shown(self, key: Any, field_type: str) -> Any:
        if field_type == DATE:
            return EPOCH + timedelta(microseconds=key)
        return bool(key) if field_type == BOOLEAN else key

    def _histogram(self, aggregation: Histogram | DateHistogram, documents: Sequence[Document]) -> list[Any]:
        held: dict[Any, list[Document]] = {}
        for document in documents:
            for key in {self._cell(aggregation, value) for value in self.values(aggregation.field, document)}:
                held.setdefault(key, []).append(document)
        keys = sorted(held)
        if keys and aggregation.min_doc_count == 0:
            keys = self._filled(aggregation, keys[0], keys[-1])
        found = [(key, held.get(key, [])) for key in keys]
        return [
            self._bucket(aggregation, self._cell_key(aggregation, key), inside)
            for key, inside in found
            if len(inside) >= aggregation.min_doc_count
        ]

    def _cell(self, aggregation: Histogram | DateHistogram, value: Any) -> Any:
        if isinstance(aggregation, Histogram):
            return math.floor((value - aggregation.offset) / aggregation.interval)
        at = EPOCH + timedelta(microseconds=value)
        midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
        match aggregation.interval:
            case "day":
                return midnight
            case "week":
                return midnight - timedelta(days=midnight.weekday())
            case "month":
                return midnight.replace(day=1)
            case "quarter":
                return midnight.replace(day=1, month=(midnight.month - 1) // 3 * 3 + 1)
            case "year":
                return midnight.replace(day=1, month=1)
        length = _length(aggregation.interval)
        return EPOCH + (at - EPOCH) // length * length

    def _filled(self, aggregation: Histogram | DateHistogram, first: Any, last: Any) -> list[Any]:
        if isinstance(aggregation, Histogram):
            return list(range(first, last + 1))
        step = {"day": 1, "week": 7, "month": 1, "quarter": 1, "year": 1}.get(aggregation.interval)
        found, at = [], first
        while at <= last:
            found.append(at)
            following = at + (timedelta(days=step) if step else _length(aggregation.interval))
            while self._cell(aggregation, (following - EPOCH) // timedelta(microseconds=1)) == at:
                following += timedelta(days=1)
            at = following
        return found

    def _cell_key(self, aggregation: Histogram | DateHistogram, key: Any) -> Any:
        return key * aggregation.interval + aggregation.offset if isinstance(aggregation, Histogram) else key

    def _metric(self, aggregation: Aggregation, values: list[Any]) -> Any:
        match aggregation:
            case Cardinality():
                return len(set(values))
            case Percentiles():
                ordered = sorted(values)
                ranks = {
                    percent: min(max(math.ceil(percent / 100 * len(values)), 1), len(values))
                    for percent in aggregation.percents
                }
                return {percent: ordered[rank - 1] if values else None for percent, rank in ranks.items()}
            case _:
                return _stats(values)


def _length(text: str) -> timedelta:
    units = {"ms": 1e-3, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
    digits = text.rstrip("msdh")
    return timedelta(seconds=int(digits) * units[text[len(digits) :]])


def _stats(values: list[Any]) -> dict[str, Any]:
    if not values:
        return {"count": 0, "sum": 0.0, "min": None, "max": None, "mean": None, "variance": None}
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    return {
        "count": len(values),
        "sum": math.fsum(values),
        "min": min(values),
        "max": max(values),
        "mean": mean,
        "variance": variance,
    }


def spread_documents(count: int, seed: Any) -> list[dict[str, Any]]:
    """Documents with the keyword tag, the integer n, the float x, the boolean on and the date at. Of every field values are
    missing now and then, or there are several, some of them twice. seed: a random.Random.
    """
    tags = ["rpc", "tail", "raft", "Ünï code", "a b", "", "k"]

    def some(make: Callable[[], Any]) -> Any:
        kind = seed.random()
        if kind < 0.1:
            return None
        return make() if kind < 0.8 else [make() for _ in range(seed.randrange(4))]

    def date() -> str:
        return (datetime(2019, 1, 1, tzinfo=UTC) + timedelta(seconds=seed.randrange(3 * 365 * 86_400))).isoformat()

    makers: dict[str, Callable[[], Any]] = {
        "tag": lambda: seed.choice(tags),
        "n": lambda: seed.randrange(-30, 30),
        "x": lambda: seed.choice([0.0, 0.1, 0.3, -0.3, 1e9, 7.25, seed.uniform(-5, 5)]),
        "on": lambda: seed.random() < 0.3,
        "at": date,
    }
    return [{name: some(make) for name, make in makers.items()} for _ in range(count)]


def plain(result: Any) -> Any:
    """An answer of the product in the terms of `Brute`."""
    if hasattr(result, "buckets"):
        return [
            (each.key, each.count, {name: plain(child) for name, child in each.aggregations.items()}) for each in result.buckets
        ]
    if hasattr(result, "stddev"):
        return {name: getattr(result, name) for name in ("count", "sum", "min", "max", "mean", "variance")}
    if hasattr(result, "values"):
        return dict(result.values)
    return result.value


def differences(found: Any, wanted: Any, path: str = "") -> list[str]:
    """Where two answers differ; doubles may in their last digits."""
    if isinstance(found, dict) and isinstance(wanted, dict) and found.keys() == wanted.keys():
        return [text for key in found for text in differences(found[key], wanted[key], f"{path}.{key}")]
    if isinstance(found, list | tuple) and isinstance(wanted, list | tuple) and len(found) == len(wanted):
        return [text for at, pair in enumerate(zip(found, wanted, strict=True)) for text in differences(*pair, f"{path}[{at}]")]
    if isinstance(found, float) and isinstance(wanted, float | int) and math.isclose(found, wanted, rel_tol=1e-6, abs_tol=1e-6):
        return []
    return [] if found == wanted else [f"{path}: {found!r} is not {wanted!r}"]
