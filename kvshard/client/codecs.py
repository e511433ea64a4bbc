"""How keys and values are handed to a program: keys as str or bytes, values as bytes or documents."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, cast

import msgspec

from kvshard.client.checks import check_value, check_values, invalid
from kvshard.client.results import Document, K, V
from kvshard.errors import FailedPrecondition


@dataclass(frozen=True, slots=True)
class ValueCodec(Generic[V]):
    """encode: to the wire, or InvalidArgument. decode: from the wire. nothing: stands for a value that was not asked for.

    encode_all, decode_all: the same for the values of a batch; None stays None.
    """

    encode: Callable[[V], bytes]
    decode: Callable[[bytes], V]
    nothing: Callable[[], V]
    encode_all: Callable[[list[V]], list[bytes]]
    decode_all: Callable[[list[bytes | None]], list[V | None]]


def key_decoder(keys: type[K]) -> Callable[[bytes], K]:
    """How keys are given back."""
    if keys is bytes:
        return cast(Callable[[bytes], K], bytes)
    if keys is str:
        return cast(Callable[[bytes], K], _text_key)
    raise TypeError(f"keys is str or bytes, not {keys!r}")


def _text_key(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError:
        # Keys that are no UTF-8 come out with surrogates, and `checks.key_bytes` turns those back into the same bytes.
        return key.decode("utf-8", "surrogateescape")


_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder(dict[str, Any]).decode


def encode_document(document: Document) -> bytes:
    """A document as JSON. Raises InvalidArgument when it is not one."""
    if not isinstance(document, dict):
        raise invalid(f"a document is a dict, not {type(document).__name__}", "document")
    try:
        value = _encode_json(document)
    except (TypeError, ValueError, RecursionError) as error:
        raise invalid(f"the document cannot be written as JSON: {error}", "document") from None
    return check_value(value, "document")


def decode_document(value: bytes) -> Document:
    """The document in a value. Raises FailedPrecondition where a collection without a schema holds something else."""
    try:
        return _decode_json(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FailedPrecondition(f"the value is not a document ({error}); read it as bytes, with .raw") from None


def _encode_documents(documents: list[Document]) -> list[bytes]:
    return list(map(encode_document, documents))


def _decode_documents(values: list[bytes | None]) -> list[Document | None]:
    return [None if value is None else decode_document(value) for value in values]


def _as_they_are(values: list[bytes | None]) -> list[bytes | None]:
    return values


BYTES: ValueCodec[bytes] = ValueCodec(check_value, bytes, bytes, check_values, _as_they_are)
DOCUMENTS: ValueCodec[Document] = ValueCodec(encode_document, decode_document, dict, _encode_documents, _decode_documents)
