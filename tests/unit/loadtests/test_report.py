import html.parser
import json

import pytest

pytest.importorskip("matplotlib", reason="drawn with the load extra: make amplification installs it")
pytest.importorskip("psutil", reason="measured with the load extra: make amplification installs it")

from fakes.load_runs import made_run

from benchmarks import drawing
from loadtests import charts, report, scenarios
from loadtests.findings import Tables
from loadtests.results import RunResult

VOID = {"meta", "br", "path", "use", "image", "line", "rect", "circle"}


class Page(html.parser.HTMLParser):
    """Which addresses a page names, its text, and that its tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.text, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def run():
    return made_run(scenarios.quick()[:1], seconds=10, rate=250)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("loadtests.statistics.RESAMPLES", 40)


def test_the_page_needs_nothing_else_and_is_whole(run, tmp_path):
    found = report.write(run, tmp_path / "report")
    page = Page((tmp_path / "report.html").read_text())
    assert page.open == []
    assert all(address.startswith("#") for address in page.addresses)
    text = " ".join(page.text)
    assert "2 % pauses" in text
    assert "n 1," in text
    assert {finding.name for finding in found} <= {" ".join(each.split()) for each in page.text}
    record = json.loads((tmp_path / "report.json").read_text())
    assert len(record["figures"]) == len(found)
    assert RunResult.read(tmp_path / "report.json").as_record() == run.as_record()


def test_the_same_run_gives_the_same_page(run):
    pages = [report.page(run, report.findings(run, Tables()), tables) for tables in (Tables(), Tables())]
    assert pages[0] == pages[1]


def test_what_spoils_a_figure_is_told(run):
    assert report.warnings(run) == []
    cell = run.experiments[0].cells[0]
    before = cell.usages, cell.tally.skipped
    cell.usages = [
        type(usage)(**{**usage.as_record(), "others": 0.5, "client_core": 0.9, "leaves": 0.6}) for usage in before[0]
    ]
    cell.tally.skipped = 3
    try:
        told = report.warnings(run)
    finally:
        cell.usages, cell.tally.skipped = before
    assert len(told) == 4
    name = f"{run.experiments[0].name}, healthy/none"
    for part in (
        "3 requests were not sent",
        "took 84% of the processors",
        "took 50% of the processors",
        "took 90% of its core",
    ):
        assert [text for text in told if part in text and name in text and "1 of 6 cells" in text], part


def test_charts_follow_the_page_s_colours(run):
    svg = charts.latency_by_percentile(run.experiments[0], Tables())
    assert svg.startswith("<svg")
    assert f"var(--ink, {drawing.INK})" in svg
    assert svg.replace(f"var(--ink, {drawing.INK})", "").count(drawing.INK) == 0
    assert charts.COLOURS["none"] in svg
    assert charts.COLOURS["all"] in svg


def test_too_few_samples_still_make_a_page():
    few = made_run(scenarios.quick()[:1], seconds=1, rate=5)
    assert "too few" in report.page(few, report.findings(few, Tables()), Tables())


def test_a_chart_stands_alone_with_its_colours(run):
    svg = drawing.standalone(charts.latency_by_percentile(run.experiments[0], Tables()))
    assert "var(" not in svg
    assert drawing.INK in svg
    assert svg.count('fill="#ffffff"') == 1
