"""Operations on keys by the unary methods of KV: for routers that serve no lanes.

A frame with one operation of its own is a Get, a Put or a Delete; any other frame is a batch. A frame of single reads accepts
what there is, since each of them fails for itself.
"""

from functools import lru_cache

from kvshard.client.routers import Routers
from kvshard.lane_messages import KeysRead, KeysReadReply, KeysWrite, KeysWriteReply
from kvshard.rpc.key_convert import rest_of_write
from kvshard.v1 import kv_pb2, types_pb2

_OPTIONS_KEPT = 64
"""Options that were made to accept a part; a client has a handful."""


async def read(routers: Routers, request: KeysRead, timeout: float) -> KeysReadReply:
    """Read keys, once. Raises a KvShardError."""
    if request.is_each_alone and len(request.keys) == 1:
        return await _get(routers, request, timeout)
    options = _accepting_a_part(request.options) if request.is_each_alone else request.options
    message = kv_pb2.BatchGetRequest(
        collection=request.collection, keys=request.keys, options=types_pb2.ReadOptions.FromString(options)
    )
    found = await routers.call(lambda stubs: stubs.kv.BatchGet, message, timeout=timeout, is_write=False)
    versions = list(found.versions)
    values = [value if version else None for value, version in zip(found.values, versions, strict=True)]
    expires_at_ms = list(found.expires_at_ms)
    for column in ("values", "versions", "expires_at_ms"):
        found.ClearField(column)
    if request.is_each_alone:
        found.ClearField("coverage")
    return KeysReadReply(values, versions, expires_at_ms, found.SerializeToString())


async def _get(routers: Routers, request: KeysRead, timeout: float) -> KeysReadReply:
    options = types_pb2.ReadOptions.FromString(request.options)
    message = kv_pb2.GetRequest(collection=request.collection, key=request.keys[0], options=options)
    found = await routers.call(lambda stubs: stubs.kv.Get, message, timeout=timeout, is_write=False)
    rest = kv_pb2.BatchGetResponse()
    if found.HasField("timing"):
        rest.timing.CopyFrom(found.timing)
    if found.HasField("state"):
        rest.states.append(found.state)
    if not found.HasField("item"):
        return KeysReadReply([None], [0], [], rest.SerializeToString())
    item = found.item
    expires_at_ms = [item.expires_at_ms] if item.expires_at_ms else []
    return KeysReadReply([item.value], [item.version], expires_at_ms, rest.SerializeToString())


async def write(routers: Routers, request: KeysWrite, timeout: float) -> KeysWriteReply:
    """Write keys, once. Raises a KvShardError."""
    id = types_pb2.RequestId.FromString(request.request_id)
    if request.is_each_alone and len(request.keys) == 1:
        put_or_delete = _delete if request.values[0] is None else _put
        return await put_or_delete(routers, request, id, timeout)
    deletes = [value is None for value in request.values]
    message = kv_pb2.BatchWriteRequest(
        collection=request.collection,
        keys=request.keys,
        values=[value or b"" for value in request.values],
        deletes=deletes if any(deletes) else None,
        ttl_ms=request.ttl_ms,
        conditions=[_condition(condition) or types_pb2.WriteCondition() for condition in request.conditions],
        refresh=request.refresh,
        next_refresh=request.next_refresh,
        request_id=id,
    )
    written = await routers.call(lambda stubs: stubs.kv.BatchWrite, message, timeout=timeout, is_write=True)
    versions, existed = list(written.versions), list(written.existed)
    written.ClearField("versions")
    written.ClearField("existed")
    return KeysWriteReply(versions, existed, written.SerializeToString())


async def _put(routers: Routers, request: KeysWrite, id: types_pb2.RequestId, timeout: float) -> KeysWriteReply:
    message = kv_pb2.PutRequest(
        collection=request.collection,
        key=request.keys[0],
        value=request.values[0] or b"",
        ttl_ms=request.ttl_ms[0] if request.ttl_ms else 0,
        condition=_condition(request.conditions[0] if request.conditions else None),
        refresh=request.refresh,
        next_refresh=request.next_refresh,
        request_id=id,
    )
    written = await routers.call(lambda stubs: stubs.kv.Put, message, timeout=timeout, is_write=True)
    return KeysWriteReply([written.version], [False], _rest(written))


async def _delete(routers: Routers, request: KeysWrite, id: types_pb2.RequestId, timeout: float) -> KeysWriteReply:
    message = kv_pb2.DeleteRequest(
        collection=request.collection,
        key=request.keys[0],
        condition=_condition(request.conditions[0] if request.conditions else None),
        refresh=request.refresh,
        next_refresh=request.next_refresh,
        request_id=id,
    )
    written = await routers.call(lambda stubs: stubs.kv.Delete, message, timeout=timeout, is_write=True)
    return KeysWriteReply([0], [written.existed], _rest(written))


def _rest(response: kv_pb2.PutResponse | kv_pb2.DeleteResponse) -> bytes:
    return rest_of_write((), response.watermarks, response.written)


def _condition(condition: int | None) -> types_pb2.WriteCondition | None:
    if condition is None:
        return None
    if condition == 0:
        return types_pb2.WriteCondition(if_absent=True)
    return types_pb2.WriteCondition(if_version=condition)


@lru_cache(maxsize=_OPTIONS_KEPT)
def _accepting_a_part(options: bytes) -> bytes:
    message = types_pb2.ReadOptions.FromString(options)
    message.on_shortfall = types_pb2.SHORTFALL_POLICY_PARTIAL
    return message.SerializeToString()
