"""`kvshard search`: a page of hits, for people with colours, for programs as JSON."""

import json
import pathlib
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from kvshard.cli.aggregations import aggregations_json, parse_aggregations, show_aggregations
from kvshard.cli.console import (
    EXIT_OK,
    Connect,
    complain,
    exit_code_of,
    explain,
    json_bytes,
    one_line,
    parse_token,
    print_json,
    rich_console,
    token_text,
    with_client,
)
from kvshard.cli.reading import ANYHOW, WHOLE, Gathering, Reading, coverage_text, missing_lines
from kvshard.cli.search_accounts import explanation_lines, profile_json, show_profile
from kvshard.cli.timings import show_timing, timing_json
from kvshard.errors import ErrorDetails, InvalidArgument, MalformedQuery
from kvshard.query.structured import Operator
from kvshard.schema import TEXT, base_type

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from kvshard.client.client import Client
    from kvshard.client.options import ReadOverrides
    from kvshard.client.results import Collapsed, Hit, SearchPage, SearchStatistics
    from kvshard.vectors import Nearest

_DEFAULTS = Connect()
_PREVIEW_MAX_CHARS = 300
"""Of a document without highlights: two lines or three of a terminal."""


def register(app: App) -> None:
    """Add the verb to the command line."""
    app.command(search)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a search is to find and to show.

    Parameters
    ----------
    limit
        Hits wanted.
    filters
        A further query that each hit must match; may be given several times.
    facets
        Count the values of this keyword field; may be given several times.
    facet_limit
        Values for each facet.
    aggregations
        A figure over all that match: terms:tag:10, stats:year, histogram:year:10, dates:at:month, ranges:year:..2000,2000..,
        percentiles:size:50,99, cardinality:tag, missing:tag, filter:QUERY. Behind a slash, what to compute in each bucket:
        terms:tag/stats:year. May be given several times; --limit 0 for these alone.
    fields
        Field that words without a field are looked for in, as title or title^3; may be given several times.
    operator
        What stands between words that have nothing between them.
    minimum
        How many of the words have to match, as 2, 75% or -1.
    matching
        A structured query as JSON, that each hit must match besides: {"match": {"text": "tail latency"}}.
    sort
        Fields to sort by, with commas: "-year,tag" is the newest first; "tag:missing_first"; also _score and _key. By score
        without it.
    return_fields
        Show only these fields of the documents, with commas; "a.b" for one inside an object.
    collapse
        Show only the first hit of each value of this field.
    total
        How far to count the matches: "exact", "none", or a number.
    highlight
        Text field to show fragments of; may be given several times. All of them without it.
    fragments
        Fragments of each text field.
    next_page
        Go on behind an earlier page: the token that it printed.
    refresh
        See every write that was acknowledged before.
    min_versions
        See the write that printed this token ("written" in the JSON of `kvshard put`); may be given several times.
    fuzziness
        Letters of the query's words that may be wrong: 0 to 2, or "auto" for as many as the length of each word allows.
    statistics
        What scores rest on: "exact", all documents, or "local", those of each shard, for comparison.
    nearest
        Find what is nearest to a vector: "FIELD=[0.1,0.2]", or "FIELD=@FILE" with the JSON list in a file. With a query both
        orders are fused.
    k
        How many of the nearest; as many as hits, at least 20, without it.
    explain
        Show of each hit how its score came about.
    profile
        Show what each shard looked for, and where its time went.
    timing
        Show where the time went between the router and the leaves.
    """

    limit: int = 10
    filters: Annotated[tuple[str, ...], Parameter(name="--filter", negative="")] = ()
    facets: Annotated[tuple[str, ...], Parameter(name="--facet", negative="")] = ()
    facet_limit: int = 10
    aggregations: Annotated[tuple[str, ...], Parameter(name="--agg", negative="")] = ()
    fields: Annotated[tuple[str, ...], Parameter(name="--field", negative="")] = ()
    operator: Operator = "or"
    minimum: Annotated[str, Parameter(name="--minimum-should-match", allow_leading_hyphen=True)] = ""
    matching: Annotated[str, Parameter(name="--structured")] = ""
    sort: Annotated[str, Parameter(allow_leading_hyphen=True)] = ""
    return_fields: Annotated[str, Parameter(name=("--fields", "--return-fields"))] = ""
    collapse: str = ""
    total: str = "exact"
    highlight: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    fragments: int = 1
    next_page: Annotated[str | None, Parameter(name="--next")] = None
    refresh: Annotated[bool, Parameter(negative="")] = False
    min_versions: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    fuzziness: str = "0"
    statistics: str = "exact"
    nearest: str | None = None
    k: int = 0
    explain: Annotated[bool, Parameter(negative="")] = False
    profile: Annotated[bool, Parameter(negative="")] = False
    timing: Annotated[bool, Parameter(negative="")] = False


_ANYTHING = Wanted()


def search(
    collection: str,
    query: Annotated[str, Parameter(allow_leading_hyphen=True)] = "*",
    /,
    *,
    interactive: Annotated[bool, Parameter(name=("--interactive", "-i"), negative="")] = False,
    wanted: Wanted = _ANYTHING,
    reading: Reading = ANYHOW,
    gathering: Gathering = WHOLE,
    connect: Connect = _DEFAULTS,
) -> int:
    """Find the best documents of a collection, or of several.

    Parameters
    ----------
    collection
        Collection to search, or several with commas between: "docs,notes".
    query
        Words, "phrases", "phrases"~2, pre*, w?ld*, fuzzy~1, field:word, field:[a TO b], AND, OR, NOT, ( ), ^2.
    interactive
        Search while typing, on the whole screen.
    """
    options: ReadOverrides = {
        **reading.overrides(),
        **gathering.overrides(),
        "explain_timing": wanted.timing,
    }

    async def work(kv: "Client[bytes]") -> int:
        if interactive:
            await _interact(kv, collection, "" if query == "*" else query, wanted, options)
            return EXIT_OK
        try:
            page = await _find(kv, collection, query, wanted, options, is_for_people=not connect.as_json)
        except MalformedQuery as error:
            explain(error, query)
            return exit_code_of(error)
        if connect.as_json:
            print_json(_as_json(page))
        else:
            _show(rich_console(), page)
        return EXIT_OK

    return with_client(connect, work)


def parse_nearest(text: str, k: int) -> "Nearest":
    """The wish that FIELD=[...] or FIELD=@FILE stands for. Raises InvalidArgument."""
    from kvshard.vectors import Nearest

    field, _, given = text.partition("=")
    try:
        vector = json.loads(pathlib.Path(given[1:]).read_bytes() if given.startswith("@") else given)
    except OSError as error:
        raise InvalidArgument(f"--nearest cannot read its vector: {error}", ErrorDetails(field="nearest.vector")) from None
    except ValueError:
        vector = None
    if not field or not isinstance(vector, list):
        message = '--nearest is "FIELD=[0.1,0.2]", or "FIELD=@FILE" with such a list in a file'
        raise InvalidArgument(message, ErrorDetails(field="nearest"))
    return Nearest(field, vector, k)


async def _text_fields(kv: "Client[bytes]", collection: str) -> tuple[str, ...]:
    names = set(collection.split(","))
    infos = [info for info in await kv.collections() if names & {info.name, *info.aliases}]
    return tuple(dict.fromkeys(name for info in infos for name, kind in info.schema.items() if base_type(kind) == TEXT))


async def _interact(kv: "Client[bytes]", collection: str, text: str, wanted: Wanted, options: "ReadOverrides") -> None:
    from kvshard.cli.search_screen import SearchScreen

    marked = wanted.highlight or await _text_fields(kv, collection)

    async def find(query: str, limit: int) -> "SearchPage[bytes]":
        return await _find(kv, collection, query, replace(wanted, limit=limit, highlight=marked), options, is_for_people=True)

    await SearchScreen(rich_console(), kv.collection(collection), find, text).run()


async def _find(
    kv: "Client[bytes]", collection: str, query: str, wanted: Wanted, options: "ReadOverrides", *, is_for_people: bool
) -> "SearchPage[bytes]":
    marked = wanted.highlight
    if not marked and is_for_people:
        marked = await _text_fields(kv, collection)
    from kvshard.rpc.query_convert import structured_of_json

    first, *others = collection.split(",")
    return await kv.collection(first).search(
        query,
        collections=others,
        matching=structured_of_json(wanted.matching) if wanted.matching else None,
        fields=wanted.fields,
        operator=wanted.operator,
        minimum_should_match=wanted.minimum or None,
        limit=wanted.limit,
        filters=wanted.filters,
        facets=wanted.facets,
        facet_limit=wanted.facet_limit,
        aggs=parse_aggregations(wanted.aggregations),
        sort=wanted.sort,
        return_fields=[name.strip() for name in wanted.return_fields.split(",") if name.strip()],
        collapse=wanted.collapse,
        track_total=_counted_up_to(wanted.total),
        highlight=marked,
        fuzziness=wanted.fuzziness,
        fragments=wanted.fragments,
        statistics=wanted.statistics,
        next=parse_token(wanted.next_page),
        refresh=wanted.refresh,
        min_versions=[parse_token(text) or b"" for text in wanted.min_versions],
        nearest=None if wanted.nearest is None else parse_nearest(wanted.nearest, wanted.k),
        explain=wanted.explain,
        profile=wanted.profile,
        **options,
    )


def _counted_up_to(total: str) -> bool | int:
    if total in {"exact", "none"}:
        return total == "exact"
    if not total.isdecimal():
        raise InvalidArgument(f'--total is "exact", "none" or a number, not {total!r}', ErrorDetails(field="total"))
    return int(total)


def _statistics_text(statistics: "SearchStatistics") -> str:
    """What is worth telling of the scores: nothing where they are exact."""
    if statistics.kind == "local":
        return "; scores are those of each shard"
    if statistics.kind == "cached":
        return f"; scores rest on statistics up to {statistics.age_ms:,} ms old"
    return ""


def _show(console: "Console", page: "SearchPage[bytes]") -> None:
    for number, hit in enumerate(page.hits, 1):
        console.print(_headline(number, hit), soft_wrap=True)
        for line in _fragments(hit):
            console.print(line, soft_wrap=True)
        if hit.explanation:
            console.print("\n".join(explanation_lines(hit.explanation)), markup=False, style="green", soft_wrap=True)
    show_aggregations(console, {**{name: facet.as_buckets() for name, facet in page.facets.items()}, **page.aggregations})
    freshness = f"; does not show writes of the last {page.unseen_age_ms:,} ms yet" if page.unseen_age_ms else ""
    total = f"{page.total:,}" if page.is_total_exact else f"{page.total:,} or more"
    text = f"{len(page.hits)} of {total} hits, {coverage_text(page.coverage)}{freshness}{_statistics_text(page.statistics)}"
    console.print(text, markup=False, style="dim", soft_wrap=True)
    if page.profile:
        show_profile(console, page.profile)  # with its timing
    elif page.timing:
        show_timing(console, page.timing)
    if page.next:
        complain(f"there is more: --next {token_text(page.next)}")
    for missing in missing_lines(page.coverage):
        complain(missing)


def _headline(number: int, hit: "Hit[bytes]") -> "Text":
    from rich.text import Text

    score = f"  {hit.score:.3f}" if hit.score else ""
    group = f"  {_group(hit.collapsed)}" if hit.collapsed else ""
    place = f"  in {hit.collection}" if hit.collection else ""
    return Text.assemble(
        (f"{number:3}. ", "dim"), (one_line(hit.key), "bold cyan"), (f"{score}  v{hit.version}{group}{place}", "dim")
    )


def _group(collapsed: "Collapsed") -> str:
    name = "without a value" if collapsed.value is None else one_line(str(collapsed.value).encode())
    return f"{name}: {collapsed.count:,}{'' if collapsed.is_exact else ' or more'}"


def _fragments(hit: "Hit[bytes]") -> "list[Text]":
    from rich.text import Text

    lines = []
    for mark in hit.highlights:
        # Line breaks become blanks one by one, so that the spans keep their places.
        text = Text("".join(char if char.isprintable() else " " for char in mark.fragment))
        for start, end in mark.spans:
            text.stylize("bold yellow", start, end)
        lines.append(Text.assemble("     ", (f"{mark.field}: ", "dim"), text))
    if not lines and hit.document is not None:
        preview = one_line(json.dumps(hit.document, ensure_ascii=False).encode())
        cut = preview if len(preview) <= _PREVIEW_MAX_CHARS else preview[:_PREVIEW_MAX_CHARS] + "…"
        lines.append(Text("     " + cut))
    return lines


def _as_json(page: "SearchPage[bytes]") -> dict[str, Any]:
    coverage = page.coverage
    return {
        "hits": [
            {
                **json_bytes("key", hit.key),
                "score": hit.score,
                "version": hit.version,
                "shard": hit.shard,
                **({"collection": hit.collection} if hit.collection else {}),
                "document": hit.document,
                "highlights": [asdict(mark) for mark in hit.highlights],
                **({"explanation": asdict(hit.explanation)} if hit.explanation else {}),
                "sort_values": [one_line(each) if isinstance(each, bytes) else each for each in hit.sort_values],
                "collapsed": None if hit.collapsed is None else asdict(hit.collapsed),
            }
            for hit in page.hits
        ],
        "total": page.total,
        "is_total_exact": page.is_total_exact,
        "complete": coverage.complete,
        "coverage": {
            "documents_considered": coverage.documents_considered,
            "documents_total": coverage.documents_total,
            "fraction": coverage.fraction,
            "legs": coverage.legs,
            "legs_ok": coverage.legs_ok,
            "failed": [
                {
                    "shard": failed.shard,
                    "reason": failed.error.reason,
                    "message": failed.error.message,
                    "replicas_tried": failed.error.details.replicas_tried,
                }
                for failed in coverage.failed
            ],
        },
        "facets": {
            name: {"values": {value.value: value.count for value in facet.values}, "error_bound": facet.error_bound}
            for name, facet in page.facets.items()
        },
        "aggregations": aggregations_json(page.aggregations),
        "unseen_age_ms": page.unseen_age_ms,
        "statistics": {
            "kind": page.statistics.kind or None,
            "age_ms": page.statistics.age_ms,
            "extra_round_trips": page.statistics.extra_round_trips,
            "bounded_shards": page.statistics.bounded_shards,
        },
        "next": token_text(page.next) or None,
        "timing": timing_json(timing) if (timing := page.timing or (page.profile and page.profile.timing)) else None,
        **({"profile": profile_json(page.profile)} if page.profile else {}),
    }
