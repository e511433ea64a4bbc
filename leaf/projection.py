"""Cuts documents down to the fields that were asked for, before they leave the leaf.

A path names a field of the document, or with dots one inside objects: "author.name". In a list, each object is cut so. A field
that has the very name is taken before a path is looked for. What a document does not have is left out.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_encode: Final = msgspec.json.Encoder().encode


class Projection:
    """What is kept of documents."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = list(dict.fromkeys(paths))

    def __repr__(self) -> str:
        return f"Projection({', '.join(self._paths)})"

    def cut(self, document: bytes) -> bytes:
        """The document with these fields alone. Values are copied as they stand, without being decoded."""
        return _encode(_cut(_OBJECT.decode(document), self._paths))


def _cut(fields: dict[str, msgspec.Raw], paths: Sequence[str]) -> dict[str, object]:
    kept: dict[str, object] = {}
    inner: dict[str, list[str]] = {}
    for path in paths:
        if path in fields:
            kept[path] = fields[path]
            continue
        name, _, rest = path.partition(".")
        if rest and name in fields:
            inner.setdefault(name, []).append(rest)
    for name, rests in inner.items():
        if name not in kept:
            value = _cut_value(fields[name], rests)
            if value is not None:
                kept[name] = value
    return kept


def _cut_value(value: msgspec.Raw, paths: Sequence[str]) -> object:
    """What is kept of a value; None: it has no such fields."""
    first = bytes(value).lstrip()[:1]
    if first == b"{":
        return _cut(_OBJECT.decode(value), paths) or None
    if first == b"[":
        return [cut for cut in (_cut_value(item, paths) for item in _LIST.decode(value)) if cut is not None] or None
    return None
