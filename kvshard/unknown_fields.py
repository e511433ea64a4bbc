"""What an error says of a field that a collection does not have: the nearest one that it has, else which ones there are.

Pure: imports only the standard library.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Final

NAME_SHOWN_CHARS: Final = 64
"""Of the name that was given; it came from outside and may be of any length."""

NAMES_SHOWN: Final = 20
"""Fields that are listed: enough for most schemas, and two lines of a terminal."""


def unknown_field(name: str, known: Iterable[str], purpose: str = "", besides: Sequence[str] = (), otherwise: str = "") -> str:
    """`unknown field yaer to sort by; did you mean year?`, or with the fields that there are where none of them is near.

    purpose: what it was to be used for, as in `to sort by`. besides: names that would do as well and are no fields.
    otherwise: what else may have been meant, where no field is near.
    """
    names = sorted(known)
    shown = name if name.isidentifier() else repr(name[:NAME_SHOWN_CHARS])
    if len(name) > NAME_SHOWN_CHARS:
        shown = f"{name[:NAME_SHOWN_CHARS]!r}..."
    message = f"unknown field {shown}{' ' if purpose else ''}{purpose}; "
    close = get_close_matches(name, [*names, *besides], n=1)
    if close:
        return f"{message}did you mean {close[0]}?"
    if not names:
        return f"{message}there are none{otherwise}"
    more = ", ..." if len(names) > NAMES_SHOWN else ""
    return f"{message}the collection's fields are {', '.join(names[:NAMES_SHOWN])}{more}{otherwise}"
