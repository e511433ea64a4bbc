"""What the demo says about reads beside slow leaves: rows, pictures, words."""

import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest

from kvshard.cli.demo_tail_report import (
    ARMS,
    CONDITIONS,
    WITH,
    WITHOUT,
    Cell,
    TailSamples,
    blocks,
    tail_explanation,
    tail_legend,
    tail_picture,
    tail_svg,
    titles,
)

SVG = "{http://www.w3.org/2000/svg}"
PAUSES = CONDITIONS[1]


def filled(reads=200):
    """A search takes 1 to `reads` times 0.1 ms, ten times that without defences beside pauses; a batch a tenth of it."""
    samples = TailSamples()
    for cell in blocks(0):
        factor = 10 if cell == Cell(PAUSES, WITHOUT) else 1
        for kind, unit_us in (("search", 100), ("batch", 10)):
            times = samples.of(kind, cell)
            times.took_us += [number * unit_us * factor for number in range(1, reads + 1)]
            times.legs += 8 * reads
            times.extra += 16 if cell == Cell(PAUSES, WITH) else 0
    return samples


def test_every_cell_has_every_place_of_the_run_in_two_turns():
    cells = blocks(0)
    assert len(set(cells)) == len(cells) == len(CONDITIONS) * len(ARMS)
    places = Counter()
    for turn in range(4):
        for place, cell in enumerate(blocks(turn)):
            places[cell] += place
    assert set(places.values()) == {10}, "the mean place of each is the middle"


def test_rows_are_by_condition_then_arm():
    rows = filled().rows("search")
    assert [(row.cell.condition.name, row.cell.arm.name) for row in rows] == [
        (condition.name, arm.name) for condition in CONDITIONS for arm in (WITHOUT, WITH)
    ]
    without, with_defences = rows[2], rows[3]
    assert (without.times.n, without.times.p99, without.times.slowest) == (200, 198.0, 200.0)
    assert (with_defences.times.p99, with_defences.extra_part) == (19.8, 0.01)
    assert without.extra_part == 0.0


def test_a_cell_without_a_read_is_left_out():
    samples = TailSamples()
    samples.of("search", Cell(PAUSES, WITH))
    assert samples.rows("search") == samples.rows("batch") == []
    assert samples.of("search", Cell(PAUSES, WITH)).extra_part == 0.0
    assert tail_picture(samples.rows("search")) == []
    assert tail_explanation(samples) == ""
    assert ElementTree.fromstring(tail_svg(samples, 8)).tag == f"{SVG}svg"


def test_picture_has_the_arms_below_each_other():
    lines = tail_picture(filled().rows("search"), width=10)
    assert len(lines) == 2 * len(CONDITIONS) * len(ARMS)
    assert lines[4:8] == [
        "       pauses without p50 █████ 100.00 ms",
        "                      p99 ██████████ 198.00 ms",
        "              with    p50 ▌ 10.00 ms",
        "                      p99 █ 19.80 ms",
    ]


def test_explanation_carries_the_numbers_and_their_weakness():
    text = tail_explanation(filled())
    assert "pauses, 198.0 ms without and 19.8 ms with" in text
    assert "The smallest n is 200, so 2 requests lie beyond that p99" in text
    assert "failed" not in text


@pytest.mark.parametrize(("reads", "beyond"), [(99, "no request lies"), (199, "1 request lies"), (1000, "10 requests lie")])
def test_explanation_counts_what_lies_beyond_a_p99(reads, beyond):
    assert f"so {beyond} beyond that p99" in tail_explanation(filled(reads))


def test_failures_are_told():
    samples = filled()
    samples.of("batch", Cell(PAUSES, WITHOUT)).failed = 3
    assert "3 reads failed" in tail_explanation(samples)


def test_legend_says_what_is_done_to_the_leaves():
    assert all(condition.title in tail_legend() for condition in CONDITIONS)


def test_svg_has_a_panel_for_each_kind_of_reads():
    root = ElementTree.fromstring(tail_svg(filled(), 8))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    for title in titles(8).values():
        assert f"{title}, n = 200 each" in texts
    assert [texts.count(text) for text in ("p99 198.00", "p99 1.98", "pauses", "without")] == [1, 5, 1, 3]
    bars = [float(element.get("width")) for element in root.iter(f"{SVG}rect") if element.get("width") != "100%"]
    assert len(bars) == 2 * 3 * len(CONDITIONS) * len(ARMS)
    assert max(bars) == 270.0, "the longest bar of a panel fills it"


def test_svg_says_so_when_the_numbers_of_samples_differ():
    samples = filled()
    samples.of("search", Cell(PAUSES, WITH)).took_us.append(1)
    assert "n = 200 to 201" in tail_svg(samples, 8)
