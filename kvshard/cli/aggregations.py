"""Aggregations on the command line: their short text form, and their answers as tables with bars, or as JSON.

The form is [NAME=]KIND:FIELD[:MORE], with what is to be computed in each bucket behind slashes:
`terms:tag:10`, `terms:tag:10:-s.max/s=stats:year/terms:author:3`, `ranges:year:..2000,2000..2010,2010..`, `histogram:year:10`,
`dates:updated:month`, `missing:tag`, `filter:QUERY`, `stats:year`, `percentiles:size:50,99`, `cardinality:tag`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from kvshard.aggregations.model import (
    DEFAULT_PERCENTS,
    Aggregation,
    Bound,
    Cardinality,
    DateHistogram,
    Filter,
    Histogram,
    Missing,
    Percentiles,
    Ranges,
    Stats,
    Terms,
)
from kvshard.aggregations.results import (
    AggregationResult,
    Bucket,
    BucketsResult,
    CardinalityResult,
    PercentilesResult,
    StatsResult,
)
from kvshard.errors import ErrorDetails, InvalidArgument

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

BAR_CHARS: Final = 30
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"

FORM: Final = "KIND:FIELD[:MORE], as in terms:tag:10, stats:year, histogram:year:10, dates:at:month, percentiles:size:50,99"


def parse_aggregations(texts: Iterable[str]) -> dict[str, Aggregation]:
    """The aggregations of the `--agg` flags, by name: what stands before "=", else the text. Raises InvalidArgument."""
    found: dict[str, Aggregation] = {}
    for text in texts:
        name, aggregation = _parse(text)
        if name in found:
            raise _refused(f"{name!r} stands twice; give one of them another name, as in other={text}")
        found[name] = aggregation
    return found


def _parse(text: str) -> tuple[str, Aggregation]:
    kind = text.partition("=")[2] if _is_named(text) else text
    # A query may contain anything, so nothing can stand behind it.
    own, *inside = [text] if kind.startswith("filter:") else text.split("/")
    return _parse_one(own, parse_aggregations(inside))


def _is_named(text: str) -> bool:
    return 0 < text.find("=") < text.find(":")


def _parse_one(text: str, aggs: dict[str, Aggregation]) -> tuple[str, Aggregation]:
    name, _, form = text.partition("=") if _is_named(text) else (text, "", text)
    kind, _, rest = form.partition(":")
    field, _, more = rest.partition(":")
    make = _KINDS.get(kind)
    if make is None or not field:
        raise _refused(f"{text[:80]!r} is no aggregation: it is {FORM}; the kinds are {', '.join(_KINDS)}")
    try:
        return name, make(rest if kind == "filter" else field, more, aggs)
    except ValueError:
        raise _refused(f"{text[:80]!r} is no aggregation: {more!r} does not fit {kind}") from None


def _terms(field: str, more: str, aggs: dict[str, Aggregation]) -> Aggregation:
    size, _, order = more.partition(":")
    return Terms(field, int(size) if size else Terms(field).size, order or Terms(field).order, aggs=aggs)


def _ranges(field: str, more: str, aggs: dict[str, Aggregation]) -> Aggregation:
    ranges: list[tuple[Bound, Bound]] = []
    for text in more.split(","):
        low, dots, high = text.partition("..")
        if not dots:
            raise ValueError
        ranges.append((low or None, high or None))
    return Ranges(field, ranges, aggs)


def _percents(more: str) -> tuple[float, ...]:
    return tuple(float(each) for each in more.split(",")) if more else DEFAULT_PERCENTS


def _metric(make: Callable[[str, str], Aggregation]) -> Callable[[str, str, dict[str, Aggregation]], Aggregation]:
    def made(field: str, more: str, aggs: dict[str, Aggregation]) -> Aggregation:
        if aggs:
            raise ValueError
        return make(field, more)

    return made


def _bare(make: Callable[[str], Aggregation]) -> Callable[[str, str], Aggregation]:
    def made(field: str, more: str) -> Aggregation:
        if more:
            raise ValueError
        return make(field)

    return made


_KINDS: Final[Mapping[str, Callable[[str, str, dict[str, Aggregation]], Aggregation]]] = {
    "terms": _terms,
    "ranges": _ranges,
    "histogram": lambda field, more, aggs: Histogram(field, float(more), aggs=aggs),
    "dates": lambda field, more, aggs: DateHistogram(field, more, aggs=aggs),
    "missing": lambda field, _, aggs: Missing(field, aggs),
    "filter": lambda query, _, aggs: Filter(query, aggs),
    "stats": _metric(_bare(Stats)),
    "percentiles": _metric(lambda field, more: Percentiles(field, _percents(more))),
    "cardinality": _metric(_bare(Cardinality)),
}


def _refused(message: str) -> InvalidArgument:
    return InvalidArgument(message, ErrorDetails(field="agg"))


def show_aggregations(console: "Console", results: Mapping[str, AggregationResult]) -> None:
    """Tables for people."""
    for name, result in results.items():
        if isinstance(result, BucketsResult):
            note = f" (each up to {result.error_bound:,} too low)" if result.error_bound else ""
            rest = f", {result.others:,} more in others" if result.others else ""
            console.print(f"{name}{note}{rest}", markup=False, style="cyan", soft_wrap=True)
            console.print(_table(result))
        else:
            console.print(f"{name}: {figure_text(result)}", markup=False, style="cyan", soft_wrap=True)


def _table(result: BucketsResult) -> "Table":
    from rich.table import Table

    table = Table.grid(padding=(0, 1))
    longest = max((bucket.count for bucket in result.buckets), default=0)
    for bucket in result.buckets:
        inside = "  ".join(f"{name}: {figure_text(child)}" for name, child in bucket.aggregations.items())
        table.add_row(
            "    ", _cell(key_text(bucket)), _cell(bar(bucket.count, longest)), _cell(f"{bucket.count:,}"), _cell(inside)
        )
    if not result.buckets:
        table.add_row("    ", "nothing")
    return table


def bar(count: int, longest: int) -> str:
    """A bar of a length that compares with the longest one; what is not nothing has one."""
    eighths = -(-count * BAR_CHARS * 8 // longest) if longest else 0
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def key_text(bucket: Bucket) -> str:
    """What a bucket stands for."""
    key = bucket.key
    match key:
        case bool():
            return str(key).lower()
        case datetime():
            is_day = (key.hour, key.minute, key.second, key.microsecond) == (0, 0, 0, 0)
            return key.date().isoformat() if is_day else key.isoformat()
        case float():
            return f"{key:g}"
        case _:
            return "".join(char if char.isprintable() else " " for char in str(key)) or '""'


def figure_text(result: AggregationResult) -> str:
    """A result in one line."""
    match result:
        case StatsResult():
            if not result.count:
                return "no values"
            figures = (result.min, result.max, result.mean, result.stddev, result.sum)
            names = ("min", "max", "mean", "stddev", "sum")
            shown = ", ".join(f"{name} {_number(value)}" for name, value in zip(names, figures, strict=True))
            return f"{result.count:,} values, {shown}"
        case PercentilesResult():
            error = f" (within {result.relative_error:.2%})" if result.relative_error else ""
            error += f" (within {result.absolute_error / 3.6e9:.1f} h)" if result.absolute_error else ""
            return ", ".join(f"{percent:g}% {_number(value)}" for percent, value in result.values.items()) + error
        case CardinalityResult():
            return f"{result.value:,}" + ("" if result.is_exact else f" (give or take {2 * result.standard_error:.1%})")
        case BucketsResult():
            return ", ".join(f"{key_text(bucket)} {bucket.count:,}" for bucket in result.buckets if bucket.count) or "nothing"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"


def _cell(text: str) -> Any:
    from rich.text import Text

    return Text(text)


def aggregations_json(results: Mapping[str, AggregationResult]) -> dict[str, Any]:
    """The same for programs; dates as ISO 8601."""
    return {name: _json(result) for name, result in results.items()}


def _json(result: AggregationResult) -> dict[str, Any]:
    match result:
        case BucketsResult():
            rows = [
                {
                    "key": bucket.key.isoformat() if isinstance(bucket.key, datetime) else bucket.key,
                    "count": bucket.count,
                    **({"error_bound": bucket.error_bound} if bucket.error_bound else {}),
                    **({"aggregations": aggregations_json(bucket.aggregations)} if bucket.aggregations else {}),
                }
                for bucket in result.buckets
            ]
            return {"buckets": rows, "error_bound": result.error_bound, "others": result.others}
        case StatsResult():
            return {**asdict(result), "stddev": result.stddev}
        case PercentilesResult():
            values = {f"{percent:g}": value for percent, value in result.values.items()}
            return {"values": values, "relative_error": result.relative_error, "absolute_error_us": result.absolute_error}
        case CardinalityResult():
            return asdict(result)
