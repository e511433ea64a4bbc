"""Slow reads on the wire, and what a read asked for, in a few words."""

from collections.abc import Sequence
from typing import Final, TypeAlias

from google.protobuf import text_format

from kvshard.rpc.key_convert import timing_to_proto
from kvshard.v1 import cluster_pb2, kv_pb2, search_pb2
from router.slowlog import DETAIL_MAX_CHARS, SlowRead

_SHOWN_MAX_BYTES: Final = 4_096
"""Of a structured query that is written out; of most of it nothing would be seen."""

ReadRequest: TypeAlias = (
    kv_pb2.GetRequest | kv_pb2.BatchGetRequest | kv_pb2.ScanRequest | search_pb2.SearchRequest | search_pb2.SuggestRequest
)


def slow_read_to_proto(read: SlowRead, worker: str) -> cluster_pb2.SlowRead:
    """A read of the slow log of a worker."""
    return cluster_pb2.SlowRead(
        worker=worker,
        at_ms=read.at_ms,
        method=read.method,
        collection=read.collection,
        detail=read.detail,
        code=read.code,
        timing=timing_to_proto(read.timing),
    )


def detail_of(request: ReadRequest) -> str:
    """What a read asked for, for people; at most DETAIL_MAX_CHARS."""
    if isinstance(request, kv_pb2.GetRequest):
        text = f"key {_shown(request.key)}"
    elif isinstance(request, kv_pb2.BatchGetRequest):
        return detail_of_keys(request.keys)
    elif isinstance(request, kv_pb2.ScanRequest):
        bounds = (("prefix", request.prefix), ("from", request.start), ("to", request.end))
        parts = [f"{name} {_shown(bound)}" for name, bound in bounds if bound]
        parts += [f"limit {request.limit}"] if request.limit else []
        parts += ["keys only"] if request.keys_only else []
        text = ", ".join(parts) or "all keys"
    elif isinstance(request, search_pb2.SuggestRequest):
        text = f"suggest {request.text[: DETAIL_MAX_CHARS + 1]}"
    else:
        # A megabyte of query must not be copied for two hundred characters of it.
        parts = [
            request.query[: DETAIL_MAX_CHARS + 1] or "*",
            *(f"filter {each[:DETAIL_MAX_CHARS]}" for each in request.filters[:3]),
        ]
        parts += [f"structured {_structured(request)}"] if request.HasField("structured") else []
        parts += [f"facets {', '.join(request.facets[:3])}"] if request.facets else []
        parts += [f"aggregations {', '.join(each.name for each in request.aggregations[:3])}"] if request.aggregations else []
        parts += [f"shards {', '.join(map(str, request.shards[:8]))}"] if request.shards else []
        text = ", ".join(parts)
    return _cut(text)


def _structured(request: search_pb2.SearchRequest) -> str:
    """A structured query; of a large one only what kind it is."""
    if request.structured.ByteSize() > _SHOWN_MAX_BYTES:
        return request.structured.WhichOneof("kind") or "query"
    return text_format.MessageToString(request.structured, as_one_line=True)


def detail_of_keys(keys: Sequence[bytes]) -> str:
    """The same for the keys of a batch, or of single reads that came together."""
    return f"{len(keys):,} keys" if len(keys) != 1 else _cut(f"key {_shown(keys[0])}")


def _cut(text: str) -> str:
    return text if len(text) <= DETAIL_MAX_CHARS else text[: DETAIL_MAX_CHARS - 1] + "…"


def _shown(key: bytes) -> str:
    return repr(key[:DETAIL_MAX_CHARS].decode("utf-8", "backslashreplace"))
