"""What a write request does, key by key: conditions against the newest state, and the operation that goes into the log.

The newest state of a key is what earlier keys of the same request leave, else what entries in flight leave, else what is
stored. An expired key counts as absent. The plan is resolved: the operation in the log has no conditions left, so that every
replica applies it alike.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from kvshard.errors import ErrorDetails, ErrorRecord, InvalidArgument, KvShardError, VersionConflict, record_of
from kvshard.limits import BATCH_MAX_BYTES, BATCH_MAX_KEYS, KEY_MAX_BYTES, VALUE_MAX_BYTES
from kvshard.model import ABSENT, NEVER, ShardWrite, ShardWriteReply
from leaf.layout import Header
from leaf.operations import EXPIRES_MAX_MS, WriteOperation
from leaf.pending import Latest

Validate: TypeAlias = Callable[[bytes], object]
"""Raises InvalidArgument for a value that the collection's schema refuses."""


@dataclass(frozen=True, slots=True)
class WritePlan:
    """operation: None when nothing is to be done. size: its bytes of keys and values. reply: what to answer once it is durable.

    depends_on: the newest entry in flight that the reply rests on; it must not be shown before that one is committed.
    """

    operation: WriteOperation | None
    size: int
    reply: ShardWriteReply
    depends_on: int


def check_request(request: ShardWrite) -> int:
    """The bytes of keys and values. Raises InvalidArgument for a batch over the limits or with columns of unequal length."""
    count = len(request.keys)
    if count > BATCH_MAX_KEYS:
        message = f"a batch may have at most {BATCH_MAX_KEYS} keys, not {count}"
        raise InvalidArgument(message, ErrorDetails(field="keys", limit=BATCH_MAX_KEYS))
    for name, column, is_optional in (
        ("values", request.values, False),
        ("ttl_ms", request.ttl_ms, True),
        ("positions", request.positions, True),
        ("conditions", request.conditions, True),
    ):
        if len(column) != count and not (is_optional and not column):
            raise InvalidArgument(f"{name} has {len(column)} entries for {count} keys", ErrorDetails(field=name))
    places = request.positions
    if places and (min(places) < 0 or max(places) >= request.total or request.total > BATCH_MAX_KEYS):
        text = f"positions must lie below total, and that may be {BATCH_MAX_KEYS} at most, not {request.total}"
        raise InvalidArgument(text, ErrorDetails(field="positions", limit=BATCH_MAX_KEYS))
    size = sum(map(len, request.keys)) + sum(map(len, filter(None, request.values)))
    if size > BATCH_MAX_BYTES:
        message = f"a batch may have at most {BATCH_MAX_BYTES} bytes, not {size}"
        raise InvalidArgument(message, ErrorDetails(field="keys", limit=BATCH_MAX_BYTES))
    return size


def check_key(key: bytes) -> None:
    """Raise InvalidArgument unless the key's length is legal."""
    if not 1 <= len(key) <= KEY_MAX_BYTES:
        message = f"a key must have 1 to {KEY_MAX_BYTES} bytes, not {len(key)}"
        raise InvalidArgument(message, ErrorDetails(field="key", limit=KEY_MAX_BYTES))


def invalid_keys(request: ShardWrite, validate: Validate | None) -> dict[int, ErrorRecord]:
    """The keys, by index, that the request may not write whatever the state is."""
    if validate is None and _are_fine(request):
        return {}
    errors: dict[int, ErrorRecord] = {}
    ttls = request.ttl_ms
    for index, (key, value) in enumerate(zip(request.keys, request.values, strict=True)):
        try:
            if not 1 <= len(key) <= KEY_MAX_BYTES:
                check_key(key)
            if value is not None:
                if len(value) > VALUE_MAX_BYTES:
                    message = f"a value may have at most {VALUE_MAX_BYTES} bytes, not {len(value)}"
                    raise InvalidArgument(message, ErrorDetails(field="value", limit=VALUE_MAX_BYTES))
                if validate is not None:
                    validate(value)
            if ttls and ttls[index] < 0:
                raise InvalidArgument(f"ttl_ms must not be negative, not {ttls[index]}", ErrorDetails(field="ttl_ms"))
        except KvShardError as error:
            errors[index] = record_of(error)
    return errors


def _are_fine(request: ShardWrite) -> bool:
    """Whether no key, value or length of life is against the limits: the common case, in a fraction of a look at each."""
    lengths = list(map(len, request.keys))
    longest = max(map(len, filter(None, request.values)), default=0)
    is_legal = min(lengths, default=1) >= 1 and max(lengths, default=1) <= KEY_MAX_BYTES and longest <= VALUE_MAX_BYTES
    return is_legal and min(request.ttl_ms, default=0) >= 0


def plan_write(
    request: ShardWrite,
    seqno: int,
    errors: dict[int, ErrorRecord],
    pending: Mapping[bytes, Latest],
    stored: Sequence[Header | None],
    now_ms: int,
) -> WritePlan:
    """Resolve a request. errors: the keys that `invalid_keys` refused. stored: headers parallel to the keys."""
    keys = request.keys
    # To look for None costs much more than to see that no value is empty either.
    has_deletes = not all(request.values) and None in request.values
    is_plain = not (errors or pending or request.conditions or any(request.ttl_ms) or has_deletes)
    if is_plain and len(set(keys)) == len(keys):
        return _plan_plain(request, seqno, stored, now_ms)
    return plan_each(request, seqno, errors, pending, stored, now_ms)


def _plan_plain(request: ShardWrite, seqno: int, stored: Sequence[Header | None], now_ms: int) -> WritePlan:
    """The common case, unconditional puts of different keys, in a fraction of the time of plan_each; the plan is the same."""
    existed = [False] * len(stored)
    if any(stored):
        existed = [header is not None and not 0 < header[1] <= now_ms for header in stored]
    size = sum(map(len, request.keys)) + sum(map(len, filter(None, request.values)))
    operation = WriteOperation(request.collection_id, request.keys, request.values) if request.keys else None
    return WritePlan(operation, size, ShardWriteReply([seqno] * len(existed), existed), 0)


def plan_each(
    request: ShardWrite,
    seqno: int,
    errors: dict[int, ErrorRecord],
    pending: Mapping[bytes, Latest],
    stored: Sequence[Header | None],
    now_ms: int,
) -> WritePlan:
    """What plan_write does, key by key."""
    versions: list[int] = []
    existed: list[bool] = []
    written: dict[bytes, Latest] = {}
    keys: list[bytes] = []
    values: list[bytes | None] = []
    expiries: list[int] = []
    errors = dict(errors)
    depends_on = size = 0
    conditions, ttls = request.conditions, request.ttl_ms
    for index, (key, value) in enumerate(zip(request.keys, request.values, strict=True)):
        if index in errors:
            versions.append(ABSENT)
            existed.append(False)
            continue
        latest = written.get(key) or pending.get(key)
        if latest is not None:
            current = ABSENT if 0 < latest.expires_at_ms <= now_ms else latest.version
            depends_on = max(depends_on, latest.seqno) if latest.seqno != seqno else depends_on
        else:
            header = stored[index]
            current = ABSENT if header is None or 0 < header[1] <= now_ms else header[0]
        wanted = conditions[index] if conditions else None
        if wanted is not None and wanted != current:
            errors[index] = _conflict(wanted, current)
        is_done = not (index in errors or (value is None and current == ABSENT))
        existed.append(current != ABSENT and index not in errors)
        versions.append(seqno if is_done else ABSENT)
        if not is_done:
            continue
        ttl_ms = ttls[index] if ttls and value is not None else 0
        expires_at_ms = min(now_ms + ttl_ms, EXPIRES_MAX_MS) if ttl_ms else NEVER
        written[key] = Latest(seqno, ABSENT if value is None else seqno, expires_at_ms)
        keys.append(key)
        values.append(value)
        expiries.append(expires_at_ms)
        size += len(key) + (len(value) if value is not None else 0)
    operation = WriteOperation(request.collection_id, keys, values, expiries if any(expiries) else []) if keys else None
    return WritePlan(operation, size, ShardWriteReply(versions, existed, errors), depends_on)


def _conflict(wanted: int, current: int) -> ErrorRecord:
    found = "the key is absent" if current == ABSENT else f"its version is {current}"
    expected = "be absent" if wanted == ABSENT else f"have version {wanted}"
    return record_of(VersionConflict(f"the key must {expected}, but {found}", ErrorDetails(current_version=current)))


def plan_expiry(
    due: Sequence[tuple[bytes, int]], pending: Mapping[bytes, Latest], stored: Sequence[Header | None]
) -> tuple[list[bytes], list[int]]:
    """What is to become of the due expiry rows (key, expires_at_ms) of one collection: (keys to delete, indices of stale rows).

    A key that was written since is left alone: an expiry takes away only the very value that it was set with.
    """
    deletes: list[bytes] = []
    stale: list[int] = []
    for index, ((key, expires_at_ms), header) in enumerate(zip(due, stored, strict=True)):
        if header is None or header[1] != expires_at_ms:
            stale.append(index)
        elif key not in pending:
            deletes.append(key)
    return deletes, stale
