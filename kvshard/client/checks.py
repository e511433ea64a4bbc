"""What the client refuses without a round trip: the same InvalidArgument that the service would answer.

Pure: imports only the standard library and other pure files.
"""

import math
from collections.abc import Iterable, Sequence
from typing import cast

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.limits import BATCH_MAX_BYTES, BATCH_MAX_KEYS, KEY_MAX_BYTES, SEARCH_MAX_LIMIT, SUGGEST_MAX_LIMIT, VALUE_MAX_BYTES
from kvshard.model import Refresh
from kvshard.vectors import NEAREST_MAX, Nearest

TTL_MAX_S = 1e11
"""About 3,000 years: beyond this an expiry instant would come near the end of 64-bit milliseconds."""


def invalid(message: str, field: str, limit: int | None = None) -> InvalidArgument:
    """The error for a wrong argument."""
    return InvalidArgument(message, ErrorDetails(field=field, limit=limit))


def key_bytes(key: str | bytes, field: str = "key") -> bytes:
    """The key as it travels: str as UTF-8; bytes that were no UTF-8 come back as they were read (surrogateescape)."""
    if isinstance(key, str):
        text = key
        try:
            key = text.encode()
        except UnicodeEncodeError:
            key = _escaped(text, field)
    elif not isinstance(key, bytes):
        raise invalid(f"a key is str or bytes, not {type(key).__name__}", field)
    if not 0 < len(key) <= KEY_MAX_BYTES:
        raise invalid(f"a key has 1 to {KEY_MAX_BYTES:,} bytes, this one {len(key):,}", field, KEY_MAX_BYTES)
    return key


def _escaped(key: str, field: str) -> bytes:
    try:
        return key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise invalid(f"key {key!r} cannot be written as UTF-8", field) from None


def keys_bytes(keys: Iterable[str | bytes]) -> list[bytes]:
    """The keys of a batch as they travel; what is wrong with one names its index.

    Keys of one type are looked at all together, which takes a tenth of the time of one after the other.
    """
    given = list(keys)
    wire = _all_bytes(given)
    if wire:
        lengths = set(map(len, wire))
        if 0 not in lengths and max(lengths) <= KEY_MAX_BYTES:
            return wire
    return [key_bytes(key, f"keys[{index}]") for index, key in enumerate(given)]


def _all_bytes(given: list[str | bytes]) -> list[bytes]:
    """The keys as bytes if they are all of one type, and UTF-8 where they are text; else empty."""
    if given and type(given[0]) is str:
        try:
            return list(map(str.encode, cast(list[str], given)))
        except (TypeError, UnicodeEncodeError):  # What is no str says so by itself.
            return []
    return cast(list[bytes], given) if set(map(type, given)) == {bytes} else []


def range_bytes(bound: str | bytes | None, field: str) -> bytes:
    """A prefix or an end of a key range as it travels; None and empty mean no bound."""
    return b"" if not bound else key_bytes(bound, field)


def check_value(value: bytes, field: str = "value") -> bytes:
    """The value, if it is bytes and not too long."""
    if not isinstance(value, bytes):
        raise invalid(f"a value is bytes, not {type(value).__name__}", field)
    if len(value) > VALUE_MAX_BYTES:
        raise invalid(f"a value has at most {VALUE_MAX_BYTES:,} bytes, this one {len(value):,}", field, VALUE_MAX_BYTES)
    return value


def check_values(values: list[bytes]) -> list[bytes]:
    """The values of a batch, if each is bytes and not too long."""
    if values and set(map(type, values)) == {bytes} and max(map(len, values)) <= VALUE_MAX_BYTES:
        return values
    return [check_value(value, f"values[{index}]") for index, value in enumerate(values)]


def ttl_milliseconds(ttl: float | None) -> int:
    """A length of life in seconds as milliseconds on the wire; None is 0, for ever. Rounded up: 0 would mean for ever."""
    if ttl is None:
        return 0
    if not 0 < ttl <= TTL_MAX_S:
        raise invalid(f"ttl must be above 0 and at most {TTL_MAX_S:g} seconds, not {ttl!r}", "ttl")
    return math.ceil(ttl * 1000)


def check_condition(if_version: int | None, if_absent: bool) -> None:
    """Refuse a condition that cannot hold or contradicts itself."""
    if if_version is not None and if_absent:
        raise invalid("if_version and if_absent exclude each other", "condition")
    if if_version is not None and if_version < 1:
        raise invalid(f"a version is at least 1, not {if_version}; for a key that is absent use if_absent", "condition")


def check_timeout(timeout: float) -> float:
    """The timeout, if it is a length of time."""
    if not (timeout > 0 and math.isfinite(timeout)):
        raise invalid(f"timeout must be above 0 seconds, not {timeout!r}", "timeout")
    return timeout


def check_refresh(refresh: Refresh) -> Refresh:
    """What a write waits for, if it is that."""
    if refresh is not False and refresh is not True and refresh != "wait":
        raise invalid(f'refresh is False, True or "wait", not {refresh!r}', "refresh")
    return refresh


def check_min_versions(min_versions: bytes | Iterable[bytes]) -> list[bytes]:
    """The tokens of the writes that a search must see, if they are such."""
    tokens = [min_versions] if isinstance(min_versions, bytes) else list(min_versions)
    for token in tokens:
        if not isinstance(token, bytes):
            raise invalid(f"min_versions is a token, or several: bytes, not {type(token).__name__}", "min_versions")
    return [token for token in tokens if token]


def check_wanted_nearest(nearest: Nearest) -> Nearest:
    """What can be told of a wish for the nearest without the schema; arrays and tuples become lists of floats."""
    if not 0 <= nearest.k <= NEAREST_MAX:
        raise invalid(f"nearest.k must be 1 to {NEAREST_MAX:,}, not {nearest.k:,}", "nearest.k", NEAREST_MAX)
    try:
        return nearest._replace(vector=[float(each) for each in nearest.vector])
    except (TypeError, ValueError):
        raise invalid("nearest.vector is a list of numbers", "nearest.vector") from None


def check_search_limit(limit: int) -> int:
    """The number of hits wanted, if a page may have as many."""
    if not 0 <= limit <= SEARCH_MAX_LIMIT:
        raise invalid(f"limit must be 0 to {SEARCH_MAX_LIMIT:,}, not {limit:,}", "limit", SEARCH_MAX_LIMIT)
    return limit


def check_suggest_limit(limit: int) -> int:
    """The number of suggestions wanted, if an answer may have as many."""
    if not 1 <= limit <= SUGGEST_MAX_LIMIT:
        raise invalid(f"limit must be 1 to {SUGGEST_MAX_LIMIT}, not {limit:,}", "limit", SUGGEST_MAX_LIMIT)
    return limit


def key_after(key: bytes) -> bytes | None:
    """The least legal key greater than this one; None when there is none."""
    if len(key) < KEY_MAX_BYTES:
        return key + b"\0"
    # The longest keys have no longer neighbour: count up, as the keys were numbers.
    stem = key.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


def parse_address(address: str) -> str:
    """The address of a router, if it is host:port."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise invalid(f'a router\'s address is "host:port", not {address!r}', "router")
    return address


def batches(keys: Sequence[bytes], values: Sequence[bytes] | None = None) -> list[slice]:
    """Cut a batch, in order, into pieces of which each keeps within the service's limits."""
    if values is None:
        return [slice(start, start + BATCH_MAX_KEYS) for start in range(0, len(keys), BATCH_MAX_KEYS)]
    # The usual case. However long the keys may be, they fit, so that they need not be measured.
    if len(keys) <= BATCH_MAX_KEYS and len(keys) * KEY_MAX_BYTES + sum(map(len, values)) <= BATCH_MAX_BYTES:
        return [slice(0, len(keys))] if keys else []
    pieces: list[slice] = []
    start, size = 0, 0
    for index, (key, value) in enumerate(zip(keys, values, strict=True)):
        added = len(key) + len(value)
        if index > start and (index - start == BATCH_MAX_KEYS or size + added > BATCH_MAX_BYTES):
            pieces.append(slice(start, index))
            start, size = index, 0
        size += added
    if start < len(keys):
        pieces.append(slice(start, len(keys)))
    return pieces
