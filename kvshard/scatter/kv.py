"""Point and batch operations: a key goes to its shard's leaf, a batch is cut into one leg a shard and put together again.

Keys that a split has moved meanwhile are sent to their new shard, under the same request id (`moved`).

Requests come checked (`requests`), answers go out in the order of the request. Each write has an id, its client's or one of
this router's own, so that it may be sent again. A batch write never fails whole because a shard is silent: each of its keys
then has a failure of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap, Collection
from kvshard.errors import ErrorRecord, error_of, record_of
from kvshard.model import Refresh, ShardRead, ShardReadReply, ShardWrite, ShardWriteReply
from kvshard.request_ids import WriteName, WriteNames
from kvshard.rpc.leaf_client import LeafClient
from kvshard.scatter.batches import BatchWritten as BatchWritten
from kvshard.scatter.batches import ReadColumns, gone, take_written, whole_read, whole_written
from kvshard.scatter.columns import Division, pick
from kvshard.scatter.coverage import Coverage, KnownCounts
from kvshard.scatter.gather import ReadState, verdict
from kvshard.scatter.ledger import ReadTimes
from kvshard.scatter.leg import REPEATED, USUALLY, Heard, How
from kvshard.scatter.leg_result import LegResult
from kvshard.scatter.min_versions import MinVersions
from kvshard.scatter.moved import Rounds, is_moved
from kvshard.scatter.requests import ReadPolicy, RequestIdentity, WriteColumns
from kvshard.scatter.routes import MapSource, resolve, resolve_known
from kvshard.scatter.scatter import Scatter
from kvshard.scatter.watermarks import Watermarks

ANSWER_MAX_BYTES = 48 * 1024 * 1024
"""Values of one answer: 10,000 keys may name 80 GB. Stays under MESSAGE_MAX_BYTES with room for keys, versions and failures."""


class PointRead(NamedTuple):
    """One key as read; value None: it is absent. state: of the shard, as the read saw it."""

    value: bytes | None
    version: int
    expires_at_ms: int
    state: ReadState


@dataclass(slots=True)
class BatchRead:
    """Columns parallel to the keys asked for. values: None where the key is absent or failed, versions: 0 likewise.

    expires_at_ms is empty when no key expires. failures: (index, error), by index. states: by shard, of a stale read; a strong
    one sees the newest.
    """

    values: list[bytes | None]
    versions: list[int]
    expires_at_ms: list[int]
    failures: list[tuple[int, ErrorRecord]]
    coverage: Coverage
    states: list[ReadState]


def read_of_key(cluster_map: ClusterMap, collection: Collection, key: bytes, is_stale: bool) -> ShardRead:
    """What the shard of a key is asked for it."""
    config = cluster_map.shards[cluster_map.shard_of_key(key)]
    return ShardRead(config.id, config.epoch, collection.id, [key], is_stale, config.cuts)


class _Reading(NamedTuple):
    """How the legs of a batch read are done. times: the account of the read. max_bytes: of the values of its answer."""

    collection: Collection
    policy: ReadPolicy
    how: How
    deadline: float
    times: ReadTimes | None
    max_bytes: int


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
        self._rng = rng or Random()
        self._names = WriteNames(f"router-{self._rng.getrandbits(96):024x}")
        self._maps = maps
        self._leaves = leaves
        self._scatter = scatter
        self._known = known
        self._clock = clock

    async def get(
        self, collection_name: str, key: bytes, policy: ReadPolicy, deadline: float, times: ReadTimes | None = None
    ) -> PointRead:
        """Read one key. times: the account of the read."""
        cluster_map, collection = resolve_known(self._maps, collection_name) or await resolve(self._maps, collection_name)
        how = self._scatter.how_to_read(policy, collection)
        rounds: Rounds | None = None
        while True:
            request = read_of_key(cluster_map, collection, key, policy.is_stale)
            leg = await self._scatter.ask("Get", self._leaves.read, request, deadline, how, self._leaves.start)
            if times is not None:
                times.add((leg,), leg.ended_at)
            reply = leg.reply
            if not reply.errors:
                break
            rounds = rounds or self._rounds(deadline)
            newer = await rounds.next() if is_moved(reply.errors[0]) else None
            if newer is None:
                raise error_of(reply.errors[0])
            cluster_map = newer
        expires_at_ms = reply.expires_at_ms[0] if reply.expires_at_ms else 0
        state = ReadState(request.shard, reply.seqno, reply.age_ms)
        return PointRead(reply.values[0], reply.versions[0], expires_at_ms, state)

    def _rounds(self, deadline: float) -> Rounds:
        return Rounds(self._maps, self._clock, deadline, self._rng)

    def watermarks(self) -> bytes:
        """What this router knows of the shards, for a client to give back with the repetition of a later write."""
        return self._scatter.heard.committed.encode()

    async def write(
        self,
        method: str,
        collection_name: str,
        columns: WriteColumns,
        refresh: Refresh,
        deadline: float,
        identity: RequestIdentity | None = None,
    ) -> BatchWritten:
        """Write or delete the one key of the columns. Raises why that failed."""
        written = await self._write(method, collection_name, columns, refresh, deadline, identity)
        if written.failures:
            raise error_of(written.failures[0][1])
        return written

    async def batch_get(
        self,
        collection_name: str,
        keys: list[bytes],
        policy: ReadPolicy,
        deadline: float,
        times: ReadTimes | None = None,
        *,
        max_bytes: int = 0,
    ) -> BatchRead:
        """Read many keys. times: the account of the read. max_bytes: of the values; 0: ANSWER_MAX_BYTES.

        Keys that it has no room for fail with RESOURCE_EXHAUSTED. Raises Unavailable when the coverage falls short and the
        policy does not accept a part.
        """
        cluster_map, collection = resolve_known(self._maps, collection_name) or await resolve(self._maps, collection_name)
        how, max_bytes = self._scatter.how_to_read(policy, collection), max_bytes or ANSWER_MAX_BYTES
        reading = _Reading(collection, policy, how, deadline, times, max_bytes)
        division = Division(cluster_map.shards_of_keys(keys))
        parts = division.split(keys)
        legs = await self._ask(cluster_map, parts, reading)
        columns = whole_read(division, parts, legs, max_bytes)
        if columns is None:
            columns, legs = await self._read_rest(keys, division.split(range(len(keys))), legs, reading)
            if columns.left_out:
                await self._read_left_out(keys, columns, reading)
        return self._batch_read(collection.id, columns, legs, policy)

    async def _ask(
        self, cluster_map: ClusterMap, parts: Mapping[int, Sequence[bytes]], reading: _Reading, room: int = 0
    ) -> list[LegResult[ShardReadReply]]:
        """Ask for the keys of each shard. room: bytes of values that all of them together may bring; 0: all."""
        collection_id, is_stale, shards = reading.collection.id, reading.policy.is_stale, cluster_map.shards
        # Else every shard might bring as much as a whole answer may have.
        max_bytes = (room or reading.max_bytes) // max(1, len(parts))
        requests = []
        for shard, keys in parts.items():
            config = shards[shard]
            requests.append(ShardRead(shard, config.epoch, collection_id, _as_list(keys), is_stale, config.cuts, max_bytes))
        leaves = self._leaves
        legs = await self._scatter.gather("BatchGet", leaves.read, requests, reading.deadline, reading.how, leaves.start)
        if reading.times is not None:
            reading.times.add(legs, self._clock.monotonic())
        return legs

    async def _read_rest(
        self,
        keys: list[bytes],
        places: Mapping[int, Sequence[int]],
        legs: list[LegResult[ShardReadReply]],
        reading: _Reading,
    ) -> tuple[ReadColumns, list[LegResult[ShardReadReply]]]:
        """Take in legs of which something failed or has moved, and ask again for what has, until the deadline.

        places: of each shard's keys. Returns also the last leg of each shard, by which the coverage counts.
        """
        columns = ReadColumns.empty(len(keys))
        newest: dict[int, LegResult[ShardReadReply]] = {}
        rounds = self._rounds(reading.deadline)
        while True:
            newest |= {leg.shard: leg for leg in legs}
            moved = {leg.shard: columns.take(places[leg.shard], leg, reading.max_bytes) for leg in legs}
            wanted = sorted(index for indices in moved.values() for index in indices)
            newer = await rounds.next() if wanted else None
            if newer is None:
                newest |= {shard: columns.give_up(newest[shard], indices) for shard, indices in moved.items() if indices}
                return columns, list(newest.values())
            again = pick(keys, wanted)
            division = Division(newer.shards_of_keys(again))
            places = division.split(wanted)
            legs = await self._ask(newer, division.split(again), reading)

    async def _read_left_out(self, keys: list[bytes], columns: ReadColumns, reading: _Reading) -> None:
        """Ask again for the keys that their legs had no room for, a shard at a time, as long as the answer has some.

        What fits a whole answer comes, however it lies among the shards; and no more than that is held.
        """
        while columns.left_out and columns.size < reading.max_bytes:
            wanted = sorted(columns.left_out)
            columns.left_out.clear()
            cluster_map = self._maps.current
            division = Division(cluster_map.shards_of_keys(pick(keys, wanted)))
            for shard, places in division.split(wanted).items():
                room = reading.max_bytes - columns.size
                if not room:
                    columns.left_out.extend(places)
                    continue
                (leg,) = await self._ask(cluster_map, {shard: pick(keys, places)}, reading, room)
                moved = columns.take(places, leg, reading.max_bytes)
                if moved:
                    columns.give_up(leg, moved)
            if len(columns.left_out) == len(wanted):
                break
        columns.fail_left_out(reading.max_bytes)

    def _batch_read(
        self,
        collection_id: int,
        columns: ReadColumns,
        newest: Sequence[LegResult[ShardReadReply]],
        policy: ReadPolicy,
    ) -> BatchRead:
        """newest: the last leg of each shard, by which the coverage counts."""
        documents = {leg.shard: leg.answer.reply.documents for leg in newest if leg.answer is not None}
        self._known.learn_all(collection_id, documents)
        coverage = verdict(newest, documents, self._known.of(collection_id), policy)
        columns.failures.sort(key=lambda failure: failure[0])
        expires_at_ms = columns.expires_at_ms if any(columns.expires_at_ms) else []
        states = _states(newest) if policy.is_stale else []
        return BatchRead(columns.values, columns.versions, expires_at_ms, columns.failures, coverage, states)

    async def batch_write(
        self,
        collection_name: str,
        columns: WriteColumns,
        refresh: Refresh,
        deadline: float,
        identity: RequestIdentity | None = None,
    ) -> BatchWritten:
        """Write many keys; those of one shard take effect together, in order, those of different shards independently."""
        return await self._write("BatchWrite", collection_name, columns, refresh, deadline, identity)

    async def _write(
        self,
        method: str,
        collection_name: str,
        columns: WriteColumns,
        refresh: Refresh,
        deadline: float,
        identity: RequestIdentity | None,
    ) -> BatchWritten:
        cluster_map, collection = resolve_known(self._maps, collection_name) or await resolve(self._maps, collection_name)
        count = len(columns.keys)
        written: BatchWritten | None = None
        seen_from = MinVersions() if collection.schema else None  # A collection of plain values has no index.
        refresh = refresh if collection.schema else False
        rounds: Rounds | None = None
        wanted: Sequence[int] = range(count)
        with _WriteId(identity, self._names, self._scatter.heard) as id:
            while wanted:
                keys = columns.keys if len(wanted) == count else pick(columns.keys, wanted)
                division = Division(cluster_map.shards_of_keys(keys))
                parts = division.split(wanted)
                requests = [_shard_write(cluster_map, shard, collection, columns, parts[shard], refresh, id) for shard in parts]
                legs = await self._send(method, requests, deadline, id)
                if seen_from is not None:
                    self._note_seen(legs, seen_from, refresh)
                whole = whole_written(division, parts, legs) if len(wanted) == count else None
                if whole is not None:
                    whole.seen_from = seen_from
                    return whole
                written = written or BatchWritten([0] * count, [False] * count, [], seen_from)
                moved = [index for leg in legs for index in take_written(written, parts[leg.shard], leg)]
                if not moved:
                    break
                rounds = rounds or self._rounds(deadline)
                newer = await rounds.next()
                if newer is None:
                    record = record_of(gone(count, moved))
                    written.failures.extend((index, record) for index in moved)
                    break
                if any(leg.attempts > 1 for leg in legs):
                    id.note_doubt()
                cluster_map, wanted = newer, sorted(moved)
        written = written or BatchWritten([], [], [])  # Of no keys.
        written.failures.sort(key=lambda failure: failure[0])
        return written

    async def _send(
        self, method: str, requests: Sequence[ShardWrite], deadline: float, id: "_WriteId"
    ) -> list[LegResult[ShardWriteReply]]:
        if len(requests) == 1:
            return [await self._scatter.ask(method, self._leaves.write, requests[0], deadline, id.how)]
        return await self._scatter.gather(method, self._leaves.write, requests, deadline, id.how)

    def _note_seen(self, legs: Sequence[LegResult[ShardWriteReply]], seen_from: MinVersions, refresh: Refresh) -> None:
        """From which states on searches see these writes. With refresh, any search through this router must."""
        for leg in legs:
            if leg.answer is not None:
                seqno = leg.answer.reply.seqno
                seen_from.want(leg.shard, seqno)
                if refresh:
                    self._scatter.heard.refreshed.learn(leg.shard, seqno)


class _WriteId:
    """The request id that a write goes under: its client's, or one of the router's own, which is given back at the end.

    known: what is known of the shards from before the first sending. how: whether there may have been a sending before.
    positions, total: of a write that is a part of the one which the id names, as in ShardWrite.
    """

    __slots__ = ("_names", "_own", "client", "how", "known", "number", "positions", "total")

    def __init__(self, identity: RequestIdentity | None, names: WriteNames, heard: Heard) -> None:
        self._names = names
        self._own: WriteName | None = None
        self.known: Watermarks = heard.committed
        self.how: How = USUALLY
        self.positions: Sequence[int] = ()
        self.total = 0
        if identity is None:
            self._own = names.take()
            self.client, self.number = self._own
        else:
            self.client, self.number = identity.client, identity.number
            self.positions, self.total = identity.positions, identity.total
            if identity.is_retry:
                self.known, self.how = identity.known, REPEATED

    def places(self, indices: Sequence[int], count: int) -> tuple[list[int], int]:
        """(positions, total) of some of the `count` keys of this request; empty where they are the whole write."""
        if self.positions:
            return pick(self.positions, indices), self.total
        return ([], 0) if len(indices) == count else (list(indices), count)

    def note_doubt(self) -> None:
        """A sending may have taken effect: what is known by now of a shard may be from after it."""
        if not self.how.is_repetition:
            self.how, self.known = REPEATED, Watermarks()

    def __enter__(self) -> "_WriteId":
        return self

    def __exit__(self, *_: object) -> None:
        if self._own is not None:
            self._names.give_back(self._own)


def _states(legs: Sequence[LegResult[ShardReadReply]]) -> list[ReadState]:
    answered = {leg.shard: leg.answer.reply for leg in legs if leg.answer is not None}
    return [ReadState(shard, reply.seqno, reply.age_ms) for shard, reply in sorted(answered.items())]


def _as_list(keys: Sequence[bytes]) -> list[bytes]:
    """The keys as a list: themselves if they are one."""
    return keys if isinstance(keys, list) else list(keys)


def _part(columns: WriteColumns, indices: Sequence[int]) -> WriteColumns:
    """The columns of these indices; an unused column stays unused."""
    if len(indices) == len(columns.keys):
        return columns
    return WriteColumns(
        keys=pick(columns.keys, indices),
        values=pick(columns.values, indices),
        ttl_ms=pick(columns.ttl_ms, indices) if columns.ttl_ms else [],
        conditions=pick(columns.conditions, indices) if columns.conditions else [],
    )


def _shard_write(
    cluster_map: ClusterMap,
    shard: int,
    collection: Collection,
    columns: WriteColumns,
    indices: Sequence[int],
    refresh: Refresh,
    id: _WriteId,
) -> ShardWrite:
    config, part = cluster_map.shards[shard], _part(columns, indices)
    positions, total = id.places(indices, len(columns.keys))
    return ShardWrite(
        shard=shard,
        epoch=config.epoch,
        collection_id=collection.id,
        keys=part.keys,
        values=part.values,
        ttl_ms=part.ttl_ms,
        conditions=part.conditions,
        wait_for_refresh=bool(refresh),
        client=id.client,
        number=id.number,
        since=id.known.of(shard),
        positions=positions,
        total=total,
        cuts=config.cuts,
        next_refresh=refresh == "wait",
    )
