"""`kvshard whatif`: predicts the tail for a fan-out, replicas and a budget from a leaf distribution. Needs no cluster.

May live here: the flags of the verb and what is printed. The model is `kvshard.tail.whatif`, the tables and pictures are
`whatif_report.py`.
"""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from kvshard.cli.console import EXIT_OK, print_json, rich_console
from kvshard.errors import ErrorDetails, InvalidArgument

if TYPE_CHECKING:
    from kvshard.cli.whatif_report import Pair
    from kvshard.tail.whatif.latency import Latency
    from kvshard.tail.whatif.prediction import Prediction
    from kvshard.tail.whatif.scenario import Arm, Scenario, Setting

DEFAULT_DISTRIBUTION = "p50=1ms,p95=5ms,p99=10ms"
"""The published leaf row of "The Tail at Scale"."""

DEFAULT_LEGS = 100_000
REQUESTS_LEAST, REQUESTS_MOST = 300, 20_000
"""Without --requests: as many as make so many legs, about two seconds a line of the table, within these bounds."""

FILE_MAX_BYTES = 64 * 1024 * 1024
"""A histogram takes some kilobytes, a million measured legs twenty megabytes."""

_SHARE = re.compile(r"(\d+(?:\.\d+)?)(%?)")


def register(app: App) -> None:
    """Add the verb to the command line."""
    app.command(whatif)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """The cluster and what it is asked.

    Parameters
    ----------
    fan_out
        Legs of a request, up to 1024; several for two lines each. Without it 1, 10 and 100.
    replicas
        Replicas of each shard.
    leaves
        Leaves of the cluster. Without it one for each leg, and at least one for each replica.
    rate
        Requests per second.
    """

    fan_out: Annotated[list[int] | None, Parameter(negative="", consume_multiple=True)] = None
    replicas: int = 3
    leaves: int | None = None
    rate: float = 100.0


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class DefenceOptions:
    """Which defences the second line has.

    Parameters
    ----------
    hedge
        Policy, as of a request: "auto", "off", "10ms", "p99", "min(p99,50ms)".
    replica_choice
        "adaptive", "random" or "primary".
    budget
        Extra requests at most, as a part of the first attempts: "5%", or "auto".
    attempts
        Attempts of a leg at most, the first one included.
    """

    hedge: str = "auto"
    replica_choice: str = "adaptive"
    budget: str = "auto"
    attempts: int = 3


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class LeafOptions:
    """How long a leaf takes, and what is wrong with it.

    Parameters
    ----------
    distribution
        Latency of a leg by quantiles, such as "p50=5ms,p99=10ms,p99.9=80ms". Without it that of "The Tail at Scale".
    source
        JSON file with a measured one, in seconds: the record of a histogram, or a list of requests, each a list of its legs.
    pauses
        Part of the time that each leaf stands still, whatever it is asked meanwhile: "2%".
    pause_length
        How long at a time.
    slow
        Part of the attempts that take slow-factor times as long: "5%".
    slow_factor
        By how much.
    """

    distribution: str | None = None
    source: Annotated[Path | None, Parameter(name="--from")] = None
    pauses: str = "0%"
    pause_length: str = "50ms"
    slow: str = "0%"
    slow_factor: float = 10.0


_CLUSTER, _DEFENCES, _LEAF = ClusterOptions(), DefenceOptions(), LeafOptions()


def whatif(
    *,
    cluster: ClusterOptions = _CLUSTER,
    leaf: LeafOptions = _LEAF,
    defences: DefenceOptions = _DEFENCES,
    requests: int | None = None,
    seed: int = 1,
    tail_at_scale: Annotated[bool, Parameter(negative="")] = False,
    svg_file: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Predict the tail of gathered answers without and with defences, by a model that runs the router's own code.

    Parameters
    ----------
    requests
        Requests of a run. Without it enough for some 100,000 legs.
    seed
        Of all that is random; the same seed gives the same figures.
    tail_at_scale
        Compare with what Dean and Barroso published in "The Tail at Scale" instead.
    svg_file
        Write the picture to this file too.
    as_json
        Print JSON, for programs.
    """
    if tail_at_scale:
        return _tail_at_scale(seed, as_json)
    from kvshard.tail.whatif.scenario import Setting

    latency, origin = _latency(leaf)
    scenario = _scenario(leaf)
    setting = Setting(leaves=0, replicas=cluster.replicas, rate=cluster.rate)
    settings = [
        replace(
            setting, leaves=max(legs, cluster.replicas) if cluster.leaves is None else cluster.leaves, shards=legs, fan_out=legs
        )
        for legs in dict.fromkeys(cluster.fan_out or (1, 10, 100))
    ]
    pairs = _run(latency, scenario, _arm(defences), settings, requests, seed)
    return _show(pairs, f"{origin}; {scenario.name}; {cluster.replicas} replicas", svg_file, as_json)


def _arm(defences: DefenceOptions) -> "Arm":
    from kvshard.tail.hedging import parse_policy, parse_replica_choice
    from kvshard.tail.whatif.scenario import Arm

    budget = None if defences.budget.strip().lower() == "auto" else parse_share(defences.budget, "budget")
    policy, choice = parse_policy(defences.hedge), parse_replica_choice(defences.replica_choice)
    return Arm(f"hedge {defences.hedge}, {defences.replica_choice}", policy, choice, budget, defences.attempts)


def _scenario(leaf: LeafOptions) -> "Scenario":
    """What is wrong; its name says it in words."""
    from kvshard.tail.whatif.latency import parse_length
    from kvshard.tail.whatif.scenario import Pause, Scenario, Slow

    faults: list[Pause | Slow] = []
    names = []
    length = parse_length(leaf.pause_length, "pause_length")
    if share := parse_share(leaf.pauses, "pauses"):
        faults.append(Pause(share, length))
        names.append(f"{share:.2%} pauses of {leaf.pause_length}".replace(".00%", "%"))
    if share := parse_share(leaf.slow, "slow"):
        faults.append(Slow(leaf.slow_factor, share))
        names.append(f"{share:.2%} of the attempts x{leaf.slow_factor:g}".replace(".00%", "%"))
    return Scenario(", ".join(names) or "nothing wrong", tuple(faults))


def parse_share(text: str, field: str) -> float:
    """The part of a whole in a text such as "2%" or "0.02". Raises InvalidArgument with that field."""
    found = _SHARE.fullmatch("".join(text.split()))
    share = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not 0 <= share <= 1:
        raise InvalidArgument(
            f'not a part of a whole: {text[:100]!r}; expected one such as "2%" or "0.02"', ErrorDetails(field=field)
        )
    return share


def read_latency(path: Path) -> "Latency":
    """A measured distribution. Raises InvalidArgument for a file that holds none, and OSError."""
    from kvshard.tail.histogram import LogHistogram
    from kvshard.tail.whatif.latency import LegVectors, MeasuredLatency

    if path.stat().st_size > FILE_MAX_BYTES:
        raise _no_distribution(path, f"it has more than {FILE_MAX_BYTES // 1024 // 1024} MB")
    try:
        record = json.loads(path.read_bytes())
        if isinstance(record, list):
            return LegVectors([[float(seconds) for seconds in legs] for legs in record])
        return MeasuredLatency(LogHistogram.from_record(record))
    except (KeyError, TypeError, ValueError) as error:
        raise _no_distribution(path, f"{type(error).__name__}: {error}") from None


def _no_distribution(path: Path, why: str) -> InvalidArgument:
    message = f"{path} holds neither a histogram's record nor a list of requests with the seconds of their legs: {why}"
    return InvalidArgument(message, ErrorDetails(field="from"))


def _latency(leaf: LeafOptions) -> "tuple[Latency, str]":
    """The latency, and where it comes from, in words."""
    from kvshard.tail.whatif.latency import parse_latency

    if leaf.source is None:
        text = leaf.distribution or DEFAULT_DISTRIBUTION
        return parse_latency(text), f"leaf {text}"
    if leaf.distribution is not None:
        raise InvalidArgument("say either --distribution or --from", ErrorDetails(field="from"))
    latency = read_latency(leaf.source)
    return latency, f"{latency.samples or 0:,} measured legs"


def _run(
    latency: "Latency", scenario: "Scenario", arm: "Arm", settings: "list[Setting]", requests: int | None, seed: int
) -> "list[Pair]":
    from kvshard.cli.whatif_report import Pair
    from kvshard.tail.whatif.prediction import predict
    from kvshard.tail.whatif.scenario import Arm, check

    for setting in settings:
        check(scenario, arm, setting)

    def one(setting: "Setting", defences: "Arm") -> "Prediction":
        usual = min(REQUESTS_MOST, max(REQUESTS_LEAST, DEFAULT_LEGS // setting.fan_out))
        return predict(latency, scenario, defences, setting, requests if requests is not None else usual, seed)

    def both(setting: "Setting") -> Pair:
        return Pair(one(setting, Arm.none()), one(setting, arm))

    return _with_progress([(f"fan-out {setting.fan_out:,}", partial(both, setting)) for setting in settings])


def _with_progress(work: "list[tuple[str, Callable[[], Pair]]]") -> "list[Pair]":
    """Do it piece by piece, and say on a terminal which one is under way."""
    if not sys.stderr.isatty():
        return [do() for _, do in work]
    from rich.console import Console

    found = []
    with Console(stderr=True).status("") as status:
        for name, do in work:
            status.update(f"simulating {name}")
            found.append(do())
    return found


def _show(pairs: "list[Pair]", title: str, svg_file: Path | None, as_json: bool) -> int:
    from rich.table import Table

    from kvshard.cli import whatif_report as report

    if svg_file is not None:
        svg_file.write_text(report.svg(pairs, title), encoding="utf-8")
    if as_json:
        runs = [each.as_record() for pair in pairs for each in (pair.without, pair.with_defences)]
        print_json({"title": title, "runs": runs, "svg_file": svg_file})
        return EXIT_OK
    console = rich_console()
    table = Table(title=f"{title}; milliseconds", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("fan-out", "defences", "p50", "p90", "p99", "p99.9", "amplification", "extra requests", "failed", "n"):
        table.add_column(column, justify="left" if column == "defences" else "right", no_wrap=True)
    for row in report.table_rows(pairs):
        table.add_row(*row)
    console.print(table)
    console.print()
    for line in [*report.picture(pairs[-1]), "", report.theory_text(pairs), *report.notes(pairs)]:
        console.print(line, markup=False)
    if svg_file is not None:
        console.print(f"The picture is in {svg_file}.", markup=False)
    return EXIT_OK


def _tail_at_scale(seed: int, as_json: bool) -> int:
    from rich.table import Table

    from kvshard.cli import whatif_report as report
    from kvshard.tail.whatif.tail_at_scale import bigtable, fan_out_arithmetic, table_1

    parts = [
        ("Fan-out, 1 - (1 - p)^n", fan_out_arithmetic(seed)),
        ("Table 1, a large fan-out tree: from its first row, 1 / 5 / 10 ms", table_1()),
        ("BigTable, 1,000 keys on 100 servers, asked again after 10 ms", bigtable(seed=seed)),
    ]
    if as_json:
        found = {name: [each.as_record() for each in comparisons] for name, comparisons in parts}
        print_json({**found, "note": report.contradiction_text()})
        return EXIT_OK
    console = rich_console()
    console.print('"The Tail at Scale", J. Dean and L. A. Barroso, CACM 56(2), 2013', style="bold")
    for name, comparisons in parts:
        table = Table(title=name, title_justify="left", box=None, pad_edge=False)
        for column in ("figure", "published", "ours", "off by", "how"):
            table.add_column(column, justify="left" if column in ("figure", "how") else "right", no_wrap=True)
        for row in report.comparison_rows(comparisons):
            table.add_row(*row)
        console.print(table)
        console.print()
    console.print(report.contradiction_text(), markup=False)
    return EXIT_OK
