"""Streams to the other leaves: carries what the replicas of this leaf say to theirs.

One stream from this leaf to each other one, for all shards that they share; what gathers in a pass of the event loop travels as
one batch. Nothing here is sure: a message is lost when a stream breaks, when its leaf does not read for too long, or when the
queue is full. The replication protocol repeats what matters.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

from kvshard.clock import Clock
from kvshard.clustermap import Replica
from kvshard.errors import Unavailable
from kvshard.rpc.peer_stream import PeerStream
from leaf.entry_codec import EntryRows
from leaf.peer_codec import Envelope, decode, encode
from leaf.replication.messages import Message, Prepare, SnapshotChunk

QUEUE_MAX_BYTES: Final = 64 * 1024 * 1024
"""Entries and rows that wait for one leaf: two of the largest batches. The windows of the protocol keep it far below."""

QUEUE_MAX_MESSAGES: Final = 20_000
"""Small messages that wait for one leaf: seconds of beacons of a thousand shards."""

BATCH_BYTES: Final = 256 * 1024
"""Of one gRPC message; a larger entry travels alone. Its receiver takes it in in one turn of its event loop: at most some
thousand entries of a small key, 10 ms."""

STALE_S: Final = 1.0
"""What waited longer is dropped: its sender has repeated it by now, or has given the receiver up."""

RECONNECT_FIRST_S: Final = 0.02
RECONNECT_MAX_S: Final = 0.5
"""Pause after a stream broke, doubled up to the maximum: a leaf that restarts is missed for no longer than that."""

MESSAGE_BYTES: Final = 128
"""What a message without entries or rows takes, about."""

_log = structlog.get_logger(__name__)


def size_of(message: Message) -> int:
    """About how many bytes a message takes."""
    if isinstance(message, Prepare):
        return MESSAGE_BYTES + sum(MESSAGE_BYTES + entry.size for entry in message.entries)
    if isinstance(message, SnapshotChunk) and isinstance(message.rows, list):
        return MESSAGE_BYTES + sum(len(key) + len(value) for key, value in message.rows)
    return MESSAGE_BYTES


class Outbox:
    """What waits for one leaf. Snapshots give way to entries, and both to the small messages that leases depend on."""

    def __init__(self) -> None:
        self._lanes: tuple[deque[tuple[float, int, Envelope]], ...] = (deque(), deque(), deque())
        self.bytes = 0
        self.dropped = 0

    def __len__(self) -> int:
        return sum(map(len, self._lanes))

    def put(self, envelope: Envelope, now: float) -> None:
        """Add a message. When there are too many the oldest go, for they are the least worth: of snapshots first, then of
        entries; small messages make room only for their own kind."""
        _, entries, snapshots = self._lanes
        message = envelope.message
        lane = self._lanes[2 if isinstance(message, SnapshotChunk) else 1 if isinstance(message, Prepare) else 0]
        size = size_of(message)
        lane.append((now, size, envelope))
        self.bytes += size
        if len(lane) > QUEUE_MAX_MESSAGES:
            self._drop(lane)
        while self.bytes > QUEUE_MAX_BYTES and snapshots:
            self._drop(snapshots)
        while self.bytes > QUEUE_MAX_BYTES and len(entries) > 1:
            self._drop(entries)

    def _drop(self, lane: deque[tuple[float, int, Envelope]]) -> None:
        self.bytes -= lane.popleft()[1]
        self.dropped += 1

    def take(self, now: float) -> list[Envelope]:
        """What is sent next, as one batch; empty when nothing waits."""
        batch: list[Envelope] = []
        room = BATCH_BYTES
        for lane in self._lanes:
            while lane and lane[0][0] < now - STALE_S:
                self._drop(lane)
            while lane and (room >= lane[0][1] or not batch):
                _, size, envelope = lane.popleft()
                self.bytes -= size
                room -= size
                batch.append(envelope)
        return batch

    def clear(self) -> None:
        """Forget what waits."""
        for lane in self._lanes:
            self.dropped += len(lane)
            lane.clear()
        self.bytes = 0


class _Link:
    """The way to one leaf: its outbox, and the task that empties it."""

    def __init__(self, leaf: str) -> None:
        self.leaf = leaf
        self.outbox = Outbox()
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Peers:
    """The streams of one leaf. address_of: a leaf's `host:port` now. on_message gets what other leaves' replicas say."""

    def __init__(
        self,
        leaf: str,
        cluster: Callable[[], str],
        address_of: Callable[[str], str | None],
        rows: EntryRows,
        clock: Clock,
        on_message: Callable[[int, Replica, Replica, Message], None],
        rng: random.Random | None = None,
    ) -> None:
        self._leaf = leaf
        self._cluster = cluster
        self._address_of = address_of
        self._rows = rows
        self._clock = clock
        self._on_message = on_message
        self._rng = rng or random.Random()
        self._links: dict[str, _Link] = {}
        self._is_closed = False

    def __repr__(self) -> str:
        return f"Peers({self._leaf}, {[(link.leaf, len(link.outbox)) for link in self._links.values()]})"

    def send(self, leaf: str, shard: int, sender: Replica, receiver: Replica, message: Message) -> None:
        """Have a message sent. Returns at once."""
        if self._is_closed:
            return
        link = self._links.get(leaf)
        if link is None:
            link = self._links[leaf] = _Link(leaf)
            link.task = asyncio.create_task(self._run(link), name=f"peer-{leaf}")
        link.outbox.put(Envelope(shard, sender, receiver, message), self._clock.monotonic())
        link.wake.set()

    def receive(self, sender: str, payload: bytes) -> None:
        """A batch of another leaf has come. Raises ValueError when it is damaged."""
        for shard, from_replica, to_replica, message in decode(payload, sender, self._leaf, self._rows.entry_of):
            self._on_message(shard, from_replica, to_replica, message)

    async def close(self) -> None:
        """End every stream; what waits is dropped."""
        self._is_closed = True
        tasks = [link.task for link in self._links.values() if link.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._links.clear()

    async def _run(self, link: _Link) -> None:
        pause = RECONNECT_FIRST_S
        while True:
            await link.wake.wait()
            address = self._address_of(link.leaf)
            if address:
                began = self._clock.monotonic()
                try:
                    await self._stream(link, address)
                except Unavailable as error:
                    _log.debug("stream to a leaf broke", leaf=link.leaf, reason=error.message)
                except Exception:  # Whatever it is, the next stream may do better; without one the leaf looks dead.
                    _log.exception("stream to a leaf failed", leaf=link.leaf)
                if self._clock.monotonic() - began > RECONNECT_MAX_S:
                    pause = RECONNECT_FIRST_S
            link.outbox.clear()
            link.wake.clear()
            await asyncio.sleep(pause * self._rng.uniform(0.5, 1.0))
            pause = min(2 * pause, RECONNECT_MAX_S)

    async def _stream(self, link: _Link, address: str) -> None:
        """One stream, until it breaks or the leaf has another address."""
        stream = PeerStream(address, self._cluster(), self._leaf, link.leaf)
        stream.on_end(link.wake.set)
        try:
            while self._address_of(link.leaf) == address and not stream.has_ended:
                batch = link.outbox.take(self._clock.monotonic())
                if not batch:
                    link.wake.clear()
                    await link.wake.wait()
                    continue
                await stream.write(encode(batch, self._rows.row_of))
        finally:
            await stream.close()
