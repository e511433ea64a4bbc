"""Schemas of collections: which fields of a document are searchable, as what, and whether a document fits.

A document is a JSON object. A field of the schema may hold one value of its type or a list of such values; null and an empty
list mean that the document has no value there. Fields that the schema does not name are allowed: they are stored and returned,
but not searchable.

Pure: imports only the standard library and other pure files.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Final, TypeAlias

from kvshard.analyzers import ANALYZERS, KEYWORD_LOWER, WORDS
from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.limits import SCHEMA_MAX_FIELDS
from kvshard.vectors import check_vector, parse_vector_type

TEXT: Final = "text"
KEYWORD: Final = "keyword"
INTEGER: Final = "integer"
FLOAT: Final = "float"
BOOLEAN: Final = "boolean"
DATE: Final = "date"
VECTOR: Final = "vector"

FIELD_TYPES: Final = (TEXT, KEYWORD, INTEGER, FLOAT, BOOLEAN, DATE, VECTOR)
"""text: analysed into words. keyword: one exact value. integer: 64 bits, signed. float: finite double. date: an instant.
vector: a list of numbers, one vector a document; its type says how many, as in "vector(384)", see `kvshard/vectors.py`.

These are base types. A text field may name an analyzer, as in "text(english)"; code that asks what kind of field it has asks
`base_type`, never the field type itself.
"""

FIELD_NAME_MAX_CHARS: Final = 64
"""Names stand in queries, error messages and the index's own metadata, once a segment."""

KEYWORD_MAX_CHARS: Final = 8_191
"""The index silently drops terms over 65,530 bytes. It holds keywords in hexadecimal: 4 bytes of UTF-8 a character, twice."""

INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**63 - 1

Schema: TypeAlias = Mapping[str, str]
"""Field name -> field type, with its option if it has one."""

Scalar: TypeAlias = str | int | float | bool
"""A checked value: dates are UTC microseconds since 1970."""

JsonDecode: TypeAlias = Callable[[bytes], object]
"""Decodes JSON; raises ValueError (which UnicodeDecodeError and msgspec.DecodeError are) or RecursionError."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_DATE = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,18}))?(?:([Zz])|([+-])(\d\d):(\d\d)))?\Z",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_EXPECTED = {
    TEXT: "text (a JSON string)",
    KEYWORD: "a keyword (a JSON string)",
    INTEGER: "an integer in the range of 64 bits",
    FLOAT: "a finite number",
    BOOLEAN: "true or false",
    DATE: "a date (RFC 3339 or YYYY-MM-DD)",
}

_SHOWN_MAX_CHARS: Final = 40
"""Of a refused value, so that an error message stays one line."""


def parse_schema(mapping: Mapping[str, str]) -> dict[str, str]:
    """The schema, checked. Raises InvalidArgument with details.field "schema" or "schema.<name>"."""
    if len(mapping) > SCHEMA_MAX_FIELDS:
        details = ErrorDetails(field="schema", limit=SCHEMA_MAX_FIELDS)
        raise InvalidArgument(f"a schema may have at most {SCHEMA_MAX_FIELDS} fields, not {len(mapping)}", details)
    parsed: dict[str, str] = {}
    for name, field_type in mapping.items():
        _check_name(name)
        if isinstance(field_type, str) and base_type(field_type) == VECTOR:
            parsed[name] = _vector_type(name, field_type)
            continue
        if not isinstance(field_type, str) or field_type not in _CHECKS:
            raise InvalidArgument(f"field {name!r} {_wrong_type(field_type)}", ErrorDetails(field=f"schema.{name}"))
        parsed[name] = field_type
    return parsed


def _vector_type(name: str, field_type: str) -> str:
    try:
        return parse_vector_type(field_type).text
    except ValueError as error:
        raise InvalidArgument(f"field {name!r}: {error}", ErrorDetails(field=f"schema.{name}")) from None


def base_type(field_type: str) -> str:
    """The field type without its option: TEXT for "text(english)". Those without one are their own base type."""
    return field_type.partition("(")[0]


def analyzer_of(field_type: str) -> str:
    """The analyzer of a text field: "english" for "text(english)", WORDS for "text"."""
    return field_type.partition("(")[2].rstrip(")") or WORDS


def text_type(analyzer: str) -> str:
    """The field type of texts with this analyzer: the other way around."""
    return TEXT if analyzer == WORDS else f"{TEXT}({analyzer})"


def _wrong_type(field_type: object) -> str:
    """What is wrong with a field type that there is not."""
    base, has_option, option = str(field_type).partition("(")
    if base == TEXT and has_option:
        wanted = option.rstrip(")").strip()
        close = get_close_matches(wanted.lower(), ANALYZERS, n=1)
        hint = f" (did you mean {text_type(close[0])}?)" if close else ""
        return f"has the unknown analyzer {_shown(wanted)}{hint}; known are {', '.join(ANALYZERS)}"
    if base in FIELD_TYPES and has_option:
        return f"has the type {_shown(field_type)}, but only text has analyzers, as in text(english)"
    return f"has the unknown type {_shown(field_type)}; known are {', '.join(FIELD_TYPES[:-1])}, text(ANALYZER), vector(DIM)"


def _check_name(name: str) -> None:
    if not isinstance(name, str) or _NAME.match(name) is None:
        message = f"field name {_shown(name)} must be letters, digits and underscores, and not begin with a digit"
        raise InvalidArgument(message, ErrorDetails(field="schema"))
    if len(name) > FIELD_NAME_MAX_CHARS:
        details = ErrorDetails(field="schema", limit=FIELD_NAME_MAX_CHARS)
        raise InvalidArgument(f"field name {_shown(name)} is longer than {FIELD_NAME_MAX_CHARS} characters", details)


def validate_document(schema: Schema, value: bytes, json_decode: JsonDecode) -> dict[str, object]:
    """The document that the value holds, if it fits the schema.

    Raises InvalidArgument; details.field is "document" when the value is no JSON object, else "document.<name>".
    """
    document = _decode(value, json_decode)
    for name, field_type in schema.items():
        given = document.get(name)
        if given is None:
            continue
        check = _CHECKS.get(field_type)
        if check is None:
            check_vector(parse_vector_type(field_type), given, f"document.{name}")
            continue
        for item in given if isinstance(given, list) else (given,):
            check(name, item)
    return document


def check_of(field_type: str) -> Callable[[str, object], Scalar]:
    """What looks at one value of such a field: (name, value) -> the value, ready for an index. It raises InvalidArgument."""
    return _CHECKS[field_type]


def date_micros(text: str) -> int:
    """UTC microseconds since 1970 of an RFC 3339 instant or a day (its midnight, UTC). Raises ValueError.

    Digits beyond microseconds are cut off.
    """
    match = _DATE.match(text)
    if match is None:
        raise ValueError(f"not a date: {text!r}")
    day, clock, fraction, _, sign, hours, minutes = match.groups()
    instant = datetime.fromisoformat(f"{day}T{clock or '00:00:00'}+00:00")
    if sign is not None:
        if int(hours) > 23 or int(minutes) > 59:
            raise ValueError(f"not a date: {text!r}")
        offset = timedelta(hours=int(hours), minutes=int(minutes))
        # Counted in microseconds, not in datetimes: 0001-01-01T00:00:00+01:00 is an instant before the first datetime.
        return _micros(instant) - (offset if sign == "+" else -offset) // _MICROSECOND + _fraction_micros(fraction)
    return _micros(instant) + _fraction_micros(fraction)


def _micros(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND


def _fraction_micros(digits: str | None) -> int:
    return int(digits[:6].ljust(6, "0")) if digits else 0


def _decode(value: bytes, json_decode: JsonDecode) -> dict[str, object]:
    details = ErrorDetails(field="document")
    try:
        document = json_decode(value)
    except UnicodeDecodeError:
        raise InvalidArgument("the document is not UTF-8 text", details) from None
    except ValueError as error:
        raise InvalidArgument(f"the document is not valid JSON: {error}", details) from None
    except RecursionError:
        raise InvalidArgument("the document is nested too deeply", details) from None
    if not isinstance(document, dict):
        raise InvalidArgument(f"a document must be a JSON object, not {_kind(document)}", details)
    return document


def _check_text(name: str, given: object) -> str:
    if not isinstance(given, str):
        raise _wrong(name, TEXT, given)
    return given


def _check_lower_keyword(name: str, given: object) -> str:
    if not isinstance(given, str):
        raise _wrong(name, TEXT, given)
    return _check_keyword(name, given)


def _check_keyword(name: str, given: object) -> str:
    if not isinstance(given, str):
        raise _wrong(name, KEYWORD, given)
    if len(given) > KEYWORD_MAX_CHARS:
        message = f"document.{name} has {len(given)} characters; a keyword may have at most {KEYWORD_MAX_CHARS}"
        raise InvalidArgument(message, ErrorDetails(field=f"document.{name}", limit=KEYWORD_MAX_CHARS))
    return given


def _check_integer(name: str, given: object) -> int:
    if type(given) is not int or not INTEGER_MIN <= given <= INTEGER_MAX:
        raise _wrong(name, INTEGER, given)
    return given


def _check_float(name: str, given: object) -> float:
    if type(given) is not float and type(given) is not int:
        raise _wrong(name, FLOAT, given)
    try:
        number = float(given)
    except OverflowError:
        raise _wrong(name, FLOAT, given) from None
    if number - number != 0.0:  # inf and nan; math.isfinite would do the same at the price of a call
        raise _wrong(name, FLOAT, given)
    return number + 0.0  # -0.0 becomes 0.0: they are one value


def _check_boolean(name: str, given: object) -> bool:
    if given is not True and given is not False:
        raise _wrong(name, BOOLEAN, given)
    return given


def _check_date(name: str, given: object) -> int:
    if not isinstance(given, str):
        raise _wrong(name, DATE, given)
    try:
        return date_micros(given)
    except ValueError:
        raise _wrong(name, DATE, given) from None


_CHECKS: dict[str, Callable[[str, object], Scalar]] = {
    TEXT: _check_text,
    KEYWORD: _check_keyword,
    INTEGER: _check_integer,
    FLOAT: _check_float,
    BOOLEAN: _check_boolean,
    DATE: _check_date,
    **{text_type(analyzer): _check_text for analyzer in ANALYZERS},
    text_type(KEYWORD_LOWER): _check_lower_keyword,
}
"""By field type, options included: looked up for every value of every document."""


def _wrong(name: str, field_type: str, given: object) -> InvalidArgument:
    message = f"document.{name} must be {_EXPECTED[field_type]}, not {_kind(given)}"
    return InvalidArgument(message, ErrorDetails(field=f"document.{name}"))


def _kind(given: object) -> str:
    """What a person would call the given value, with the value itself where it is short enough to help."""
    if given is None:
        return "null"
    if isinstance(given, bool):
        return "the boolean true" if given else "the boolean false"
    if isinstance(given, int | float):
        return f"the number {_shown(given)}"
    if isinstance(given, str):
        return f"the string {_shown(given)}"
    return "a list" if isinstance(given, list) else "an object"


def _shown(given: object) -> str:
    """A value in an error message, shortened."""
    if isinstance(given, int) and given.bit_length() > 256:
        return "of more than 70 digits"  # str() of a huge int is slow, and refused beyond 4,300 digits
    text = repr(given)
    return text if len(text) <= _SHOWN_MAX_CHARS else f"{text[:_SHOWN_MAX_CHARS]}..."
