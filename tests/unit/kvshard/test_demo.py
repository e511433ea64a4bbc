"""How the demo shows what it found. The whole demo runs in tests/process/test_demo_run.py."""

import io

from rich.console import Console

from kvshard.cli.demo_display import fragment, keep_hint, latency_table, tail_table
from kvshard.cli.demo_report import FanOutSamples
from kvshard.cli.demo_steps import EXAMPLES
from kvshard.cli.demo_tail_report import CONDITIONS, WITH, WITHOUT, Cell, TailSamples
from kvshard.cli.pydocs import SCHEMA
from kvshard.client.results import Highlight, Hit


def hit(*highlights, doc="One [loop]\nper thread."):
    return Hit("asyncio:", 1.5, {"doc": doc}, 1, 0, highlights)


def test_matches_are_marked_where_they_are():
    text = fragment(hit(Highlight("doc", "an event\n    loop runs", ((3, 8), (13, 17)))))
    assert text.plain == "an event loop runs"
    marked = [text.plain[span.start : span.end] for span in text.spans if span.style == "bold yellow"]
    assert marked == ["event", "loop"]


def test_without_a_match_in_the_text_its_beginning_is_shown():
    assert fragment(hit()).plain == "One [loop] per thread."
    assert len(fragment(hit(doc="word " * 100)).plain) == 150


def test_table_has_a_row_a_fan_out_and_the_single_leg_first():
    samples = FanOutSamples()
    for number in range(1, 101):
        samples.add(1, number * 110, [number * 100])
        samples.add(8, number * 400, [number * 100] * 8)
    console = Console(file=io.StringIO(), width=120)
    console.print(latency_table(samples))
    rows = [line.split() for line in console.file.getvalue().splitlines() if "│" in line]
    cells = [[cell for cell in row if cell != "│"] for row in rows]
    assert cells == [
        ["one", "leg", "alone", "100", "5.00", "9.00", "9.90", "1.0", "x", "9.90"],
        ["1", "100", "5.50", "9.90", "10.89", "1.1", "x", "9.90"],
        ["8", "100", "20.00", "36.00", "39.60", "4.0", "x", "9.90"],
    ]


def test_tail_table_names_a_condition_once():
    samples = TailSamples()
    for arm, extra in ((WITHOUT, 0), (WITH, 4)):
        times = samples.of("search", Cell(CONDITIONS[1], arm))
        times.took_us += [number * 1000 for number in range(1, 101)]
        times.legs, times.extra = 800, extra
    console = Console(file=io.StringIO(), width=120)
    console.print(tail_table(samples.rows("search"), "a search"))
    shown = console.file.getvalue()
    assert "a search, milliseconds" in shown
    rows = [line.replace("│", " ").split() for line in shown.splitlines() if "│" in line]
    assert rows == [
        ["pauses", "without", "100", "50.00", "90.00", "99.00", "100.00", "0.00", "%"],
        ["with", "100", "50.00", "90.00", "99.00", "100.00", "0.50", "%"],
    ]


def test_examples_use_fields_of_the_schema():
    for example in EXAMPLES:
        assert all(SCHEMA[name] == "keyword" for name in example.facets)
        assert all(each.partition(":")[0] in SCHEMA for each in example.filters)
        assert not example.sort or example.sort.lstrip("-") in SCHEMA


def test_hint_names_the_address():
    assert keep_hint("127.0.0.1:4711").count("127.0.0.1:4711") == 6
