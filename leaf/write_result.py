"""The outcome of a write as the few bytes that are kept for a caller who repeats it.

    count of keys, existed and done as bitmaps,
    then for each reason of failure: its name, and which keys failed by it as a bitmap,
    then JSON: [index, message, details] of failed keys, as many as have room

Versions need no room: every key that was done has the seqno of the entry.

Pure: imports only the standard library and other pure files.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from struct import Struct
from struct import error as StructError
from typing import Final, TypeAlias

from kvshard.errors import DataLoss, ErrorDetails, ErrorRecord, InvalidArgument
from kvshard.model import ABSENT, ShardWriteReply

DETAILS_MAX_BYTES: Final = 4 * 1024
"""Texts and details of failed keys in one result, some thirty conflicts; the other failures keep their reason alone."""

REASONS_MAX: Final = 8
"""Different reasons of failure in one result; one write rarely meets more than two. Further ones read as one of them."""

NOT_KEPT: Final = "this is the outcome of a repeated write, whose details are not kept"

_OTHER: Final = "FAILED_PRECONDITION"
_HEAD: Final = Struct(">IB")
_DEFAULTS: Final = asdict(ErrorDetails())
_NAMES: Final = frozenset(each.name for each in fields(ErrorDetails))

_Json: TypeAlias = dict[str, object]


def encode_result(reply: ShardWriteReply) -> bytes:
    """What to keep of a reply. At most DETAILS_MAX_BYTES and a bitmap for each of REASONS_MAX + 2 besides a few names."""
    count = len(reply.existed)
    failed = _by_reason(reply.errors)
    parts = [
        _HEAD.pack(count, len(failed)),
        _bitmap(reply.existed),
        _bitmap([version != ABSENT for version in reply.versions]),
    ]
    if not failed:
        return b"".join(parts)
    for reason, indices in failed.items():
        name = reason.encode()
        parts += (bytes((len(name),)), name, _bitmap([index in indices for index in range(count)]))
    parts.append(_details(reply.errors))
    return b"".join(parts)


def decode_result(data: bytes, seqno: int, count: int) -> ShardWriteReply:
    """The reply again. count: keys of the repeated request.

    Raises InvalidArgument when the first request had another number of keys: its id was used for two different writes;
    DataLoss when this is no result.
    """
    try:
        known, reasons = _HEAD.unpack_from(data)
        if known != count:
            text = f"the request id was used before, for a write of {known} keys instead of {count}"
            raise InvalidArgument(text, ErrorDetails(field="number"))
        return _decode(data, seqno, count, reasons)
    except (StructError, ValueError, IndexError, TypeError, KeyError) as error:
        raise DataLoss(f"damaged result of a write: {error!r}") from error


def _decode(data: bytes, seqno: int, count: int, reasons: int) -> ShardWriteReply:
    size = (count + 7) // 8
    at = _HEAD.size
    existed = _bools(data[at : at + size], count)
    done = _bools(data[at + size : at + 2 * size], count)
    at += 2 * size
    names: dict[int, str] = {}
    for _ in range(reasons):
        end = at + 1 + data[at]
        failed = _bools(data[end : end + size], count)
        names |= dict.fromkeys((index for index in range(count) if failed[index]), data[at + 1 : end].decode())
        at = end + size
    errors = {index: ErrorRecord(name, NOT_KEPT) for index, name in sorted(names.items())}
    if reasons:
        for index, message, details in json.loads(data[at:]):
            errors[index] = ErrorRecord(names[index], message, _read_details(details))
    return ShardWriteReply([seqno if each else ABSENT for each in done], existed, errors, seqno)


def _by_reason(errors: dict[int, ErrorRecord]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for index, record in errors.items():
        is_known = record.reason in found or len(found) < REASONS_MAX - 1
        found.setdefault(record.reason if is_known else _OTHER, set()).add(index)
    return found


def _details(errors: dict[int, ErrorRecord]) -> bytes:
    kept: list[str] = []
    room = DETAILS_MAX_BYTES
    for index, record in sorted(errors.items()):
        text = json.dumps([index, record.message, _write_details(record.details)], separators=(",", ":"))
        room -= len(text) + 1
        if room < 2:
            break
        kept.append(text)
    return f"[{','.join(kept)}]".encode()


def _write_details(details: ErrorDetails) -> _Json:
    return {name: value for name, value in asdict(details).items() if value != _DEFAULTS[name]}


def _read_details(found: _Json) -> ErrorDetails:
    # A name that another version of this program added is left out.
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items() if name in _NAMES}
    return ErrorDetails(**known)  # type: ignore[arg-type]


def _bitmap(flags: Sequence[bool]) -> bytes:
    text = "".join(["1" if flag else "0" for flag in flags])
    return int(text, 2).to_bytes((len(flags) + 7) // 8, "big") if text else b""


def _bools(bitmap: bytes, count: int) -> list[bool]:
    if len(bitmap) != (count + 7) // 8:
        raise ValueError("the bitmap is cut off")
    text: Iterable[str] = format(int.from_bytes(bitmap, "big"), f"0{count}b") if count else ""
    return [digit == "1" for digit in text]
