"""The etcd coordinator: the map's store for clusters of many machines, over etcd's v3 API (3.4 and newer).

Revisions are etcd's own: one count for everything in that etcd, so other users of it leave gaps in ours. A prefix stands
before every key. Connections, failover and login are `etcd_connection.py`.

What etcd does differently: leases last whole seconds and at least its own minimum (2 s by default), it ends them up to a second
late, and its restart or election gives all of them their full length again.
"""

import asyncio
import contextlib
import math
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import grpc
import structlog

from kvshard.clock import Clock
from kvshard.coordination.base import (
    Compare,
    Coordinator,
    CoordinatorUnavailable,
    Delete,
    Event,
    HistoryCompacted,
    KeyValue,
    LeaseExpired,
    Put,
    Snapshot,
    TxnResult,
    check_txn,
)
from kvshard.coordination.etcd_connection import CALL_TIMEOUT_S, EtcdConnection, EtcdRefused
from kvshard.coordination.etcd_url import EtcdOptions
from kvshard.coordination.v1 import etcd_pb2 as pb

BACKOFF_S = 0.05
BACKOFF_MAX_S = 2.0
"""Pause of a watch before it connects again, doubled each time up to the maximum: etcd's return is noticed within that, and a
hundred watches do not keep a struggling etcd down."""

_DELETED = 1
_EQUAL, _MOD = 0, 2

log = structlog.get_logger(__name__)


class EtcdCoordinator(Coordinator):
    """A handle on an etcd cluster. Nothing is opened before the first call."""

    def __init__(self, options: EtcdOptions, clock: Clock, rng: random.Random | None = None) -> None:
        self._prefix = options.prefix
        self._connection = EtcdConnection(options, clock)
        self._rng = rng or random.Random()

    def __repr__(self) -> str:
        return f"EtcdCoordinator({self._connection!r}, prefix={self._prefix!r})"

    async def get(self, key: str) -> KeyValue | None:
        """The key as it is now, or None."""
        request = pb.RangeRequest(key=self._encode(key))
        reply = await self._connection.unary("/etcdserverpb.KV/Range", request, pb.RangeResponse, is_repeatable=True)
        return self._item(reply.kvs[0]) if reply.kvs else None

    async def get_prefix(self, prefix: str) -> Snapshot:
        """All keys that begin with prefix, at one revision."""
        first = self._encode(prefix)
        request = pb.RangeRequest(key=first, range_end=_end_of(first))
        reply = await self._connection.unary("/etcdserverpb.KV/Range", request, pb.RangeResponse, is_repeatable=True)
        return Snapshot(reply.header.revision, tuple(self._item(kv) for kv in reply.kvs))

    async def txn(self, compares: Sequence[Compare], writes: Sequence[Put | Delete]) -> TxnResult:
        """Make all writes if every compare holds, else none. Sent once: a failure after that leaves the outcome unknown."""
        check_txn(compares, writes)
        request = pb.TxnRequest(success=[self._operation(write) for write in writes])
        for compare in compares:
            key = self._encode(compare.key)
            request.compare.add(result=_EQUAL, target=_MOD, key=key, mod_revision=compare.revision)
        if not writes:
            # A transaction that does nothing is answered from the member's own, perhaps old, state; one that reads is not.
            for branch in (request.success, request.failure):
                branch.add(request_range=pb.RangeRequest(key=self._encode(""), limit=1))
        try:
            reply = await self._connection.unary("/etcdserverpb.KV/Txn", request, pb.TxnResponse, is_repeatable=not writes)
        except EtcdRefused as error:
            if "lease not found" in error.text:
                raise LeaseExpired(f"a lease of {sorted(_leases(writes))} has ended") from error
            raise
        return TxnResult(reply.succeeded, reply.header.revision)

    async def watch(self, prefix: str, after_revision: int) -> AsyncIterator[list[Event]]:
        """Yield every later change of the keys under prefix; goes on after restarts of etcd and at other endpoints."""
        seen, failures = after_revision, 0
        while True:
            try:
                async with contextlib.aclosing(self._stream(prefix, seen)) as stream:
                    async for through, events in stream:
                        if failures:
                            log.info("watching etcd again", endpoint=self._connection.endpoint, revision=through)
                        seen, failures = through, 0
                        if events:
                            yield events
            except CoordinatorUnavailable as error:
                if self._connection.is_closed:
                    raise
                failures += 1
                if failures == 1:
                    log.warning("the watch of etcd broke, connecting again", revision=seen, error=str(error))
            longest = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** min(failures, 10))
            await self._connection.pause(longest * (0.5 + 0.5 * self._rng.random()))

    async def grant_lease(self, ttl_s: float) -> int:
        """A new lease of ttl_s seconds, rounded up to whole ones."""
        request = pb.LeaseGrantRequest(ttl=max(1, math.ceil(ttl_s)))
        # Repeatable: a lease whose name was lost on the way holds no key and ends by itself.
        reply = await self._connection.unary(
            "/etcdserverpb.Lease/LeaseGrant", request, pb.LeaseGrantResponse, is_repeatable=True
        )
        if reply.error:
            raise CoordinatorUnavailable(f"etcd grants no lease: {reply.error}")
        return reply.id

    async def keep_alive(self, lease: int) -> None:
        """Renew a lease for its full length."""
        request = pb.LeaseKeepAliveRequest(id=lease)
        path = "/etcdserverpb.Lease/LeaseKeepAlive"
        async with self._connection.stream(path, request, pb.LeaseKeepAliveResponse) as stream:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                reply = await stream.read()
        if reply.ttl <= 0:
            raise LeaseExpired(f"lease {lease} has ended")

    async def revoke_lease(self, lease: int) -> None:
        """End a lease now and delete its keys."""
        request = pb.LeaseRevokeRequest(id=lease)
        path = "/etcdserverpb.Lease/LeaseRevoke"
        try:
            await self._connection.unary(path, request, pb.LeaseRevokeResponse, is_repeatable=True)
        except EtcdRefused as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise

    async def close(self) -> None:
        """Close the connections; calls and watches that are under way raise CoordinatorUnavailable."""
        await self._connection.close()

    async def _stream(self, prefix: str, seen: int) -> AsyncGenerator[tuple[int, list[Event]], None]:
        """One watch stream: the revision through which everything has been seen, and what is new."""
        first = self._encode(prefix)
        # From the last revision seen and not the one after it: etcd refuses only starts before its compaction, and keeps no
        # deletes of the compacted revision itself, so a start right there could miss some.
        create = pb.WatchCreateRequest(key=first, range_end=_end_of(first), start_revision=max(1, seen), progress_notify=True)
        request = pb.WatchRequest(create_request=create)
        async with self._connection.stream("/etcdserverpb.Watch/Watch", request, pb.WatchResponse) as stream:
            while True:
                response = await stream.read()
                if response.compact_revision:
                    through = response.compact_revision
                    raise HistoryCompacted(f"changes after revision {seen} are gone, they begin after {through}")
                if response.canceled:
                    raise CoordinatorUnavailable(f"etcd ended the watch: {response.cancel_reason or 'no reason given'}")
                events = [self._event(event) for event in response.events if event.kv.mod_revision > seen]
                if response.events:
                    seen = max(seen, response.events[-1].kv.mod_revision)
                elif not response.created:
                    seen = max(seen, response.header.revision)
                yield seen, events

    def _operation(self, write: Put | Delete) -> pb.RequestOp:
        key = self._encode(write.key)
        if isinstance(write, Delete):
            return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
        return pb.RequestOp(request_put=pb.PutRequest(key=key, value=write.value, lease=write.lease or 0))

    def _encode(self, key: str) -> bytes:
        return f"{self._prefix}{key}".encode()

    def _decode(self, key: bytes) -> str:
        return key[len(self._prefix.encode()) :].decode(errors="replace")

    def _item(self, kv: pb.KeyValue) -> KeyValue:
        return KeyValue(self._decode(kv.key), kv.value, kv.mod_revision)

    def _event(self, event: pb.Event) -> Event:
        return Event(self._decode(event.kv.key), None if event.type == _DELETED else event.kv.value, event.kv.mod_revision)


def _leases(writes: Sequence[Put | Delete]) -> set[int]:
    return {write.lease for write in writes if isinstance(write, Put) and write.lease is not None}


def _end_of(prefix: bytes) -> bytes:
    """The first key after all that begin with prefix, which is text and so has a byte below 0xff."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1])
