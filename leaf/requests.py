"""What a leaf does for each kind of request about one shard.

Every request passes the same door: the replica is here and open, it is not behind the map that the request was routed by, the
collection exists. Whether this replica may serve it, its machine says. Everything between a look at the state and the proposal
that rests on it happens without awaiting, so no other request comes between.
"""

import asyncio
from collections.abc import Iterable
from functools import partial
from itertools import repeat
from math import inf
from typing import Final

import msgspec

from kvshard.clustermap import Collection
from kvshard.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    ErrorDetails,
    ErrorRecord,
    FailedPrecondition,
    InvalidArgument,
    KvShardError,
    NotReady,
    ResourceExhausted,
    SchemaChanged,
    ShardMoved,
    StaleEpoch,
    record_of,
)
from kvshard.limits import BATCH_MAX_KEYS, KEY_MAX_BYTES
from kvshard.model import (
    ABSENT,
    UNKNOWN_AGE,
    ShardRead,
    ShardReadReply,
    ShardScan,
    ShardScanReply,
    ShardSearch,
    ShardSearchReply,
    ShardTerms,
    ShardTermsReply,
    ShardWrite,
    ShardWriteReply,
    changed,
)
from kvshard.rpc.request_times import note_wait
from kvshard.schema import validate_document
from leaf.committer import QUEUE_MAX_BYTES
from leaf.driver import Driver
from leaf.engine import StorageError
from leaf.indexer import Indexer
from leaf.operations import keys_of, size_with
from leaf.pending import latest_of, writable_last_slot
from leaf.refusals import RETRY_AFTER_MS, error_of, storage_failed
from leaf.replica import Replica, Served, Written
from leaf.replication.actions import Reason
from leaf.replication.events import Conclude, Propose
from leaf.replication.machine import ReadNow
from leaf.replication.messages import RequestId
from leaf.write_plan import Validate, WritePlan, check_key, check_request, invalid_keys, plan_write
from leaf.write_result import decode_part, encode_result

TELL_S: Final = 0.1
TELL_PART: Final = 0.1
"""Before its deadline, and no more than this part of the time, a search ends that waits for a write: who asked is to hear which
write is missing, and not only that there was no answer."""

_decode_json = msgspec.json.Decoder().decode


class Requests:
    """Serves requests about the shards of one leaf. Raises KvShardError."""

    def __init__(self, driver: Driver, indexer: Indexer) -> None:
        self._driver = driver
        self._indexer = indexer
        self._store = driver.store
        self._clock = driver.clock

    def _ready(self, request: ShardRead | ShardScan) -> Replica | None:
        """The replica that may serve the request at once, without a look for a newer map; None: `prepare` has to look first."""
        replica = self._driver.replicas.get(request.shard)
        if replica is None or replica.machine is None or request.epoch > replica.machine.epoch:
            return None
        return replica if self._driver.collection(request.collection_id) is not None else None

    async def prepare(self, request: ShardRead | ShardScan | ShardWrite | ShardSearch | ShardTerms) -> Collection:
        """Look for a newer map if the request knows more than this leaf. Returns the request's collection."""
        replica = self._driver.replicas.get(request.shard)
        collection = self._driver.collection(request.collection_id)
        if replica is None or request.epoch > replica.epoch > 0 or collection is None:
            await self._driver.maps.refresh()
        self._replica(request.shard)
        collection = self._driver.collection(request.collection_id)
        if collection is None:
            raise CollectionNotFound(f"there is no collection with the number {request.collection_id}")
        return collection

    def _replica(self, shard: int) -> Replica:
        """The replica of a shard. Raises StaleEpoch when it is not here, NotReady or why it could not be opened."""
        replica = self._driver.replicas.get(shard)
        if replica is None:
            details = ErrorDetails(shards=(shard,))
            if any(config.id == shard for config in self._driver.maps.current.shards_on(self._driver.leaf)):
                raise NotReady(f"shard {shard} is not open yet", details)
            raise StaleEpoch(f"leaf {self._driver.leaf} has no replica of shard {shard}", details)
        replica.opened()
        return replica

    def _may_read(
        self, replica: Replica, keys: Iterable[tuple[int, bytes]] | None, is_stale_ok: bool, now: float
    ) -> Served | ReadNow | None:
        """What is read if that may be now; None: the read must wait. Raises why this replica does not serve it.

        now: a reading of the clock since the request came.
        """
        if replica.serves_though_failed:
            return Served(replica.applied, 0.0)
        if replica.error is not None:
            raise replica.error
        allowed = replica.opened().try_read(keys, not is_stale_ok, now)
        if isinstance(allowed, Reason):
            raise error_of(allowed, replica.shard)
        return allowed

    def read_now(self, request: ShardRead, now: float, deadline: float) -> ShardReadReply | None:
        """Answer a read, or None when that takes `prepare` and `read_later`. now: a reading of the clock since it came."""
        replica = self._ready(request)
        return self._read_at(replica, request, now, deadline) if replica is not None else None

    def read(self, request: ShardRead, deadline: float = inf) -> ShardReadReply | None:
        """Answer a read, or None when it must wait (`read_later`); `prepare` came before."""
        return self._read_at(self._replica(request.shard), request, self._clock.monotonic(), deadline)

    def _read_at(self, replica: Replica, request: ShardRead, now: float, deadline: float) -> ShardReadReply | None:
        names = zip(repeat(request.collection_id), request.keys)
        served = self._may_read(replica, names, request.is_stale_ok, now)
        return self._read(request, served, deadline) if served is not None else None

    async def read_later(self, request: ShardRead, deadline: float) -> ShardReadReply:
        """Answer a read when the writes in flight that it depends on are committed."""
        reply = self.read(request, deadline)
        if reply is None:
            keys = tuple((request.collection_id, key) for key in request.keys)
            served = await self._wait_readable(request, keys, deadline)
            reply = self._read(request, served, deadline)
        return reply

    async def _wait_readable(
        self, request: ShardRead | ShardScan, keys: tuple[tuple[int, bytes], ...] | None, deadline: float
    ) -> Served:
        began = self._clock.monotonic()
        try:
            return await self._driver.wait_readable(request.shard, keys, not request.is_stale_ok, deadline)
        finally:
            note_wait(self._clock.monotonic() - began)

    def _read(self, request: ShardRead, served: Served | ReadNow, deadline: float) -> ShardReadReply:
        seqno, age_ms = served.seqno, _age_ms(served)
        reply = self._store.read_cached(request, seqno, age_ms)
        if reply is not None:
            return reply  # What is in the cache is there, and has not left the shard.
        reply = self._read_stored(request, seqno, age_ms, deadline)
        for index, moved in self._departed(request).items():
            reply.values[index], reply.versions[index], reply.errors[index] = None, ABSENT, moved
        if not all(reply.versions):  # A key that cannot be is always absent.
            reply.errors.update(_illegal(request.keys))
        return reply

    def _read_stored(self, request: ShardRead, seqno: int, age_ms: int, deadline: float) -> ShardReadReply:
        if len(request.keys) > BATCH_MAX_KEYS:
            message = f"a read may have at most {BATCH_MAX_KEYS} keys, not {len(request.keys)}"
            raise InvalidArgument(message, ErrorDetails(field="keys", limit=BATCH_MAX_KEYS))
        check = partial(self._check_deadline, deadline)
        try:
            return self._store.read(request, self._clock.wall_ms(), check, seqno=seqno, age_ms=age_ms)
        except StorageError as error:
            raise storage_failed(request.shard, str(error)) from error

    def _check_deadline(self, deadline: float) -> None:
        if self._clock.monotonic() >= deadline:
            raise DeadlineExceeded("the deadline passed during a read")

    def _departed(self, request: ShardRead | ShardWrite) -> dict[int, ErrorRecord]:
        """Errors of the keys that have left the shard by a split, applied or, for a write, in flight."""
        splits = self._store.state(request.shard).splits
        last_slot, cuts = splits.last_slot, splits.cuts
        if isinstance(request, ShardWrite):
            last_slot = writable_last_slot(self._replica(request.shard).opened(), last_slot)
        if last_slot == splits.last_slot and (request.cuts == cuts or not cuts):
            return {}  # All that the sender took for this shard's keys are its own.
        slot_of = self._store.splits.slot_of
        moved = record_of(_moved(request.shard))
        return {index: moved for index, key in enumerate(request.keys) if slot_of(key) > last_slot}

    def _check_cuts(self, request: ShardScan | ShardSearch | ShardTerms) -> None:
        """Raise ShardMoved, or NotReady, unless this replica's range is the one that the sender asks for, and is counted."""
        splits = self._store.state(request.shard).splits
        if request.cuts is not None and request.cuts < splits.cuts:
            raise _moved(request.shard)
        details = ErrorDetails(shards=(request.shard,), retry_after_ms=RETRY_AFTER_MS)
        if request.cuts is not None and request.cuts > splits.cuts:
            raise NotReady(f"the replica of shard {request.shard} has not applied its split yet", details)
        if not splits.is_counted:  # How much of what is counted has left shows when it is copied, or removed.
            raise NotReady(f"the replica of shard {request.shard} does not know yet how much has left it", details)

    def scan_now(self, request: ShardScan, now: float) -> ShardScanReply | None:
        """Answer a scan with one chunk, or None when that takes `prepare` and `scan_later`. now: as in `read_now`."""
        replica = self._ready(request)
        return self._scan_at(replica, request, now) if replica is not None else None

    def scan(self, request: ShardScan) -> ShardScanReply | None:
        """Answer a scan with one chunk, or None when it must wait (`scan_later`); `prepare` came before."""
        return self._scan_at(self._replica(request.shard), request, self._clock.monotonic())

    def _scan_at(self, replica: Replica, request: ShardScan, now: float) -> ShardScanReply | None:
        served = self._may_read(replica, None, request.is_stale_ok, now)
        return self._scan(request, served) if served is not None else None

    async def scan_later(self, request: ShardScan, deadline: float) -> ShardScanReply:
        """Answer a scan when the writes that were in flight as it came are committed."""
        reply = self.scan(request)
        if reply is None:
            reply = self._scan(request, await self._wait_readable(request, None, deadline))
        return reply

    def _scan(self, request: ShardScan, served: Served | ReadNow) -> ShardScanReply:
        self._check_cuts(request)
        try:
            return self._store.scan(request, self._clock.wall_ms(), seqno=served.seqno, age_ms=_age_ms(served))
        except StorageError as error:
            raise storage_failed(request.shard, str(error)) from error

    async def write(self, request: ShardWrite, deadline: float) -> ShardWriteReply:
        """Write; the reply is committed on every replica in sync, and visible to a search here if the request waits for that.

        A caller that gives up does not stop the write: once proposed it takes effect.
        """
        size = check_request(request)
        collection = await self.prepare(request)
        # From here to the proposal nothing awaits.
        replica = self._replica(request.shard)
        if replica.error is not None:
            raise replica.error
        identity = RequestId(request.client, request.number, request.since) if request.client else None
        plan: WritePlan | None = None

        def evaluate(token: int) -> Propose | Conclude:
            nonlocal plan
            refusal = self._refusal(size)
            if refusal is not None:
                raise refusal
            plan = self._plan(replica, collection, request)
            if plan.operation is None:
                return Conclude(token, plan.depends_on, b"")
            result = encode_result(plan.reply, request.positions, request.total) if identity is not None else b""
            size_in_log = size_with(len(plan.operation.keys), plan.size)
            return Propose(token, identity, plan.operation, keys_of(plan.operation), size_in_log, result)

        written = await self._driver.write(request.shard, identity, size, evaluate, deadline)
        reply = plan.reply if plan is not None else self._repeated(request, written)
        if request.wait_for_refresh and collection.schema:
            seqno = written.seqno or replica.applied
            await self._refreshed(request.shard, seqno, deadline, is_hurried=not request.next_refresh)
        return changed(reply, seqno=written.seqno)

    def _repeated(self, request: ShardWrite, written: Written) -> ShardWriteReply:
        """What became of a write when it came first, perhaps in other parts than now. Raises InvalidArgument, DataLoss."""
        assert isinstance(written.result, bytes)
        count = len(request.keys)
        positions, total = (request.positions, request.total) if request.positions else (range(count), count)
        reply, unknown = decode_part(written.result, written.seqno, positions, total)
        if unknown:
            departed = self._departed(changed(request, cuts=None))
            if not departed.keys() >= set(unknown):
                text = "the request id was used before, for a write of other keys"
                raise InvalidArgument(text, ErrorDetails(field="number"))
            reply.errors.update({index: departed[index] for index in unknown})
        return reply

    def _refusal(self, size: int) -> KvShardError | None:
        committer = self._driver.committer
        if committer.is_full:
            details = ErrorDetails(limit=QUEUE_MAX_BYTES, retry_after_ms=RETRY_AFTER_MS)
            return ResourceExhausted(f"{committer.queued_bytes} bytes wait to be written", details)
        return self._driver.guard.refusal(size, committer.queued_bytes)

    def _plan(self, replica: Replica, collection: Collection, request: ShardWrite) -> WritePlan:
        validate: Validate | None = None
        if collection.written_schema:
            validate = partial(validate_document, collection.written_schema, json_decode=_decode_json)
        errors = self._departed(request)
        errors.update(invalid_keys(request, validate))
        try:
            stored = self._store.headers(request.shard, request.collection_id, request.keys)
        except StorageError as error:
            raise storage_failed(request.shard, str(error)) from error
        pending = latest_of(replica.opened(), request.collection_id, request.keys)
        plan = plan_write(request, replica.last + 1, errors, pending, stored, self._clock.wall_ms())
        if plan.operation is not None:
            headers = dict(zip(request.keys, stored, strict=True))
            if plan.operation.keys is not request.keys:  # Only what is written: the rest would never be recalled.
                headers = {key: headers[key] for key in plan.operation.keys}
            self._store.remember(request.shard, request.collection_id, headers)
        return plan

    async def _refreshed(self, shard: int, seqno: int, deadline: float, *, is_hurried: bool) -> None:
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock.monotonic())):
                await self._indexer.refresh(shard, seqno, is_hurried=is_hurried)
        except TimeoutError:
            details = ErrorDetails(maybe_applied=True, shards=(shard,))
            raise DeadlineExceeded("the write is durable, but a search did not see it before the deadline", details) from None

    def search_refusal(self) -> KvShardError | None:
        """Why the hedge of a search cannot be taken now; None when it can."""
        return self._indexer.queue.hedge_refusal()

    async def search(self, request: ShardSearch, deadline: float) -> ShardSearchReply:
        """Answer a search, at any replica that holds a lease: one that was cut off and evicted must not answer for ever."""
        collection = await self._searchable(request)
        replica, now = self._replica(request.shard), self._clock.monotonic()
        if request.refresh:
            # What is acknowledged must be seen; a secondary may not know yet that it is committed.
            served = self._may_read(replica, None, False, now)
            served = served or await self._driver.wait_readable(request.shard, None, True, deadline)
        else:
            served = self._may_read(replica, (), False, now)
        lag_ms = _lag_ms(replica, served)
        self._check_cuts(request)
        if request.min_seqno:
            await self._indexed(request, deadline)
        reply = await self._indexer.search(request, collection, deadline)
        self._check_cuts(request)  # A split that was applied meanwhile has taken documents out of what was searched.
        return reply if 0 <= lag_ms <= reply.unseen_age_ms else changed(reply, unseen_age_ms=lag_ms)

    async def term_statistics(self, request: ShardTerms, deadline: float) -> ShardTermsReply:
        """Tell a shard's statistics for some terms, at any replica that holds a lease."""
        collection = await self._searchable(request)
        self._may_read(self._replica(request.shard), (), False, self._clock.monotonic())
        self._check_cuts(request)
        if request.min_seqno:
            await self._indexed(request, deadline)
        reply = await self._indexer.term_statistics(request, collection, deadline)
        self._check_cuts(request)
        return reply

    async def _searchable(self, request: ShardSearch | ShardTerms) -> Collection:
        """The collection of a search, with the schema by which its query was read. Raises SchemaChanged, NotReady."""
        collection = await self.prepare(request)
        wanted = request.schema_version
        if wanted > collection.version:
            await self._driver.maps.refresh()
            collection = self._driver.collection(request.collection_id) or collection
        details = ErrorDetails(shards=(request.shard,), retry_after_ms=RETRY_AFTER_MS)
        if 0 < wanted < collection.version:
            raise SchemaChanged(f"collection {collection.name} has schema version {collection.version} now", details)
        if wanted > collection.version:
            raise NotReady(f"this leaf does not know schema version {wanted} of {collection.name} yet", details)
        if not collection.schema:
            text = f"collection {collection.name!r} has no schema, so it cannot be searched"
            raise FailedPrecondition(text, ErrorDetails(field="collection"))
        return collection

    async def _indexed(self, request: ShardSearch | ShardTerms, deadline: float) -> None:
        left = deadline - self._clock.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left - min(TELL_S, left * TELL_PART))):
                await self._indexer.refresh(request.shard, request.min_seqno)
        except TimeoutError:
            shard, wanted, applied = request.shard, request.min_seqno, self._replica(request.shard).applied
            text, details = f"shard {shard} is to show the write with version {wanted}", ErrorDetails(shards=(shard,))
            if wanted > applied:  # Said by way of an answer: in the time that is left no other replica could be waited for.
                raise FailedPrecondition(f"{text}, but this replica has none beyond {applied}", details) from None
            raise DeadlineExceeded(f"{text}, but its index was not refreshed in time", details) from None


def _moved(shard: int) -> ShardMoved:
    return ShardMoved(f"a split of shard {shard} has given this to another shard", ErrorDetails(shards=(shard,)))


def _age_ms(served: Served | ReadNow) -> int:
    return UNKNOWN_AGE if served.age_s is None else int(served.age_s * 1_000)


def _lag_ms(replica: Replica, served: Served | ReadNow | None) -> int:
    """How old the oldest write may be that was acknowledged and is not applied here, of a replica that holds a lease.

    Whatever is acknowledged lies in the log of each such replica. One that has applied all of its log lacks nothing; of what is
    left it may not know yet that it is committed.
    """
    if replica.last <= replica.applied:
        return 0
    return UNKNOWN_AGE if served is None else _age_ms(served)


def _illegal(keys: list[bytes]) -> dict[int, ErrorRecord]:
    """Errors of keys that no key can be; the common case, none, costs one pass."""
    lengths = list(map(len, keys))
    if not lengths or (min(lengths) >= 1 and max(lengths) <= KEY_MAX_BYTES):
        return {}
    errors: dict[int, ErrorRecord] = {}
    for index, key in enumerate(keys):
        try:
            check_key(key)
        except InvalidArgument as error:
            errors[index] = record_of(error)
    return errors
