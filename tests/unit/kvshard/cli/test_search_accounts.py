import io

from rich.console import Console

from kvshard.cli.search_accounts import DEPTH_SHOWN_MAX, explanation_lines, profile_json, show_profile
from kvshard.client.results import Explanation, LegProfile, LegTiming, Profile, ProfiledTerm, Timing

PROFILE = Profile(
    (
        LegProfile(0, "leaf-1", (ProfiledTerm("title", "tail", 3),), {"parse": 10, "find": 1_500}, 7, 2, 40, 3, 3),
        LegProfile(1, "leaf-2", (ProfiledTerm("title", "tail", 4),), {"parse": 20, "explain": 250}, 9, 1, 50, 4, 4),
    ),
    Timing((LegTiming(0, "leaf-1", 1, 2_000, 0, 1_800),), 2_500, 100, 0),
)


def test_an_explanation_is_a_tree() -> None:
    tree = Explanation(3.5, "sum of", (Explanation(1.5, "a\n"), Explanation(2.0, "2 times", (Explanation(1.0, "b"),))))
    assert explanation_lines(tree, "") == ["3.5  sum of", "  1.5  a\\n", "  2  2 times", "    1  b"]


def test_a_deep_explanation_is_cut() -> None:
    tree = Explanation(0.0, "leaf")
    for _ in range(100):
        tree = Explanation(0.0, "sum of", (tree,))
    assert len(explanation_lines(tree, "")) == DEPTH_SHOWN_MAX + 1


def test_a_profile_is_a_table_with_the_terms_of_all_legs() -> None:
    out = io.StringIO()
    show_profile(Console(file=out, width=200), PROFILE)
    text = out.getvalue()
    rows = [line.split() for line in text.splitlines()]
    assert ["0", "leaf-1", "0.01", "1.50", "2", "40", "3", "3", "7"] in rows
    assert ["1", "leaf-2", "0.02", "0.25", "1", "50", "4", "4", "9"] in rows
    assert "title: tail in 7 documents" in text
    assert "2.50 ms in the router" in text
    assert profile_json(PROFILE)["legs"][1]["phases_us"] == {"parse": 20, "explain": 250}  # type: ignore[index]
