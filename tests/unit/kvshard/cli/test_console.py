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
        ("a=vector(3, dot),b=vector(4,l2)", {"a": "vector(3, dot)", "b": "vector(4,l2)"}),
    ],
)
def test_schemas(text: str, pairs: dict[str, str]) -> None:
    assert parse_pairs(text) == pairs


@pytest.mark.parametrize("text", ["title", "title=text,title=text", "title=text,year"])
def test_what_is_no_schema(text: str) -> None:
    with pytest.raises(InvalidArgument, match="does not fit"):
        parse_pairs(text)
