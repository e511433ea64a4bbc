"""The keys of one collection: point operations, batches and scans, over any kind of value."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, Unpack

from kvshard.client.batch_retry import nothing_but, part_of, passing_failures, put_in, why_to_pause
from kvshard.client.checks import batches, check_condition, check_timeout, key_bytes, ttl_milliseconds
from kvshard.client.codecs import ValueCodec, key_decoder
from kvshard.client.connection import Connection
from kvshard.client.options import ReadOptions, ReadOverrides
from kvshard.client.results import Coverage, DeleteResults, GetResults, Item, K, PutResults, ReadState, Timing, V
from kvshard.client.scan import Scan, ScanRange
from kvshard.client.wire import add_coverage, add_timing, coverage_of, error_of_failure, found_of, state_of, timing_of
from kvshard.errors import KvShardError
from kvshard.v1 import kv_pb2, types_pb2


def _condition(if_version: int | None, if_absent: bool) -> types_pb2.WriteCondition | None:
    check_condition(if_version, if_absent)
    if if_absent:
        return types_pb2.WriteCondition(if_absent=True)
    return None if if_version is None else types_pb2.WriteCondition(if_version=if_version)


class Keyspace(Generic[K, V]):
    """The keys of one collection. Keys may be given as str (UTF-8) or bytes; they are given back as the client was told to."""

    def __init__(
        self, connection: Connection, name: str, keys: type[K], values: ValueCodec[V], options: ReadOptions | None = None
    ) -> None:
        self._connection = connection
        self._name = name
        self._keys: type[K] = keys
        self._decode_key = key_decoder(keys)
        self._values = values
        self._options = options or ReadOptions()
        self._wire_options = self._options.to_wire()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r}, {self._connection!r})"

    def _read_options(self, overrides: ReadOverrides) -> tuple[types_pb2.ReadOptions, float]:
        """The options of one read and its deadline. Most reads override nothing and share one message."""
        if not overrides:
            return self._wire_options, self._connection.deadline(self._options.timeout)
        options = self._options.overridden(overrides)
        return options.to_wire(), self._connection.deadline(options.timeout)

    def _deadline(self, timeout: float | None) -> float:
        return self._connection.deadline(self._options.timeout if timeout is None else check_timeout(timeout))

    async def put(
        self,
        key: str | bytes,
        value: V,
        *,
        ttl: float | None = None,
        if_version: int | None = None,
        if_absent: bool = False,
        refresh: bool = False,
        timeout: float | None = None,
    ) -> int:
        """Write a key and return its new version; durable when it returns.

        ttl: seconds after which the key vanishes. if_version: only if the key has this version; if_absent: only if there is no
        such key; VersionConflict otherwise. refresh: return only when a search can see the write. A write that failed is
        repeated under the same id, so that it takes effect once; when the time is over before its outcome is known, the error
        says details.maybe_applied.
        """
        request = kv_pb2.PutRequest(
            collection=self._name,
            key=key_bytes(key),
            value=self._values.encode(value),
            ttl_ms=ttl_milliseconds(ttl),
            condition=_condition(if_version, if_absent),
            refresh=refresh,
        )
        deadline = self._deadline(timeout)
        response = await self._connection.write(lambda stubs: stubs.kv.Put, request, deadline=deadline)
        return response.version

    async def get(self, key: str | bytes, **read: Unpack[ReadOverrides]) -> Item[K, V] | None:
        """Read a key; None when it is absent."""
        wire = key_bytes(key)
        return self._item_of(wire, await self._get(wire, read))

    async def explain_get(self, key: str | bytes, **read: Unpack[ReadOverrides]) -> tuple[Item[K, V] | None, Timing]:
        """Read a key and tell where the time went, also when it is absent."""
        wire = key_bytes(key)
        response = await self._get(wire, {**read, "explain_timing": True})
        timing = timing_of(response)
        assert timing is not None, "a timing that is asked for comes"
        return self._item_of(wire, response), timing

    async def _get(self, key: bytes, read: ReadOverrides) -> kv_pb2.GetResponse:
        options, deadline = self._read_options(read)
        request = kv_pb2.GetRequest(collection=self._name, key=key, options=options)
        return await self._connection.unary(lambda stubs: stubs.kv.Get, request, deadline=deadline, is_repeatable=True)

    def _item_of(self, key: bytes, response: kv_pb2.GetResponse) -> Item[K, V] | None:
        if not response.HasField("item"):
            return None
        item = response.item
        value = self._values.decode(item.value)
        state = state_of(response.state) if response.HasField("state") else None
        return Item(self._decode_key(key), value, item.version, item.expires_at_ms, timing_of(response), state)

    async def delete(
        self, key: str | bytes, *, if_version: int | None = None, refresh: bool = False, timeout: float | None = None
    ) -> bool:
        """Delete a key; True if it was there. if_version: only if it has this version, VersionConflict otherwise."""
        condition = _condition(if_version, False)
        request = kv_pb2.DeleteRequest(collection=self._name, key=key_bytes(key), condition=condition, refresh=refresh)
        deadline = self._deadline(timeout)
        response = await self._connection.write(lambda stubs: stubs.kv.Delete, request, deadline=deadline)
        return response.existed

    async def get_many(self, keys: Iterable[str | bytes], **read: Unpack[ReadOverrides]) -> GetResults[K, V]:
        """Read many keys: in their order the item, None where a key is absent, or the error that kept it from being read."""
        wire = [key_bytes(key, f"keys[{index}]") for index, key in enumerate(keys)]
        options, deadline = self._read_options(read)
        found: list[Item[K, V] | KvShardError | None] = []
        coverage: Coverage | None = None
        timing: Timing | None = None
        states: dict[int, ReadState] = {}
        for piece in batches(wire):
            request = kv_pb2.BatchGetRequest(collection=self._name, keys=wire[piece], options=options)
            response = await self._connection.unary(
                lambda stubs: stubs.kv.BatchGet, request, deadline=deadline, is_repeatable=True
            )
            found += found_of(response, [self._decode_key(key) for key in wire[piece]], self._values.decode)
            added = coverage_of(response.coverage)
            coverage = added if coverage is None else add_coverage(coverage, added)
            timing = add_timing(timing, timing_of(response))
            for state in map(state_of, response.states):
                states[state.shard] = states.get(state.shard, state).older(state)
        by_shard = tuple(state for _, state in sorted(states.items()))
        return GetResults(found, coverage or Coverage(True, 0, 0, 1.0, 0, 0), timing, by_shard)

    async def put_many(
        self,
        items: Mapping[str, V] | Mapping[bytes, V] | Iterable[tuple[str | bytes, V]],
        *,
        ttl: float | None = None,
        if_absent: bool = False,
        refresh: bool = False,
        timeout: float | None = None,
    ) -> PutResults[K]:
        """Write many keys, in order where one occurs twice. Each key has a result of its own: its new version or an error.

        What keeps within the service's limits goes as one batch, larger ones are cut. An error of the whole call is raised when
        it hits the first piece; later it stands in the place of the keys concerned, beside the results of those written before.
        """
        pairs = items.items() if isinstance(items, Mapping) else items
        keys, values = [], []
        for index, (key, value) in enumerate(pairs):
            keys.append(key_bytes(key, f"keys[{index}]"))
            values.append(self._values.encode(value))
        ttl_ms, condition = ttl_milliseconds(ttl), _condition(None, if_absent)
        requests = []
        for piece in batches(keys, values):
            count = len(keys[piece])
            requests.append(
                kv_pb2.BatchWriteRequest(
                    collection=self._name,
                    keys=keys[piece],
                    values=values[piece],
                    ttl_ms=[ttl_ms] * count if ttl_ms else None,
                    conditions=[condition] * count if condition else None,
                    refresh=refresh,
                )
            )
        outcomes: list[int | KvShardError] = []
        for answer in await self._write_pieces(requests, self._deadline(timeout)):
            outcomes += answer if isinstance(answer, list) else _versions(answer)
        return PutResults([self._decode_key(key) for key in keys], outcomes)

    async def delete_many(
        self, keys: Iterable[str | bytes], *, refresh: bool = False, timeout: float | None = None
    ) -> DeleteResults[K]:
        """Delete many keys. Each has a result of its own: whether it was there, or an error; see put_many."""
        wire = [key_bytes(key, f"keys[{index}]") for index, key in enumerate(keys)]
        requests = []
        for piece in batches(wire):
            count = len(wire[piece])
            requests.append(
                kv_pb2.BatchWriteRequest(
                    collection=self._name, keys=wire[piece], values=[b""] * count, deletes=[True] * count, refresh=refresh
                )
            )
        outcomes: list[bool | KvShardError] = []
        for answer in await self._write_pieces(requests, self._deadline(timeout)):
            outcomes += answer if isinstance(answer, list) else _existed(answer)
        return DeleteResults([self._decode_key(key) for key in wire], outcomes)

    async def _write_pieces(
        self, requests: Sequence[kv_pb2.BatchWriteRequest], deadline: float
    ) -> list[kv_pb2.BatchWriteResponse | list[KvShardError]]:
        """The answers in order; after a piece that failed as a whole none is sent, and each key of the rest has an error."""
        answers: list[kv_pb2.BatchWriteResponse | list[KvShardError]] = []
        failed: KvShardError | None = None
        for request in requests:
            if failed is None:
                try:
                    answers.append(await self._write_piece(request, deadline))
                except KvShardError as error:
                    if not answers:
                        raise
                    answers.append([error] * len(request.keys))
                    failed = type(error)(f"not sent, since an earlier part of the batch failed: {error.message}")
            else:
                answers.append([failed] * len(request.keys))
        return answers

    async def _write_piece(self, request: kv_pb2.BatchWriteRequest, deadline: float) -> kv_pb2.BatchWriteResponse:
        """The answer to a batch. Keys that fail for a while are sent again until the deadline. Raises what hits the whole."""
        connection = self._connection
        with connection.write_id() as id:
            answer = await connection.send_write(lambda stubs: stubs.kv.BatchWrite, request, id, deadline=deadline)
            while failed := passing_failures(answer):
                error = id.failed(why_to_pause(list(failed.values())))
                try:
                    await connection.pause_or_raise(error, None, is_repeatable=True, attempts=id.attempts, deadline=deadline)
                except KvShardError:
                    break  # Each key says for itself why.
                part, count = part_of(request, list(failed)), len(request.keys)
                try:
                    again = await connection.send_write(
                        lambda stubs: stubs.kv.BatchWrite, part, id, deadline=deadline, positions=list(failed), total=count
                    )
                except KvShardError as raised:
                    put_in(answer, failed, nothing_but(raised, len(failed)))
                    break
                put_in(answer, failed, again)
        return answer

    def scan(
        self,
        *,
        prefix: str | bytes | None = None,
        start: str | bytes | None = None,
        end: str | bytes | None = None,
        limit: int | None = None,
        keys_only: bool = False,
        resume: bytes | None = None,
        **read: Unpack[ReadOverrides],
    ) -> Scan[K, V]:
        """Iterate over keys in byte order, over all shards: `async for item in kv.scan(prefix="user:")`.

        start is included, end is not. limit: at most this many. resume: the `.token` of an earlier scan with the same range;
        it goes on behind the last key given. timeout: how long the scan may go without progress, not how long it may take.
        """
        return Scan(
            self._connection,
            ScanRange.of(self._name, prefix=prefix, start=start, end=end, limit=limit, keys_only=keys_only),
            self._options.overridden(read),
            self._decode_key,
            self._values,
            resume=resume,
        )


def _versions(response: kv_pb2.BatchWriteResponse) -> list[int | KvShardError]:
    outcomes: list[int | KvShardError] = list(response.versions)
    for failure in response.failures:
        outcomes[failure.index] = error_of_failure(failure.failure)
    return outcomes


def _existed(response: kv_pb2.BatchWriteResponse) -> list[bool | KvShardError]:
    outcomes: list[bool | KvShardError] = list(response.existed)
    for failure in response.failures:
        outcomes[failure.index] = error_of_failure(failure.failure)
    return outcomes
