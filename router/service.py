"""The public KV and Search services: wire messages into domain requests, domain answers into wire messages.

Nothing is decided here; the checks are in `requests`, the work in `kv`, `scan` and `search`.
"""

import asyncio
from contextlib import aclosing
from typing import TypeAlias

import grpc.aio

from kvshard.model import Refresh
from kvshard.rpc.key_convert import (
    coverage_to_proto,
    failures_to_proto,
    identity_of,
    policy_of,
    state_to_proto,
    timing_to_proto,
)
from kvshard.scatter.kv import KeyValueOperations
from kvshard.scatter.requests import (
    DEFAULT_READ_POLICY,
    ReadPolicy,
    RequestIdentity,
    WriteColumns,
    check_key,
    check_keys,
    check_ttl,
    check_value,
    condition_of,
    refuse,
    write_columns,
)
from kvshard.scatter.scan import ScanOperation
from kvshard.v1 import kv_pb2, kv_pb2_grpc, search_pb2, search_pb2_grpc, types_pb2
from router.calls import Calls, Context
from router.ledger_wire import detail_of
from router.reads import Reads
from router.scan_wire import page_to_proto, scan_request_of
from router.search_answers import SearchAnswers
from router.suggest import SuggestOperation
from router.suggest_wire import suggest_query_of, suggested_to_proto

_Write: TypeAlias = kv_pb2.PutRequest | kv_pb2.DeleteRequest | kv_pb2.BatchWriteRequest


class KVService(kv_pb2_grpc.KVServicer):
    """kvshard.v1.KV."""

    def __init__(self, calls: Calls, reads: Reads, operations: KeyValueOperations, scans: ScanOperation) -> None:
        self._calls = calls
        self._reads = reads
        self._operations = operations
        self._scans = scans

    async def Get(self, request: kv_pb2.GetRequest, context: Context) -> kv_pb2.GetResponse:
        """Reads one key."""
        async with self._reads.read("Get", context, len(request.key), request.collection, lambda: detail_of(request)) as times:
            key = request.key
            check_key(key)
            policy = _policy(request)
            read = await self._operations.get(request.collection, key, policy, self._calls.leg_deadline(context), times)
            response = kv_pb2.GetResponse()
            if read.value is not None:
                item = response.item
                item.key = key
                item.value = read.value
                item.version = read.version
                item.expires_at_ms = read.expires_at_ms
            if policy.is_stale:
                response.state.CopyFrom(state_to_proto(read.state))
            if policy.is_timing_wanted:
                response.timing.CopyFrom(timing_to_proto(times.timing(self._reads.clock.monotonic())))
        return response

    async def Put(self, request: kv_pb2.PutRequest, context: Context) -> kv_pb2.PutResponse:
        """Writes one key."""
        async with self._calls.call("Put", context, len(request.key) + len(request.value)):
            check_key(request.key)
            check_value(request.value)
            check_ttl(request.ttl_ms)
            condition = _condition(request.condition, "condition") if request.HasField("condition") else None
            columns = WriteColumns(
                keys=[request.key],
                values=[request.value],
                ttl_ms=[request.ttl_ms] if request.ttl_ms else [],
                conditions=[] if condition is None else [condition],
            )
            identity, deadline = _identity(request), self._calls.leg_deadline(context)
            written = await self._operations.write("Put", request.collection, columns, _refresh(request), deadline, identity)
        version, watermarks = written.versions[0], self._watermarks(request)
        return kv_pb2.PutResponse(version=version, watermarks=watermarks, written=written.token)

    async def Delete(self, request: kv_pb2.DeleteRequest, context: Context) -> kv_pb2.DeleteResponse:
        """Deletes one key."""
        async with self._calls.call("Delete", context, len(request.key)):
            check_key(request.key)
            condition = _condition(request.condition, "condition") if request.HasField("condition") else None
            columns = WriteColumns([request.key], [None], [], [] if condition is None else [condition])
            identity, deadline = _identity(request), self._calls.leg_deadline(context)
            written = await self._operations.write("Delete", request.collection, columns, _refresh(request), deadline, identity)
        existed, watermarks = written.existed[0], self._watermarks(request)
        return kv_pb2.DeleteResponse(existed=existed, watermarks=watermarks, written=written.token)

    async def BatchGet(self, request: kv_pb2.BatchGetRequest, context: Context) -> kv_pb2.BatchGetResponse:
        """Reads many keys."""
        async with self._reads.read(
            "BatchGet", context, request.ByteSize(), request.collection, lambda: detail_of(request)
        ) as times:
            keys = list(request.keys)
            check_keys(keys)
            policy = _policy(request)
            deadline = self._calls.leg_deadline(context)
            read = await self._operations.batch_get(request.collection, keys, policy, deadline, times)
            timing = times.timing(self._reads.clock.monotonic()) if policy.is_timing_wanted else None
            return kv_pb2.BatchGetResponse(
                values=[value or b"" for value in read.values],
                versions=read.versions,
                expires_at_ms=read.expires_at_ms,
                failures=failures_to_proto(read.failures),
                coverage=coverage_to_proto(read.coverage),
                timing=None if timing is None else timing_to_proto(timing),
                states=map(state_to_proto, read.states) if policy.is_stale else None,
            )

    async def BatchWrite(self, request: kv_pb2.BatchWriteRequest, context: Context) -> kv_pb2.BatchWriteResponse:
        """Writes many keys."""
        async with self._calls.call("BatchWrite", context, request.ByteSize()):
            conditions = [_condition(each, f"conditions[{i}]") for i, each in enumerate(request.conditions)]
            columns = write_columns(
                list(request.keys), list(request.values), list(request.deletes), list(request.ttl_ms), conditions
            )
            identity, deadline = _identity(request), self._calls.leg_deadline(context)
            written = await self._operations.batch_write(request.collection, columns, _refresh(request), deadline, identity)
            return kv_pb2.BatchWriteResponse(
                versions=written.versions,
                existed=written.existed,
                failures=failures_to_proto(written.failures),
                watermarks=self._watermarks(request),
                written=written.token,
            )

    def _watermarks(self, request: _Write) -> bytes:
        return self._operations.watermarks() if request.request_id.wants_watermarks else b""

    async def Scan(  # type: ignore[override]  # not a generator: a cancelled one would only be closed when it is collected
        self, request: kv_pb2.ScanRequest, context: Context
    ) -> None:
        """Streams keys in order. Each write waits until gRPC takes the message: that is the back-pressure."""
        async with self._reads.scan(context, len(request.token), request.collection, lambda: detail_of(request)) as times:
            scan, policy = scan_request_of(request)
            now = self._reads.clock.monotonic
            pages = self._scans.scan(request.collection, scan, policy, self._calls.stream_deadline(context), times)
            async with aclosing(pages):
                async for page in pages:
                    ready_at = now()
                    times.answered_at = times.answered_at or ready_at
                    is_timed = policy.is_timing_wanted and page.coverage is not None
                    message = page_to_proto(page, scan, policy, times.timing(ready_at) if is_timed else None)
                    try:
                        await context.write(message)
                    except grpc.aio.BaseError:  # The caller went away while it was to be written.
                        raise asyncio.CancelledError from None
                    times.paused_s += now() - ready_at


class SearchService(search_pb2_grpc.SearchServicer):
    """kvshard.v1.Search."""

    def __init__(
        self,
        calls: Calls,
        reads: Reads,
        answers: SearchAnswers,
        suggestions: SuggestOperation,
    ) -> None:
        self._calls = calls
        self._reads = reads
        self._answers = answers
        self._suggestions = suggestions

    async def Suggest(self, request: search_pb2.SuggestRequest, context: Context) -> search_pb2.SuggestResponse:
        """Completes and corrects what was typed."""
        async with self._reads.read(
            "Suggest", context, len(request.text), request.collection, lambda: detail_of(request)
        ) as times:
            query, policy = suggest_query_of(request), _policy(request)
            deadline = self._calls.leg_deadline(context)
            suggested = await self._suggestions.suggest(request.collection, query, policy, deadline, times)
            timing = times.timing(self._reads.clock.monotonic()) if policy.is_timing_wanted else None
            return suggested_to_proto(suggested, timing)

    async def Search(self, request: search_pb2.SearchRequest, context: Context) -> search_pb2.SearchResponse:
        """Finds the best documents for a query."""
        async with self._reads.read(
            "Search", context, len(request.query), request.collection, lambda: detail_of(request)
        ) as times:
            return await self._answers.answer(request, self._calls.leg_deadline(context), times)


def _policy(
    request: kv_pb2.GetRequest | kv_pb2.BatchGetRequest | kv_pb2.ScanRequest | search_pb2.SuggestRequest,
) -> ReadPolicy:
    if not request.HasField("options"):
        return DEFAULT_READ_POLICY
    return policy_of(request.options)


def _refresh(request: _Write) -> Refresh:
    if request.next_refresh and not request.refresh:
        refuse("next_refresh says how a write with refresh waits; set refresh", "next_refresh")
    return "wait" if request.next_refresh else request.refresh


def _identity(request: _Write) -> RequestIdentity | None:
    if not request.HasField("request_id"):
        return None
    keys = len(request.keys) if isinstance(request, kv_pb2.BatchWriteRequest) else 1
    return identity_of(request.request_id, keys)


def _condition(message: types_pb2.WriteCondition, field: str) -> int | None:
    kind = message.WhichOneof("condition")
    if kind == "if_version":
        return condition_of(message.if_version, None, field)
    return condition_of(None, message.if_absent if kind == "if_absent" else None, field)
