"""The outcome of a write as the few bytes that are kept for a caller who repeats it.

    count of the write's keys; number of reasons, 128 more if only a part of the keys came here: then which, as a bitmap,
    existed and done as bitmaps,
    then for each reason of failure: its name, and which keys failed by it as a bitmap,
    then JSON: [position, message, details] of failed keys, as many as have room

Keys are known by their position in the write that the request id names, not in the part of it that came to this shard: when it
is repeated after a split, or by another router, it may have been cut into other parts.

Versions need no room: every key that was done has the seqno of the entry.

Pure: imports only the standard library and other pure files.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from itertools import compress
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
_PART: Final = 128
_ONE: Final = ord("1")
_DEFAULTS: Final = asdict(ErrorDetails())
_NAMES: Final = frozenset(each.name for each in fields(ErrorDetails))

_Json: TypeAlias = dict[str, object]


def encode_result(reply: ShardWriteReply, positions: Sequence[int] = (), total: int = 0) -> bytes:
    """What to keep of a reply. positions, total: as in ShardWrite.

    At most DETAILS_MAX_BYTES and a bitmap of `total` for each of REASONS_MAX + 3 besides a few names.
    """
    count = total if positions else len(reply.existed)
    at: Sequence[int] = positions or range(count)
    failed = _by_reason(reply.errors)
    came = _bitmap(at, count)
    parts = [_HEAD.pack(count, len(failed) | (_PART if positions else 0))]
    if positions:
        parts.append(came)
    # The version of what was not done is ABSENT, which is 0.
    parts += (_chosen(at, reply.existed, came, count), _chosen(at, reply.versions, came, count))
    if not failed:
        return b"".join(parts)
    for reason, indices in failed.items():
        name = reason.encode()
        parts += (bytes((len(name),)), name, _bitmap([at[index] for index in indices], count))
    parts.append(_details(reply.errors, at))
    return b"".join(parts)


def decode_result(data: bytes, seqno: int, count: int) -> ShardWriteReply:
    """The reply to a write of `count` keys that all came here. Raises as `decode_part`."""
    return decode_part(data, seqno, range(count), count)[0]


def decode_part(data: bytes, seqno: int, positions: Sequence[int], total: int) -> tuple[ShardWriteReply, list[int]]:
    """The outcome of some keys of a write, in their order, and the indices of those that did not come here then.

    Raises InvalidArgument when the first request had another number of keys: its id was used for two different writes;
    DataLoss when this is no result.
    """
    try:
        known, reasons = _HEAD.unpack_from(data)
        if known != total:
            text = f"the request id was used before, for a write of {known} keys instead of {total}"
            raise InvalidArgument(text, ErrorDetails(field="number"))
        return _decode(data, seqno, positions, total, reasons)
    except (StructError, ValueError, IndexError, TypeError, KeyError) as error:
        raise DataLoss(f"damaged result of a write: {error!r}") from error


def _decode(data: bytes, seqno: int, positions: Sequence[int], total: int, reasons: int) -> tuple[ShardWriteReply, list[int]]:
    size = (total + 7) // 8
    at = _HEAD.size
    unknown: list[int] = []
    if reasons & _PART:
        came = _bools(data[at : at + size], total)
        unknown = [index for index, place in enumerate(positions) if not came[place]]
        at += size
        reasons -= _PART
    existed = _bools(data[at : at + size], total)
    done = _bools(data[at + size : at + 2 * size], total)
    at += 2 * size
    names: dict[int, str] = {}
    for _ in range(reasons):
        end = at + 1 + data[at]
        failed = _bools(data[end : end + size], total)
        names |= dict.fromkeys((place for place in range(total) if failed[place]), data[at + 1 : end].decode())
        at = end + size
    found = {place: ErrorRecord(name, NOT_KEPT) for place, name in names.items()}
    if reasons:
        for place, message, details in json.loads(data[at:]):
            found[place] = ErrorRecord(names[place], message, _read_details(details))
    errors = {index: found[place] for index, place in enumerate(positions) if place in found}
    versions = [seqno if done[place] else ABSENT for place in positions]
    return ShardWriteReply(versions, [existed[place] for place in positions], errors, seqno), unknown


def _by_reason(errors: dict[int, ErrorRecord]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for index, record in errors.items():
        is_known = record.reason in found or len(found) < REASONS_MAX - 1
        found.setdefault(record.reason if is_known else _OTHER, set()).add(index)
    return found


def _details(errors: dict[int, ErrorRecord], at: Sequence[int]) -> bytes:
    kept: list[str] = []
    room = DETAILS_MAX_BYTES
    for index, record in sorted(errors.items()):
        text = json.dumps([at[index], record.message, _write_details(record.details)], separators=(",", ":"))
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


def _chosen(at: Sequence[int], marks: Sequence[int], came: bytes, count: int) -> bytes:
    """The bitmap of the places whose mark is true. came: the bitmap of them all."""
    if all(marks):
        return came
    return _bitmap(list(compress(at, marks)), count) if any(marks) else bytes(len(came))


def _bitmap(places: Sequence[int], count: int) -> bytes:
    """The first place is the highest bit of the first byte."""
    if not count:
        return b""
    size = (count + 7) // 8
    digits = bytearray(b"0" * (8 * size))
    for place in places:
        digits[place] = _ONE
    return int(digits, 2).to_bytes(size, "big")


def _bools(bitmap: bytes, count: int) -> list[bool]:
    if len(bitmap) != (count + 7) // 8:
        raise ValueError("the bitmap is cut off")
    text: Iterable[str] = format(int.from_bytes(bitmap, "big"), f"0{8 * len(bitmap)}b") if count else ""
    return [digit == "1" for digit in text][:count]
