"""Carries key operations nowhere: over a dict, one step of the event loop an answer, or when the test says so."""

import asyncio
from collections import deque
from random import Random

from kvshard.client.codecs import BYTES
from kvshard.client.connection import Connection
from kvshard.client.keyspace import Keyspace
from kvshard.client.retries import RetryPolicy
from kvshard.client.transport import KeyTransport, ReadHeard, TakeBack
from kvshard.errors import Cancelled, ErrorDetails, KvShardError, ResourceExhausted, VersionConflict, record_of
from kvshard.lane_messages import KeysRead, KeysReadReply, KeysWrite, KeysWriteReply
from kvshard.rpc.status import failure_of_key
from kvshard.v1 import kv_pb2, types_pb2

AT_ONCE = RetryPolicy(base_delay_s=0.0, max_delay_s=0.0)
"""Repetitions without a pause, for tests that must not sleep."""


class MemoryKeys(KeyTransport):
    """reads, writes: every request, in order. failures: what the next requests fail with as a whole (None: nothing).

    dead_keys: keys that fail on their own. hold(): from now on each request waits in `held` until its future is done.
    cancelled: requests that were taken back. wrote: (key, value, number of the id) of each operation done, in order.
    answer_max_keys: the last keys of a read that asks for more find no room. stuck_keys: requests for any of these wait as if
    held.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[str, bytes], tuple[bytes, int]] = {}
        self.reads: list[KeysRead] = []
        self.writes: list[KeysWrite] = []
        self.deadlines: list[float] = []
        self.failures: deque[KvShardError | None] = deque()
        self.dead_keys: dict[bytes, KvShardError] = {}
        self.held: list[asyncio.Future[None]] = []
        self.cancelled = 0
        self.is_closed = False
        self.is_holding = False
        self.stuck_keys: set[bytes] = set()
        self.wrote: list[tuple[bytes, bytes | None, int]] = []
        self.watermarks = b""
        self.answer_max_keys: int | None = None
        self._version = 0

    def __repr__(self) -> str:
        return f"MemoryKeys(reads={len(self.reads)}, writes={len(self.writes)}, held={len(self.held)})"

    def hold(self) -> None:
        """Let requests wait from now on."""
        self.is_holding = True

    def release(self) -> None:
        """Let all that waits go on, and whatever comes."""
        self.is_holding = False
        for gate in self.held:
            if not gate.done():
                gate.set_result(None)

    def put(self, key: bytes, value: bytes, collection: str = "default") -> int:
        """Put a row."""
        self._version += 1
        self.rows[collection, key] = value, self._version
        return self._version

    async def read(self, request: KeysRead, deadline: float) -> KeysReadReply:
        """Read keys."""
        self.reads.append(request)
        await self._pass(request.keys, deadline)
        failures = {index: self.dead_keys[key] for index, key in enumerate(request.keys) if key in self.dead_keys}
        for index in range(self.answer_max_keys or len(request.keys), len(request.keys)):
            failures[index] = ResourceExhausted("the answer would be too large", ErrorDetails(field="keys", limit=1))
        rows = [self.rows.get((request.collection, key)) for key in request.keys]
        rest = kv_pb2.BatchGetResponse(failures=_failures(failures))
        if not request.is_each_alone:
            rest.coverage.CopyFrom(types_pb2.Coverage(complete=True, fraction=1.0))
        return KeysReadReply(
            [row[0] if row and index not in failures else None for index, row in enumerate(rows)],
            [row[1] if row and index not in failures else 0 for index, row in enumerate(rows)],
            rest=rest.SerializeToString(),
        )

    async def write(self, request: KeysWrite, deadline: float) -> KeysWriteReply:
        """Write keys."""
        self.writes.append(request)
        await self._pass(request.keys, deadline)
        number = types_pb2.RequestId.FromString(request.request_id).number
        failures: dict[int, KvShardError] = {}
        versions, existed = [], []
        for index, (key, value) in enumerate(zip(request.keys, request.values, strict=True)):
            present = self.rows.get((request.collection, key))
            condition = request.conditions[index] if request.conditions else None
            if key in self.dead_keys:
                failures[index] = self.dead_keys[key]
            elif condition is not None and condition != (present[1] if present else 0):
                current = present[1] if present else 0
                failures[index] = VersionConflict(f"version {current}", ErrorDetails(current_version=current))
            else:
                self.wrote.append((key, value, number))
                if value is None:
                    self.rows.pop((request.collection, key), None)
                else:
                    self.put(key, value, request.collection)
            versions.append(0 if index in failures else self._version)
            existed.append(present is not None and index not in failures)
        rest = kv_pb2.BatchWriteResponse(failures=_failures(failures), watermarks=self.watermarks)
        return KeysWriteReply(versions, existed, rest.SerializeToString())

    async def close(self) -> None:
        """Nothing to close."""
        self.is_closed = True

    async def _pass(self, keys: list[bytes], deadline: float) -> None:
        self.deadlines.append(deadline)
        if self.is_holding or not self.stuck_keys.isdisjoint(keys):
            gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.held.append(gate)
            try:
                await gate
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        failure = self.failures.popleft() if self.failures else None
        if failure is not None:
            raise failure


class StartedKeys(MemoryKeys):
    """The same, for whom a read is started without awaiting anything."""

    def __init__(self) -> None:
        super().__init__()
        self._started: set[asyncio.Task[KeysReadReply]] = set()
        self.can_start = True

    def begin_read(self, request: KeysRead, deadline: float, heard: ReadHeard) -> TakeBack | None:
        """Start a read, unless that cannot be now."""
        if not self.can_start:
            return None
        task = asyncio.create_task(self.read(request, deadline))
        self._started.add(task)
        is_taken_back = False

        def tell(task: asyncio.Task[KeysReadReply]) -> None:
            self._started.discard(task)
            if is_taken_back:
                return
            if task.cancelled():
                heard(Cancelled("somebody has cancelled every task"))
                return
            error = task.exception()
            heard(task.result() if error is None else error if isinstance(error, KvShardError) else None)

        def take_back() -> None:
            nonlocal is_taken_back
            is_taken_back = True
            task.cancel()

        task.add_done_callback(tell)
        return take_back


def _failures(failures: dict[int, KvShardError]) -> list[types_pb2.KeyFailure]:
    return [types_pb2.KeyFailure(index=index, failure=failure_of_key(record_of(error))) for index, error in failures.items()]


def keyspace_over(transport: KeyTransport, retries: RetryPolicy = AT_ONCE) -> Keyspace[str, bytes]:
    """The keys of the default collection, carried by this transport; end it with `_connection.close()`."""
    connection = Connection(("127.0.0.1:1",), retries, random=Random(1))
    connection.keys.transport = transport
    return Keyspace(connection, "default", str, BYTES)


async def passes(count: int = 8) -> None:
    """Let the event loop go round so often."""
    for _ in range(count):
        await asyncio.sleep(0)
