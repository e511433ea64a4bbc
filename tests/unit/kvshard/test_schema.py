import json

import pytest

from kvshard.analyzers import ANALYZERS, LANGUAGES, LANGUAGES_WITHOUT_STOP_WORDS
from kvshard.errors import InvalidArgument
from kvshard.limits import SCHEMA_MAX_FIELDS
from kvshard.schema import (
    FIELD_TYPES,
    KEYWORD_MAX_CHARS,
    analyzer_of,
    base_type,
    check_of,
    date_micros,
    parse_schema,
    text_type,
    validate_document,
)

SCHEMA = {
    "title": "text",
    "tag": "keyword",
    "year": "integer",
    "price": "float",
    "live": "boolean",
    "at": "date",
}


def check(document: object) -> dict[str, object]:
    return validate_document(SCHEMA, json.dumps(document).encode(), json.loads)


def test_schema_of_all_types_is_accepted():
    assert parse_schema(SCHEMA) == SCHEMA
    assert parse_schema({}) == {}


@pytest.mark.parametrize(
    ("schema", "field", "part"),
    [
        ({"a-b": "text"}, "schema", "letters, digits and underscores"),
        ({"1a": "text"}, "schema", "not begin with a digit"),
        ({"": "text"}, "schema", "letters"),
        ({"é": "text"}, "schema", "letters"),
        ({"a\n": "text"}, "schema", "letters"),
        ({"a" * 65: "text"}, "schema", "longer than 64"),
        ({"a": "string"}, "schema.a", "unknown type 'string'"),
        ({"a": ["text"]}, "schema.a", "unknown type"),
        ({"a": "text(englsh)"}, "schema.a", "unknown analyzer 'englsh' (did you mean text(english)?); known are ascii, cjk, "),
        ({"a": "text(English)"}, "schema.a", "did you mean text(english)?"),
        ({"a": "text(english"}, "schema.a", "did you mean text(english)?"),
        ({"a": "text()"}, "schema.a", "unknown analyzer ''; known are"),
        ({"a": "text(klingon)"}, "schema.a", "unknown analyzer 'klingon'; known are"),
        ({"a": "keyword(english)"}, "schema.a", "only text has analyzers"),
        ({f"f{i}": "text" for i in range(SCHEMA_MAX_FIELDS + 1)}, "schema", "at most 256 fields"),
    ],
)
def test_wrong_schemas_are_refused(schema, field, part):
    with pytest.raises(InvalidArgument) as caught:
        parse_schema(schema)
    assert caught.value.details.field == field
    assert part in caught.value.message


def test_every_analyzer_makes_a_type_of_text():
    schema = {f"f_{analyzer}": text_type(analyzer) for analyzer in ANALYZERS}
    assert parse_schema(schema) == schema
    assert {base_type(field_type) for field_type in schema.values()} == {"text"}
    assert [analyzer_of(field_type) for field_type in schema.values()] == list(ANALYZERS)
    assert set(LANGUAGES) > LANGUAGES_WITHOUT_STOP_WORDS


def test_types_without_an_option_are_their_own_base_type():
    assert [base_type(each) for each in FIELD_TYPES] == list(FIELD_TYPES)
    assert analyzer_of("text") == "words"
    assert text_type("words") == "text"


def test_texts_with_an_analyzer_are_checked_as_texts_are():
    schema = {"body": "text(english)", "name": "text(keyword)"}
    body, name = check_of(schema["body"]), check_of(schema["name"])
    assert body("body", "a") == "a"
    assert name("name", "x" * KEYWORD_MAX_CHARS)
    with pytest.raises(InvalidArgument, match=r"document.body must be text"):
        body("body", 5)
    with pytest.raises(InvalidArgument, match=r"document.name must be text"):
        name("name", 5)
    with pytest.raises(InvalidArgument, match="8192 characters"):
        name("name", "x" * (KEYWORD_MAX_CHARS + 1))


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"title": "a", "tag": "b", "year": 2**63 - 1, "price": 1, "live": False, "at": "2020-01-01"},
        {"title": ["a", "b"], "tag": [], "year": [-(2**63), 0], "price": [0.5, 2], "live": [True], "at": ["2020-01-01"]},
        {"title": None, "tag": None, "year": None},
        {"unknown": {"deep": [1, "x", None]}, "title": ""},
        {"tag": "x" * KEYWORD_MAX_CHARS},
    ],
)
def test_documents_that_fit(document):
    assert check(document) == document


@pytest.mark.parametrize(
    ("document", "field", "message"),
    [
        ([], "document", "a document must be a JSON object, not a list"),
        ("x", "document", "a document must be a JSON object, not the string 'x'"),
        ({"title": 5}, "document.title", "document.title must be text (a JSON string), not the number 5"),
        ({"title": ["a", 5]}, "document.title", "not the number 5"),
        ({"title": [["a"]]}, "document.title", "not a list"),
        ({"title": [None]}, "document.title", "not null"),
        ({"tag": True}, "document.tag", "a keyword (a JSON string), not the boolean true"),
        ({"tag": "x" * (KEYWORD_MAX_CHARS + 1)}, "document.tag", "has 8192 characters"),
        ({"year": True}, "document.year", "an integer in the range of 64 bits, not the boolean true"),
        ({"year": 2010.0}, "document.year", "not the number 2010.0"),
        ({"year": 2**63}, "document.year", "not the number 9223372036854775808"),
        ({"year": 10**400}, "document.year", "more than 70 digits"),
        ({"year": "y" * 100}, "document.year", "..."),
        ({"price": "1"}, "document.price", "a finite number, not the string '1'"),
        ({"price": float("inf")}, "document.price", "finite"),
        ({"price": float("nan")}, "document.price", "finite"),
        ({"price": 10**400}, "document.price", "finite"),
        ({"live": 1}, "document.live", "true or false, not the number 1"),
        ({"at": 5}, "document.at", "a date (RFC 3339 or YYYY-MM-DD), not the number 5"),
        ({"at": "yesterday"}, "document.at", "not the string 'yesterday'"),
        ({"at": {}}, "document.at", "not an object"),
    ],
)
def test_documents_that_do_not_fit(document, field, message):
    with pytest.raises(InvalidArgument) as caught:
        check(document)
    assert caught.value.details.field == field
    assert message in caught.value.message
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("value", [b"", b"{", b"\xff", b'{"a":1}x', b"[" * 100_000, b"nul"])
def test_values_that_are_no_json(value):
    with pytest.raises(InvalidArgument) as caught:
        validate_document(SCHEMA, value, json.loads)
    assert caught.value.details.field == "document"


def test_checked_values_are_ready_for_the_index():
    given = {"title": "a", "year": 1, "price": -0.0, "live": True, "at": "1970-01-02"}
    values = {name: check_of(SCHEMA[name])(name, value) for name, value in given.items()}
    assert values == {"title": "a", "year": 1, "price": 0.0, "live": True, "at": 86_400_000_000}
    assert str(values["price"]) == "0.0"


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("1970-01-01", 0),
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t01:00:00.5+01:00", 500_000),
        ("1969-12-31T23:00:00.000001-01:00", 1),
        ("1970-01-01T00:00:00.123456789Z", 123_456),
        ("0001-01-01T00:00:00+23:59", -62_135_596_800_000_000 - 86_340_000_000),
        ("9999-12-31T23:59:59.999999-23:59", 253_402_300_799_999_999 + 86_340_000_000),
    ],
)
def test_dates(text, micros):
    assert date_micros(text) == micros


@pytest.mark.parametrize(
    "text",
    ["", "1970", "1970-13-01", "1970-02-30", "19700101", "1970-01-01T00:00:00", "1970-01-01T25:00:00Z", "1970-01-01\n",
     "1970-01-01T00:00:60Z", "1970-01-01T00:00:00+24:00", "1970-01-01T00:00Z", "٢٠٢٠-01-01"],
)  # fmt: skip
def test_what_is_no_date(text):
    with pytest.raises(ValueError):
        date_micros(text)
