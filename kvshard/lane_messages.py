"""What the Python client and routers say to each other on a lane, as plain data.

The lane (`kvshard/rpc/lane.py`) carries these dataclasses as msgpack maps: columns (parallel lists) where the public methods
have protobuf messages. What is rare travels as the public message itself, in bytes. A field may be added with a default; none
may be renamed or change its meaning, since the two ends may run different versions. They are not
frozen, for the reason that `kvshard/model.py` gives; nobody changes one.

Pure: imports only the standard library and other pure files.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class KeysRead:
    """Read keys of a collection. options: a `ReadOptions` message; empty: the service's defaults.

    is_each_alone: each key is a call of its own that a batcher has put beside others. One that fails then fails alone, whatever
    the options say about coverage, and the answer tells none. The only key of a frame fails as the frame does: with its error.
    """

    collection: str
    keys: list[bytes]
    options: bytes = b""
    is_each_alone: bool = False


@dataclass(slots=True)
class KeysReadReply:
    """Columns parallel to the keys. values: None where the key is absent or failed; versions: 0 likewise.

    expires_at_ms is empty when no key expires. rest: a `BatchGetResponse` message without these columns: failures, coverage,
    timing, states; empty when there is nothing to tell.
    """

    values: list[bytes | None]
    versions: list[int]
    expires_at_ms: list[int] = field(default_factory=list)
    rest: bytes = b""


@dataclass(slots=True)
class KeysWrite:
    """Write keys of a collection, in order. Columns parallel to the keys; an optional column is empty when unused.

    values: None deletes. ttl_ms, conditions, refresh, next_refresh: as in `model.ShardWrite` (refresh: wait_for_refresh).
    request_id: a `RequestId` message. is_each_alone: as in KeysRead.
    """

    collection: str
    keys: list[bytes]
    values: list[bytes | None]
    ttl_ms: list[int] = field(default_factory=list)
    conditions: list[int | None] = field(default_factory=list)
    refresh: bool = False
    request_id: bytes = b""
    is_each_alone: bool = False
    next_refresh: bool = False


@dataclass(slots=True)
class KeysWriteReply:
    """Columns parallel to the keys. versions: the new version, 0 where it failed or deleted an absent key. existed: the key was
    there before. rest: a `BatchWriteResponse` message without these columns: failures, watermarks, written; empty: none."""

    versions: list[int]
    existed: list[bool]
    rest: bytes = b""


@dataclass(frozen=True, slots=True)
class KeysScan:
    """Read the first page of a scan. request: a `ScanRequest` message, which has a limit.

    A short scan is one page. What a page leaves over is read as a stream: that has flow control, which a lane has not.
    """

    request: bytes


@dataclass(frozen=True, slots=True)
class KeysScanReply:
    """Columns, keys ascending. values: empty when only keys were asked for; expires_at_ms: empty when no key expires.

    is_end: no key lies behind these. rest: a `ScanResponse` message without the columns; as there, coverage is set on the last
    page: without it this one was cut by its size.
    """

    keys: list[bytes]
    values: list[bytes]
    versions: list[int]
    expires_at_ms: list[int] = field(default_factory=list)
    is_end: bool = False
    rest: bytes = b""


@dataclass(frozen=True, slots=True)
class DocumentsSearch:
    """Search the documents of a collection, or of several. request: a `SearchRequest` message."""

    request: bytes


@dataclass(frozen=True, slots=True)
class DocumentsSearchReply:
    """What was found. response: a `SearchResponse` message."""

    response: bytes
