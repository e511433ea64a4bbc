"""Sorts: how they are written, what is refused, and the order that they define; pages of it in tests/property."""

import pytest

from kvshard.errors import InvalidArgument
from kvshard.sorting import BY_SCORE, SORT_KEYS_MAX, SortKey, check_sort, parse_sort, place_of, sort_text, sorts_of

SCHEMA = {"title": "text", "note": "text(english)", "tag": "keyword", "year": "integer", "ok": "boolean", "on": "date"}


@pytest.mark.parametrize(
    ("text", "keys", "written"),
    [
        ("", BY_SCORE, ""),
        (" ", BY_SCORE, ""),
        ("_score", BY_SCORE, ""),
        ("-_score", BY_SCORE, ""),
        ("year", (SortKey("year"),), "year"),
        ("-year", (SortKey("year", True),), "-year"),
        ("year:desc", (SortKey("year", True),), "-year"),
        ("year:asc:missing_first", (SortKey("year", False, True),), "year:missing_first"),
        (
            "-year, tag:missing_first,_score,-_key",
            (SortKey("year", True), SortKey("tag", False, True), SortKey("_score", True), SortKey("_key", True)),
            "-year,tag:missing_first,_score,-_key",
        ),
        ("-year:missing_last", (SortKey("year", True),), "-year"),
    ],
)
def test_sorts_that_are_well(text: str, keys: tuple[SortKey, ...], written: str) -> None:
    assert parse_sort(text) == keys
    assert sort_text(keys) == written
    assert parse_sort(written) == keys
    check_sort(keys, SCHEMA)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("title", "title is a text field, and a text has no order"),
        ("-note", "note is a text field"),
        ("yaer", "unknown field yaer to sort by; did you mean year?"),
        ("_scor", "did you mean _score?"),
        ("zzz", "the collection's fields are note, ok, on, tag, title, year"),
        ("year,", "'' is no sort key"),
        ("-", "'' is no sort key"),
        ("year desc", "'year desc' is no sort key"),
        ("year:down", "unknown sort option 'down'; known are asc, desc, missing_first, missing_last"),
        ("-year:asc", "says twice"),
        ("year:asc:desc", "says twice"),
        ("year,-year", "year stands twice"),
        ("_key,year", "_key must be the last sort key"),
        ("_score:asc", "_score sorts best first only"),
        ("_key:missing_first", "no document lacks a _key"),
        (",".join(f"f{n}" for n in range(9)), "at most 8 keys, not 9"),
        ("x" * 1025, "at most 1024 characters"),
    ],
)
def test_sorts_that_are_wrong(text: str, part: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_sort(parse_sort(text), SCHEMA)
    assert caught.value.details.field == "sort"
    assert part in caught.value.message


def test_no_keys_are_the_score() -> None:
    assert sorts_of([]) == BY_SCORE
    with pytest.raises(InvalidArgument) as caught:
        sorts_of([SortKey(f"f{n}") for n in range(SORT_KEYS_MAX + 1)])
    assert caught.value.details.limit == SORT_KEYS_MAX


@pytest.mark.parametrize("text", ["x", "-x", "x:missing_first"])
def test_numbers_and_texts_of_a_schema_in_change_have_an_order(text: str) -> None:
    place = place_of(parse_sort(text))
    values = [3, "b", None, 1.5, "a", -1]
    order = sorted(values, key=lambda value: place([value], 0.0, b"k"))
    expected = {
        "x": [-1, 1.5, 3, "a", "b", None],
        "-x": ["b", "a", 3, 1.5, -1, None],
        "x:missing_first": [None, -1, 1.5, 3, "a", "b"],
    }
    assert order == expected[text]
