import pytest

from kvshard.unknown_fields import unknown_field

SCHEMA = {"title": "text", "year": "integer", "tag": "keyword"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("titel", {}, "unknown field titel; did you mean title?"),
        ("yaer", {"purpose": "to sort by"}, "unknown field yaer to sort by; did you mean year?"),
        ("_scor", {"besides": ("_score",)}, "unknown field _scor; did you mean _score?"),
        ("q", {"besides": ("_score",)}, "unknown field q; the collection's fields are tag, title, year"),
        ("http", {"otherwise": " (or not)"}, "unknown field http; the collection's fields are tag, title, year (or not)"),
        ("titel", {"otherwise": " (or not)"}, "unknown field titel; did you mean title?"),
        ("a\nb", {}, r"unknown field 'a\nb'; the collection's fields are tag, title, year"),
        ("x" * 65, {}, f"unknown field '{'x' * 64}'...; the collection's fields are tag, title, year"),
    ],
)
def test_the_nearest_field_is_named_or_all_of_them(name, options, message):
    assert unknown_field(name, SCHEMA, **options) == message


def test_a_few_of_many_fields_and_no_fields():
    many = [f"f{number:02}" for number in range(21)]
    assert unknown_field("q", many).endswith("f18, f19, ...")
    assert unknown_field("q", many[:20]).endswith("f18, f19")
    assert unknown_field("q", []) == "unknown field q; there are none"
