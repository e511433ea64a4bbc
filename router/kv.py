"""Point and batch operations: a key goes to its shard's leaf, a batch is cut into one leg a shard and put together again.

Requests come checked (`requests`), answers go out in the order of the request. Each write has an id, its client's or one of
this router's own, so that it may be sent again. A batch write never fails whole because a shard is silent: each of its keys
then has a failure of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap, Collection
from kvshard.errors import ErrorDetails, ErrorRecord, Internal, ResourceExhausted, error_of, record_of
from kvshard.model import ShardRead, ShardReadReply, ShardWrite, ShardWriteReply
from kvshard.request_ids import WriteName, WriteNames
from kvshard.rpc.leaf_client import LeafClient
from router.coverage import Coverage, KnownCounts
from router.gather import ReadState, verdict
from router.ledger import Timing, micros, timing_of
from router.leg import REPEATED, USUALLY, Heard, How, how_to_read
from router.requests import ReadPolicy, RequestIdentity, WriteColumns
from router.routes import MapSource, resolve
from router.scatter import LegResult, Scatter
from router.watermarks import Watermarks

ANSWER_MAX_BYTES = 48 * 1024 * 1024
"""Values of one answer: 10,000 keys may name 80 GB. Stays under MESSAGE_MAX_BYTES with room for keys, versions and failures."""


@dataclass(frozen=True, slots=True)
class PointRead:
    """One key as read; value None: it is absent. state: of the shard, as the read saw it."""

    value: bytes | None
    version: int
    expires_at_ms: int
    leg: LegResult[ShardReadReply]
    state: ReadState


@dataclass(frozen=True, slots=True)
class BatchRead:
    """Columns parallel to the keys asked for. values are empty where the key is absent or failed, versions 0 likewise.

    expires_at_ms is empty when no key expires. failures: (index, error), by index. states: by shard.
    """

    values: list[bytes]
    versions: list[int]
    expires_at_ms: list[int]
    failures: list[tuple[int, ErrorRecord]]
    coverage: Coverage
    timing: Timing
    states: list[ReadState]


@dataclass(frozen=True, slots=True)
class BatchWritten:
    """Columns parallel to the keys written. failures: (index, error), by index; the others are durable."""

    versions: list[int]
    existed: list[bool]
    failures: list[tuple[int, ErrorRecord]]


class KeyValueOperations:
    """Get, Put, Delete, BatchGet and BatchWrite in domain terms."""

    def __init__(
        self,
        maps: MapSource,
        leaves: LeafClient,
        scatter: Scatter,
        known: KnownCounts,
        clock: Clock,
        rng: Random | None = None,
    ) -> None:
        # The name must differ from that of every other router and of its own earlier runs.
        self._names = WriteNames(f"router-{(rng or Random()).getrandbits(96):024x}")
        self._maps = maps
        self._leaves = leaves
        self._scatter = scatter
        self._known = known
        self._clock = clock

    async def get(self, collection_name: str, key: bytes, policy: ReadPolicy, deadline: float) -> PointRead:
        """Read one key."""
        cluster_map, collection = await resolve(self._maps, collection_name)
        shard = cluster_map.shard_of_key(key)
        request = ShardRead(shard, cluster_map.shards[shard].epoch, collection.id, [key], policy.is_stale)
        leg = await self._scatter.ask("Get", self._leaves.read, request, deadline, how_to_read(policy))
        reply = leg.reply
        if reply.errors:
            raise error_of(reply.errors[0])
        expires_at_ms = reply.expires_at_ms[0] if reply.expires_at_ms else 0
        state = ReadState(shard, reply.seqno, reply.age_ms)
        return PointRead(reply.values[0], reply.versions[0], expires_at_ms, leg, state)

    def watermarks(self) -> bytes:
        """What this router knows of the shards, for a client to give back with the repetition of a later write."""
        return self._scatter.heard.committed.encode()

    async def write(
        self,
        method: str,
        collection_name: str,
        columns: WriteColumns,
        wait_for_refresh: bool,
        deadline: float,
        identity: RequestIdentity | None = None,
    ) -> tuple[int, bool]:
        """Write or delete the one key of the columns; returns its version and whether it was there before."""
        cluster_map, collection = await resolve(self._maps, collection_name)
        shard = cluster_map.shard_of_key(columns.keys[0])
        with _WriteId(identity, self._names, self._scatter.heard) as id:
            request = _shard_write(cluster_map, shard, collection, columns, wait_for_refresh, id)
            leg = await self._scatter.ask(method, self._leaves.write, request, deadline, id.how)
        self._note_refreshed([request], [leg])
        reply = leg.reply
        if reply.errors:
            raise error_of(reply.errors[0])
        return reply.versions[0], reply.existed[0]

    async def batch_get(self, collection_name: str, keys: list[bytes], policy: ReadPolicy, deadline: float) -> BatchRead:
        """Read many keys. Raises Unavailable when the coverage falls short and the policy does not accept a part."""
        began = self._clock.monotonic()
        cluster_map, collection = await resolve(self._maps, collection_name)
        parts = _split(cluster_map, keys)
        requests = [
            ShardRead(shard, cluster_map.shards[shard].epoch, collection.id, [keys[i] for i in indices], policy.is_stale)
            for shard, indices in parts.items()
        ]
        legs = await self._scatter.gather("BatchGet", self._leaves.read, requests, deadline, how_to_read(policy))
        for leg in legs:
            if leg.answer is not None:
                self._known.learn(collection.id, leg.shard, leg.answer.reply.documents)
        answered = {leg.shard: leg.answer.reply.documents for leg in legs if leg.answer is not None}
        coverage = verdict(legs, answered, self._known.of(collection.id), policy)
        gathered = self._clock.monotonic()
        columns = _ReadColumns(len(keys))
        for leg in legs:
            columns.take(parts[leg.shard], leg)
        columns.failures.sort(key=lambda failure: failure[0])
        ended = self._clock.monotonic()
        timing = timing_of((leg.as_time() for leg in legs), micros(ended - began), micros(ended - gathered))
        expires_at_ms = columns.expires_at_ms if any(columns.expires_at_ms) else []
        answers = ((leg.shard, leg.answer.reply) for leg in legs if leg.answer is not None)
        states = [ReadState(shard, reply.seqno, reply.age_ms) for shard, reply in sorted(answers, key=lambda pair: pair[0])]
        return BatchRead(columns.values, columns.versions, expires_at_ms, columns.failures, coverage, timing, states)

    async def batch_write(
        self,
        collection_name: str,
        columns: WriteColumns,
        wait_for_refresh: bool,
        deadline: float,
        identity: RequestIdentity | None = None,
    ) -> BatchWritten:
        """Write many keys; those of one shard take effect together, in order, those of different shards independently."""
        cluster_map, collection = await resolve(self._maps, collection_name)
        parts = _split(cluster_map, columns.keys)
        with _WriteId(identity, self._names, self._scatter.heard) as id:
            requests = [
                _shard_write(cluster_map, shard, collection, _pick(columns, indices), wait_for_refresh, id)
                for shard, indices in parts.items()
            ]
            legs = await self._scatter.gather("BatchWrite", self._leaves.write, requests, deadline, id.how)
        self._note_refreshed(requests, legs)
        written = BatchWritten([0] * len(columns.keys), [False] * len(columns.keys), [])
        for leg in legs:
            _take_written(written, parts[leg.shard], leg)
        written.failures.sort(key=lambda failure: failure[0])
        return written

    def _note_refreshed(self, requests: Sequence[ShardWrite], legs: Sequence[LegResult[ShardWriteReply]]) -> None:
        """A search through this router must see these writes, whichever replica answers it."""
        for request, leg in zip(requests, legs, strict=True):
            if request.wait_for_refresh and leg.answer is not None:
                self._scatter.heard.refreshed.learn(leg.shard, leg.answer.reply.seqno)


class _WriteId:
    """The request id that a write goes under: its client's, or one of the router's own, which is given back at the end.

    known: what is known of the shards from before the first sending. how: whether there may have been a sending before.
    """

    __slots__ = ("_names", "_own", "client", "how", "known", "number")

    def __init__(self, identity: RequestIdentity | None, names: WriteNames, heard: Heard) -> None:
        self._names = names
        self._own: WriteName | None = None
        self.known: Watermarks = heard.committed
        self.how: How = USUALLY
        if identity is None:
            self._own = names.take()
            self.client, self.number = self._own
        else:
            self.client, self.number = identity.client, identity.number
            if identity.is_retry:
                self.known, self.how = identity.known, REPEATED

    def __enter__(self) -> "_WriteId":
        return self

    def __exit__(self, *_: object) -> None:
        if self._own is not None:
            self._names.give_back(self._own)


def _split(cluster_map: ClusterMap, keys: Sequence[bytes]) -> dict[int, list[int]]:
    """Shard -> indices of its keys, in order."""
    parts: dict[int, list[int]] = {}
    shard_of_key = cluster_map.shard_of_key
    for index, key in enumerate(keys):
        shard = shard_of_key(key)
        if shard in parts:
            parts[shard].append(index)
        else:
            parts[shard] = [index]
    return parts


def _pick(columns: WriteColumns, indices: list[int]) -> WriteColumns:
    """The columns of these indices; an unused column stays unused."""
    if len(indices) == len(columns.keys):
        return columns
    return WriteColumns(
        keys=[columns.keys[i] for i in indices],
        values=[columns.values[i] for i in indices],
        ttl_ms=[columns.ttl_ms[i] for i in indices] if columns.ttl_ms else [],
        conditions=[columns.conditions[i] for i in indices] if columns.conditions else [],
    )


def _shard_write(
    cluster_map: ClusterMap, shard: int, collection: Collection, columns: WriteColumns, wait_for_refresh: bool, id: _WriteId
) -> ShardWrite:
    return ShardWrite(
        shard=shard,
        epoch=cluster_map.shards[shard].epoch,
        collection_id=collection.id,
        keys=columns.keys,
        values=columns.values,
        ttl_ms=columns.ttl_ms,
        conditions=columns.conditions,
        # A collection of plain values has no index that could be refreshed.
        wait_for_refresh=wait_for_refresh and bool(collection.schema),
        client=id.client,
        number=id.number,
        since=id.known.of(shard),
    )


class _ReadColumns:
    """The answer of a batch read as it grows, leg by leg."""

    def __init__(self, count: int) -> None:
        self.values = [b""] * count
        self.versions = [0] * count
        self.expires_at_ms = [0] * count
        self.failures: list[tuple[int, ErrorRecord]] = []
        self._size = 0

    def take(self, indices: list[int], leg: LegResult[ShardReadReply]) -> None:
        """Put a leg's keys at their places; all of them fail when the leg did, or when the answer would get too large."""
        failure = _leg_failure(leg, len(indices))
        if failure is None:
            reply = leg.reply
            size = sum(len(value) for value in reply.values if value)
            if self._size + size <= ANSWER_MAX_BYTES:
                self._size += size
                self._place(indices, reply)
                return
            failure = record_of(
                ResourceExhausted(
                    f"the answer would exceed {ANSWER_MAX_BYTES} bytes; ask for fewer keys at once",
                    ErrorDetails(field="keys", limit=ANSWER_MAX_BYTES),
                )
            )
        self.failures.extend((index, failure) for index in indices)

    def _place(self, indices: list[int], reply: ShardReadReply) -> None:
        for index, value, version in zip(indices, reply.values, reply.versions, strict=True):
            if value is not None:
                self.values[index] = value
                self.versions[index] = version
        if reply.expires_at_ms:
            for index, expires_at_ms in zip(indices, reply.expires_at_ms, strict=True):
                self.expires_at_ms[index] = expires_at_ms
        self.failures.extend((indices[place], record) for place, record in reply.errors.items())


def _take_written(written: BatchWritten, indices: list[int], leg: LegResult[ShardWriteReply]) -> None:
    failure = _leg_failure(leg, len(indices))
    if failure is not None:
        written.failures.extend((index, failure) for index in indices)
        return
    reply = leg.reply
    for index, version, existed in zip(indices, reply.versions, reply.existed, strict=True):
        written.versions[index] = version
        written.existed[index] = existed
    written.failures.extend((indices[place], record) for place, record in reply.errors.items())


def _leg_failure(leg: LegResult[ShardReadReply] | LegResult[ShardWriteReply], count: int) -> ErrorRecord | None:
    """Why all keys of a leg failed; None when the leg answered. Columns of a wrong length are a failure."""
    error = leg.error
    if error is None and len(leg.reply.versions) != count:
        error = Internal(
            f"shard {leg.shard} answered {len(leg.reply.versions)} keys instead of {count}", ErrorDetails(shards=(leg.shard,))
        )
    return None if error is None else record_of(error)
