import json

import pytest

from benchmarks.figures import Figure, percentile, show


@pytest.mark.parametrize(
    ("value", "is_upper_bound", "is_met", "is_goal_met"),
    [
        (0.9, True, True, True),
        (1.2, True, True, False),
        (1.4, True, False, False),
        (16.0, False, True, True),
        (1.2, False, False, False),
        (None, True, None, None),
    ],
)
def test_a_figure_knows_its_bound_and_its_goal(value, is_upper_bound, is_met, is_goal_met):
    goal = 1.0 if is_upper_bound else 15.0
    figure = Figure("lone get", value, "x", 10, 1.3, is_upper_bound, goal=goal)
    assert figure.is_met is is_met
    assert figure.is_goal_met is is_goal_met


def test_what_could_not_be_measured_is_shown_and_breaks_nothing(tmp_path, capsys):
    target = tmp_path / "results" / "figures.json"
    figures = [
        Figure("gets / redis", None, "x", 0, 6.0, False, "redis-server is not there", 15.0),
        Figure("memory", 1.0, "MB", 1, 2.0, goal=1.5),
    ]
    assert show(figures, target)
    printed = capsys.readouterr().out
    assert "missing" in printed
    assert "redis-server is not there" in printed
    assert [(each["value"], each["is_met"], each["is_goal_met"]) for each in json.loads(target.read_text())] == [
        (None, None, None),
        (1.0, True, True),
    ]


def test_a_bound_that_is_not_kept_is_told(tmp_path, capsys):
    assert not show([Figure("memory", 3.0, "MB", 1, 2.0)], tmp_path / "figures.json")
    assert " no " in capsys.readouterr().out


def test_percentile_is_a_value_that_occurred():
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert percentile([5.0], 0.99) == 5.0
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 0.5)
