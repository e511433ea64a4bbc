"""The report: one HTML page that needs nothing else, and the same figures as JSON."""

import html
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from string import Template

from loadtests import charts
from loadtests.agreement import is_known, off_by
from loadtests.calibration import TARGET_PART
from loadtests.findings import Finding, Tables, findings
from loadtests.results import CellResult, ExperimentResult, RunResult
from loadtests.scenarios import WORKLOADS
from loadtests.statistics import Estimate
from loadtests.usage import OTHERS_MAX

_Cells = Sequence[tuple[ExperimentResult, CellResult]]

PAGE = pathlib.Path(__file__).with_name("report_page.html")
FRACTIONS = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"))

CPU_MAX = 0.55
"""Of the machine, by cluster and client, above which a figure speaks of a full machine."""

CLIENT_CORE_MAX = 0.6
"""Of its core, by the load client: above it, requests queue in the client."""

LAG_P99_MAX_S = 0.002
"""Between a planned start and the sending."""


def write(run: RunResult, target: pathlib.Path) -> list[Finding]:
    """Write target.html and target.json; returns the figures."""
    tables = Tables()
    found = findings(run, tables)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".html").write_text(page(run, found, tables))
    record = {"figures": [finding.as_record() for finding in found], "warnings": warnings(run), "run": run.as_record()}
    target.with_suffix(".json").write_text(json.dumps(record, separators=(",", ":")) + "\n")
    return found


def page(run: RunResult, found: Sequence[Finding], tables: Tables) -> str:
    """The page."""
    setting = [run.made_at.replace("T", " ").replace("+00:00", " UTC"), *run.setting.values()]
    setting += [f"seed {run.seed}", f"{run.seconds / 60:.1f} minutes"]
    return Template(PAGE.read_text()).substitute(
        title="kvshard: what hedging does for the tail",
        heading="What hedging does for the tail",
        setting=" &middot; ".join(map(html.escape, setting)),
        warnings=_warnings(warnings(run)),
        heads="".join(_heads(run, tables)),
        experiments="".join(_experiment(experiment, found, tables) for experiment in run.experiments),
        overall=_overall(run, found),
        predictions=_predictions(run, tables),
        health=_health(run),
        target=f"{TARGET_PART:.0%}",
    )


def warnings(run: RunResult) -> list[str]:
    """What a reader must know before believing a figure, the worst cell of each kind of trouble named."""
    cells = [(experiment, cell) for experiment in run.experiments for cell in experiment.cells]
    with_usage = [(experiment, cell) for experiment, cell in cells if cell.usages]
    roomy = [(experiment, cell) for experiment, cell in with_usage if cell.condition != "overload"]
    checks: list[tuple[str, float, _Cells, Callable[[CellResult], float]]] = [
        ("the load client sent late, p99 {:.2g} s", LAG_P99_MAX_S, cells, lambda cell: cell.tally.lag.quantile(0.99) or 0.0),
        ("{:,.0f} requests were not sent, since too many were under way", 0.0, cells, lambda cell: cell.tally.skipped),
        ("cluster and client took {:.0%} of the processors", CPU_MAX, roomy, lambda cell: cell.usage.own),
        ("other processes took {:.0%} of the processors", OTHERS_MAX, with_usage, lambda cell: cell.usage.others),
        ("the load client took {:.0%} of its core", CLIENT_CORE_MAX, with_usage, lambda cell: cell.usage.client_core),
    ]
    found = []
    for text, limit, concerned, value in checks:
        beyond = [(value(cell), f"{experiment.name}, {cell.name}") for experiment, cell in concerned if value(cell) > limit]
        if beyond:
            worst, where = max(beyond)
            found.append(f"{text.format(worst)} ({where}); beyond {limit:g} in {len(beyond)} of {len(concerned)} cells")
    return found


def _warnings(texts: Sequence[str]) -> str:
    if not texts:
        return ""
    shown = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return f'<div class="warnings"><strong>Read these figures with care</strong><ul>{shown}</ul></div>'


def milliseconds(seconds: float) -> str:
    """A latency as it is read: three digits."""
    value = seconds * 1e3
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _heads(run: RunResult, tables: Tables) -> Iterable[str]:
    for experiment in run.experiments:
        for condition in charts.conditions_of(experiment):
            none, defended = experiment.cell(condition, "none"), experiment.cell(condition, "all")
            if none is None or defended is None or condition in ("healthy", "overload"):
                continue
            off, on = (tables.quantile(cell, experiment.widest, 0.99) for cell in (none, defended))
            if off is None or on is None:
                continue
            values = f'<span class="off">{milliseconds(off.value)}</span> <span class="arrow">&rarr;</span> '
            values += f'<span class="on">{milliseconds(on.value)} ms</span>'
            what = html.escape(f"{defended.condition_title}, {experiment.workload}: p99")
            extra = f"{100 * defended.extra_part:.2g} % extra requests &middot; n {on.samples:,}"
            yield f'<div class="head"><div class="what">{what}</div><div class="values">{values}</div>'
            yield f'<div class="n">{extra}</div></div>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{text}</th>" for text in heads)
    body = "".join(
        "<tr>" + "".join(cell if cell[:3] == "<td" else f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _figures(found: Sequence[Finding]) -> str:
    def row(finding: Finding) -> list[str]:
        sign = "&le;" if finding.is_upper_bound else "&ge;"
        bounds = ["" if bound is None else f"{sign} {bound:g}" for bound in (finding.good, finding.goal)]
        grade = f'<span class="grade {finding.grade}">{finding.grade}</span>' if finding.grade else ""
        value = f"{_number(finding.estimate.value)}&thinsp;{finding.unit}"
        name = html.escape(finding.name)
        note = f'<td class="note">{html.escape(finding.note)}</td>'
        return [name, value, _interval(finding.estimate), *bounds, grade, f"{finding.estimate.samples:,}", note]

    return _table(("figure", "measured", "95 %", "good", "goal", "", "n", ""), map(row, found))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _interval(estimate: Estimate) -> str:
    if estimate.low == estimate.high:
        return ""
    return f'<span class="interval">{_number(estimate.low)} &ndash; {_number(estimate.high)}</span>'


def _overall(run: RunResult, found: Sequence[Finding]) -> str:
    """The figures that belong to no single experiment."""
    names = {experiment.name for experiment in run.experiments}
    rest = [finding for finding in found if finding.experiment not in names]
    return f'<h2>Over all experiments</h2><div class="wide">{_figures(rest)}</div>' if rest else ""


def _experiment(experiment: ExperimentResult, found: Sequence[Finding], tables: Tables) -> str:
    parts = [f"<h2>{html.escape(experiment.title)}</h2>"]
    asked = WORKLOADS.get(experiment.workload, "one key, asked at a leaf directly")
    parts.append(
        f'<p class="quiet">{html.escape(asked)}; {experiment.rate:,.0f} requests a second, deadline '
        f"{milliseconds(experiment.deadline_s)} ms; a lone leg took {milliseconds(experiment.leg_p50_s)} ms at the median</p>"
    )
    parts += [f"<p>{html.escape(note)}</p>" for note in experiment.notes]
    caption = (
        "Latency by percentile: the further right, the rarer. Shaded: 95 % interval. A curve ends at its last ten samples."
    )
    parts.append(_figure(charts.latency_by_percentile(experiment, tables), caption))
    if len(experiment.fan_outs) > 1:
        caption = (
            "Left: what asking more shards does to p99. Right: how often a request takes more than twice the healthy "
            "cluster's p99, or half a pause. Dotted: what independent legs would give, from single undefended legs."
        )
        parts.append(_figure(charts.amplification_by_fan_out(experiment, tables), caption))
    if any(cell.extra and cell.hedges for cell in experiment.cells):
        parts.append(_figure(charts.extra_over_time(experiment), "Extra load over time: hedges as part of first attempts."))
    if own := [finding for finding in found if finding.experiment == experiment.name]:
        parts.append(f'<div class="wide">{_figures(own)}</div>')
    parts.append(f'<details><summary>Every cell</summary><div class="wide">{_cells(experiment, tables)}</div></details>')
    return "".join(parts)


def _figure(svg: str, caption: str, kind: str = "") -> str:
    return f'<figure class="{kind}">{svg}<figcaption>{html.escape(caption)}</figcaption></figure>'


def _cells(experiment: ExperimentResult, tables: Tables) -> str:
    kinds = list(dict.fromkeys([experiment.widest, "1"] if "1" in experiment.cells[0].tally.slices else [experiment.widest]))

    def row(cell: CellResult, kind: str) -> list[str]:
        values = [_percentile(tables.quantile(cell, kind, fraction)) for fraction, _ in FRACTIONS]
        histogram = cell.latency(kind)
        lost = cell.tally.failed.total() + cell.tally.skipped
        return [
            html.escape(f"{cell.condition_title}: {cell.arm_title}"), kind, *values,
            f"{100 * cell.extra_part:.2f} %" if cell.legs else "", f"{lost:,}", f"{histogram.count:,}",
        ]  # fmt: skip

    rows = [row(cell, kind) for kind in kinds for cell in experiment.cells if cell.latency(kind).count]
    heads = ["cell", "shards", *(f"{name}, ms" for _, name in FRACTIONS), "extra", "failed", "n"]
    return _table(heads, rows)


def _percentile(estimate: Estimate | None) -> str:
    if estimate is None:
        return '<span class="interval">too few</span>'
    return f"{milliseconds(estimate.value)}{_between(estimate)}"


def _between(estimate: Estimate) -> str:
    return f'<br><span class="interval">{milliseconds(estimate.low)} &ndash; {milliseconds(estimate.high)}</span>'


def _predictions(run: RunResult, tables: Tables) -> str:
    if not any(cell.prediction for experiment in run.experiments for cell in experiment.cells):
        return ""
    rows = []
    for experiment in run.experiments:
        for cell in experiment.cells:
            if cell.prediction is not None:
                rows.append(_prediction_row(experiment, cell, tables))
    heads = ["cell", *(f"{name}, ms: predicted / measured" for _, name in FRACTIONS if name != "p90"), "extra, %", "n"]
    caption = "Predicted over measured, widest requests. Colours as above; the band is a quarter to either side."
    return (
        "<h2>Prediction and measurement</h2><p>The what-if model runs the router's own policy code on virtual time. It knows "
        "the latency of requests in the healthy cluster and the faults, of pauses when they were; nothing of what was measured "
        "under them. A cell whose own interval is wider than a quarter to either side cannot tell whether a prediction inside "
        "of it is right.</p>"
        + _figure(charts.prediction_against_measurement(run.experiments), caption, "narrow")
        + f'<div class="wide">{_table(heads, rows)}</div>'
    )


def _prediction_row(experiment: ExperimentResult, cell: CellResult, tables: Tables) -> list[str]:
    assert cell.prediction is not None, "only of a cell that was predicted"
    values = []
    for fraction, name in FRACTIONS:
        if name != "p90":
            values.append(_predicted(cell.prediction[name], tables.quantile(cell, experiment.widest, fraction)))
    extra = f"{100 * cell.prediction['extra']:.2g} / {100 * cell.extra_part:.2g}"
    return [
        html.escape(f"{experiment.workload}, {cell.condition_title}: {cell.arm_title}"),
        *values,
        extra,
        f"{cell.latency(experiment.widest).count:,}",
    ]


def _predicted(predicted: float, measured: Estimate | None) -> str:
    if measured is None:
        return f"{milliseconds(predicted)} / too few"
    off = off_by(predicted, measured)
    said = "cannot tell" if off is None else f"{predicted / measured.value - 1:+.0%}"
    if off is not None and not is_known(measured):
        said += f", {off:.0%} outside"
    return f"{milliseconds(predicted)} / {milliseconds(measured.value)} ({said}){_between(measured)}"


def _health(run: RunResult) -> str:
    def row(experiment: ExperimentResult, cell: CellResult) -> list[str]:
        lag = [milliseconds(cell.tally.lag.quantile(fraction) or 0.0) for fraction in (0.5, 0.99, 0.999)]
        usage = cell.usage
        cpu = [f"{part:.0%}" for part in (usage.client_core, usage.own, usage.leaves, usage.router, usage.others)]
        return [
            html.escape(f"{experiment.name}, {cell.name}"),
            *lag,
            *cpu,
            f"{cell.tally.skipped:,}",
            f"{cell.tally.lag.count:,}",
        ]

    rows = [row(experiment, cell) for experiment in run.experiments for cell in experiment.cells if cell.usages]
    heads = [
        "cell", "send lag p50, ms", "p99, ms", "p99.9, ms", "client, of its core", "cluster and client", "leaves", "router",
        "others", "not sent", "n",
    ]  # fmt: skip
    return _table(heads, rows)
