"""What the verbs share: how a schema is written."""

import pytest

from kvshard.cli.console import parse_pairs
from kvshard.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", {}),
        ("title=text, year=integer,", {"title": "text", "year": "integer"}),
        ("at=vector(3,l2),title=text(english)", {"at": "vector(3,l2)", "title": "text(english)"}),
        ("title:text, at:vector(3,l2), n=integer", {"title": "text", "at": "vector(3,l2)", "n": "integer"}),
        ("a=vector(3, dot),b=vector(4,l2)", {"a": "vector(3, dot)", "b": "vector(4,l2)"}),
    ],
)
def test_schemas(text: str, pairs: dict[str, str]) -> None:
    assert parse_pairs(text) == pairs


@pytest.mark.parametrize(
    ("text", "why"),
    [("title", "does not fit"), ("title=text,title=text", "stands there twice"), ("title=text,year", "'year' does not fit")],
)
def test_what_is_no_schema(text: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        parse_pairs(text)
