"""What a leaf does for each kind of request about one shard.

Every request passes the same door: the replica is here and open, the epochs agree, the collection exists. Everything between a
look at the state and the proposal that rests on it happens without awaiting, so no other request comes between.
"""

import asyncio
from functools import partial

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
    StaleEpoch,
    record_of,
)
from kvshard.limits import BATCH_MAX_KEYS, KEY_MAX_BYTES
from kvshard.model import (
    ShardRead,
    ShardReadReply,
    ShardScan,
    ShardScanReply,
    ShardSearch,
    ShardSearchReply,
    ShardWrite,
    ShardWriteReply,
)
from kvshard.schema import validate_document
from leaf.committer import QUEUE_MAX_BYTES
from leaf.driver import Driver
from leaf.engine import StorageError
from leaf.indexer import Indexer
from leaf.replica import RETRY_AFTER_MS, Replica, storage_failed
from leaf.write_plan import Validate, WritePlan, check_key, check_request, invalid_keys, plan_write

_decode_json = msgspec.json.Decoder().decode


class Requests:
    """Serves requests about the shards of one leaf. Raises KvShardError."""

    def __init__(self, driver: Driver, indexer: Indexer) -> None:
        self._driver = driver
        self._indexer = indexer
        self._store = driver.store
        self._clock = driver.clock

    def is_ready(self, request: ShardRead | ShardScan) -> bool:
        """Whether the request may be served at once, without looking for a newer map."""
        replica = self._driver.replicas.get(request.shard)
        return (
            replica is not None
            and request.epoch <= replica.epoch
            and self._driver.collection(request.collection_id) is not None
        )

    async def prepare(self, request: ShardRead | ShardScan | ShardWrite | ShardSearch) -> Collection:
        """Look for a newer map if the request knows more than this leaf. Returns the request's collection."""
        replica = self._driver.replicas.get(request.shard)
        collection = self._driver.collection(request.collection_id)
        if replica is None or request.epoch > replica.epoch > 0 or collection is None:
            await self._driver.maps.refresh()
        self._replica(request)
        collection = self._driver.collection(request.collection_id)
        if collection is None:
            raise CollectionNotFound(f"there is no collection with the number {request.collection_id}")
        return collection

    def _replica(self, request: ShardRead | ShardScan | ShardWrite | ShardSearch) -> Replica:
        """The replica that serves the request. Raises StaleEpoch, NotReady, or why the replica could not be opened."""
        replica = self._driver.replicas.get(request.shard)
        if replica is None:
            details = ErrorDetails(shards=(request.shard,))
            if any(config.id == request.shard for config in self._driver.maps.current.shards_on(self._driver.leaf)):
                raise NotReady(f"shard {request.shard} is not open yet", details)
            raise StaleEpoch(f"leaf {self._driver.leaf} has no replica of shard {request.shard}", details)
        replica.check_epoch(request.epoch)
        return replica

    def read(self, request: ShardRead) -> ShardReadReply:
        """Answer a read; `prepare` or `is_ready` came before."""
        self._replica(request)
        if len(request.keys) > BATCH_MAX_KEYS:
            message = f"a read may have at most {BATCH_MAX_KEYS} keys, not {len(request.keys)}"
            raise InvalidArgument(message, ErrorDetails(field="keys", limit=BATCH_MAX_KEYS))
        try:
            reply = self._store.read(request, self._clock.wall_ms())
        except StorageError as error:
            raise storage_failed(request.shard, str(error)) from error
        reply.errors.update(_illegal(request.keys))
        return reply

    def scan(self, request: ShardScan) -> ShardScanReply:
        """Answer a scan with one chunk; `prepare` or `is_ready` came before."""
        self._replica(request)
        try:
            return self._store.scan(request, self._clock.wall_ms())
        except StorageError as error:
            raise storage_failed(request.shard, str(error)) from error

    async def write(self, request: ShardWrite, deadline: float) -> ShardWriteReply:
        """Write; the reply is durable, and visible to a search if the request wants to wait for that.

        A caller that gives up does not stop the write: once proposed it takes effect.
        """
        size = check_request(request)
        collection = await self.prepare(request)
        # From here to the proposal nothing awaits.
        replica = self._replica(request)
        refusal = self._refusal(replica, size)
        if refusal is not None:
            raise refusal
        plan = self._plan(replica, collection, request)
        if plan.operation is not None:
            seqno = self._driver.propose(request.shard, plan.operation, plan.size)
        else:
            seqno = plan.depends_on
        await self._driver.wait_applied(request.shard, seqno)
        if request.wait_for_refresh and collection.schema:
            await self._refreshed(request.shard, seqno or replica.applied, deadline)
        return plan.reply

    def _refusal(self, replica: Replica, size: int) -> KvShardError | None:
        committer = self._driver.committer
        if committer.is_full:
            details = ErrorDetails(limit=QUEUE_MAX_BYTES, retry_after_ms=RETRY_AFTER_MS)
            return ResourceExhausted(f"{committer.queued_bytes} bytes wait to be written", details)
        return replica.refusal(size) or self._driver.guard.refusal(size, committer.queued_bytes)

    def _plan(self, replica: Replica, collection: Collection, request: ShardWrite) -> WritePlan:
        validate: Validate | None = None
        if collection.schema:
            validate = partial(validate_document, collection.schema, json_decode=_decode_json)
        errors = invalid_keys(request, validate)
        try:
            stored = self._store.headers(request.shard, request.collection_id, request.keys)
        except StorageError as error:
            raise storage_failed(request.shard, str(error)) from error
        pending = replica.pending(request.collection_id)
        plan = plan_write(request, replica.next_seqno, errors, pending, stored, self._clock.wall_ms())
        if plan.operation is not None:
            headers = dict(zip(request.keys, stored, strict=True))
            if plan.operation.keys is not request.keys:  # Only what is written: the rest would never be recalled.
                headers = {key: headers[key] for key in plan.operation.keys}
            self._store.remember(request.shard, request.collection_id, headers)
        return plan

    async def _refreshed(self, shard: int, seqno: int, deadline: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock.monotonic())):
                await self._indexer.refresh(shard, seqno)
        except TimeoutError:
            details = ErrorDetails(maybe_applied=True, shards=(shard,))
            raise DeadlineExceeded("the write is durable, but a search did not see it before the deadline", details) from None

    async def search(self, request: ShardSearch, deadline: float) -> ShardSearchReply:
        """Answer a search."""
        collection = await self.prepare(request)
        if not collection.schema:
            text = f"collection {collection.name!r} has no schema, so it cannot be searched"
            raise FailedPrecondition(text, ErrorDetails(field="collection"))
        return await self._indexer.search(request, collection, deadline)


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
