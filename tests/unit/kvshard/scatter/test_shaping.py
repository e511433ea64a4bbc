"""How hits may be asked for, and what is refused."""

import pytest

from kvshard.errors import InvalidArgument
from kvshard.model import USUAL_SHAPE, SearchShape
from kvshard.scatter.shaping import check_shape

SCHEMA = {"title": "text", "tag": "keyword", "year": "integer", "x": "float", "on": "date"}


@pytest.mark.parametrize(
    "shape",
    [
        USUAL_SHAPE,
        SearchShape(fields=["a", "b.c", "a b"], fragments=20, fragment_chars=2_000),
        SearchShape(collapse="tag", count_up_to=0),
        SearchShape(collapse="year", fragment_chars=20),
    ],
)
def test_shapes_that_are_well(shape: SearchShape) -> None:
    check_shape(shape, SCHEMA, is_keys_only=False)


@pytest.mark.parametrize(
    ("shape", "field", "limit", "part"),
    [
        (SearchShape(fields=["a"] * 257), "return_fields", 256, "at most 256 fields"),
        (SearchShape(fields=["a", ""]), "return_fields[1]", 1_024, "1 to 1024 characters, not 0"),
        (SearchShape(fields=["a" * 1_025]), "return_fields[0]", 1_024, "not 1025"),
        (SearchShape(fragments=0), "highlight_options.fragments", 20, "1 to 20, not 0"),
        (SearchShape(fragments=21), "highlight_options.fragments", 20, "not 21"),
        (SearchShape(fragment_chars=19), "highlight_options.fragment_chars", 2_000, "20 to 2000 characters, not 19"),
        (SearchShape(fragment_chars=2_001), "highlight_options.fragment_chars", 2_000, "not 2001"),
        (SearchShape(collapse="title"), "collapse", None, "'title' is of type text"),
        (SearchShape(collapse="on"), "collapse", None, "'on' is of type date"),
        (SearchShape(collapse="yaer"), "collapse", None, "did you mean year?"),
        (SearchShape(collapse="q"), "collapse", None, "the collection's fields are on, tag, title, x, year"),
    ],
)
def test_shapes_that_are_wrong(shape: SearchShape, field: str, limit: int | None, part: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_shape(shape, SCHEMA, is_keys_only=False)
    assert (caught.value.details.field, caught.value.details.limit) == (field, limit)
    assert part in caught.value.message


def test_keys_only_has_no_fields() -> None:
    with pytest.raises(InvalidArgument, match="ask for one of the two"):
        check_shape(SearchShape(fields=["a"]), SCHEMA, is_keys_only=True)
