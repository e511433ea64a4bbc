"""How the hits of a search are to be given: the checks at the door.

Each raises InvalidArgument whose details name the field at fault and, where there is one, the limit.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Mapping
from typing import NoReturn

from kvshard import limits
from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.model import USUAL_SHAPE, SearchShape
from kvshard.schema import INTEGER, KEYWORD
from kvshard.unknown_fields import unknown_field

COLLAPSED_BY = (KEYWORD, INTEGER)
"""Types of fields whose values name a group."""


def check_shape(shape: SearchShape, schema: Mapping[str, str], is_keys_only: bool) -> None:
    """Everything about it that can be told without a leaf."""
    if shape == USUAL_SHAPE:
        return
    if shape.fields and is_keys_only:
        _refuse(
            "return_fields are fields of documents, and keys_only leaves these out; ask for one of the two", "return_fields"
        )
    check_return_fields(shape.fields)
    if not 1 <= shape.fragments <= limits.HIGHLIGHT_MAX_FRAGMENTS:
        most = limits.HIGHLIGHT_MAX_FRAGMENTS
        _refuse(f"highlight fragments must be 1 to {most}, not {shape.fragments}", "highlight_options.fragments", most)
    if not limits.HIGHLIGHT_MIN_CHARS <= shape.fragment_chars <= limits.HIGHLIGHT_MAX_CHARS:
        bounds = f"{limits.HIGHLIGHT_MIN_CHARS} to {limits.HIGHLIGHT_MAX_CHARS}"
        message = f"a highlighted fragment has {bounds} characters, not {shape.fragment_chars}"
        _refuse(message, "highlight_options.fragment_chars", limits.HIGHLIGHT_MAX_CHARS)
    if shape.collapse:
        check_collapse(shape.collapse, schema)


def check_return_fields(fields: list[str]) -> None:
    """Names of fields, or paths with dots. They need not stand in the schema: a document may have any fields."""
    if len(fields) > limits.RETURN_FIELDS_MAX:
        message = f"at most {limits.RETURN_FIELDS_MAX} fields can be asked for, not {len(fields)}"
        _refuse(message, "return_fields", limits.RETURN_FIELDS_MAX)
    for at, path in enumerate(fields):
        if not path or len(path) > limits.RETURN_FIELD_MAX_CHARS:
            message = f"a returned field has 1 to {limits.RETURN_FIELD_MAX_CHARS} characters, not {len(path)}"
            _refuse(message, f"return_fields[{at}]", limits.RETURN_FIELD_MAX_CHARS)


def check_collapse(name: str, schema: Mapping[str, str]) -> None:
    """A search is collapsed by a keyword or an integer."""
    kind = schema.get(name)
    if kind is None:
        _refuse(unknown_field(name, schema, "to collapse by"), "collapse")
    if kind not in COLLAPSED_BY:
        _refuse(f"a search is collapsed by a keyword or an integer field; {name!r} is of type {kind}", "collapse")


def _refuse(message: str, field: str, limit: int | None = None) -> NoReturn:
    raise InvalidArgument(message, ErrorDetails(field=field, limit=limit))
