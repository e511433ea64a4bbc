"""What a replica's state machine wants that takes time: the coordinator asked, a snapshot read. Answers come back as events.

Each errand is a task of its own, and none is left behind by `close`. The machine bounds them: one change of its replica set,
and one piece of each snapshot, is under way at a time.
"""

import asyncio
from collections.abc import Callable, Coroutine

import structlog

from kvshard.clock import Clock
from kvshard.clustermap import ShardConfig
from kvshard.coordination.base import CoordinatorUnavailable
from kvshard.errors import Unavailable
from leaf.committer import Committer
from leaf.engine import StorageError
from leaf.hosting import Maps
from leaf.replica import OpenSnapshot, Replica
from leaf.replication.events import CasAnswer, ConfigSeen, Event, Outcome, SnapshotRows
from leaf.snapshots import Pace

_log = structlog.get_logger(__name__)


class Errands:
    """The errands of one leaf's replicas. step: takes an event to a replica. stop: ends one replica by a defect."""

    def __init__(
        self,
        maps: Maps,
        clock: Clock,
        committer: Committer,
        step: Callable[[Replica, Event], None],
        stop: Callable[[Replica, str, Exception], None],
    ) -> None:
        self._maps = maps
        self._clock = clock
        self._committer = committer
        self._step = step
        self._stop = stop
        self._pace = Pace()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"Errands({len(self._tasks)} under way)"

    async def close(self) -> None:
        """End those under way; later ones are not begun, since nobody would wait for them."""
        self._is_closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def compare_and_set(self, replica: Replica, expected_epoch: int, config: ShardConfig) -> None:
        """Ask for a change of the replica set; answered with CasAnswer."""
        if not self._is_closed:
            self._spawn(self._compare_and_set(replica, expected_epoch, config))

    def read_config(self, replica: Replica) -> None:
        """Ask what the coordinator holds; answered with ConfigSeen, or not at all: the machine asks again."""
        if not self._is_closed:
            self._spawn(self._read_config(replica))

    def read_snapshot(self, replica: Replica, number: int, cursor: object) -> None:
        """Read the next piece of an open snapshot; answered with SnapshotRows unless it is closed meanwhile."""
        snapshot = replica.snapshots.get(number)
        if snapshot is not None and not self._is_closed:
            snapshot.task = self._spawn(self._read_snapshot(replica, snapshot, number, cursor))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="replication")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _compare_and_set(self, replica: Replica, expected_epoch: int, config: ShardConfig) -> None:
        held: ShardConfig | None = None
        try:
            result = await self._maps.compare_and_set(config, expected_epoch)
            outcome, held = Outcome[result.outcome.name], result.config
        except (Unavailable, CoordinatorUnavailable) as error:
            _log.warning("replica set may have changed", shard=replica.shard, reason=str(error))
            outcome = Outcome.UNKNOWN
        except Exception:
            _log.exception("changing the replica set failed", shard=replica.shard)
            outcome = Outcome.UNKNOWN
        self._step(replica, CasAnswer(expected_epoch, outcome, held))

    async def _read_config(self, replica: Replica) -> None:
        try:
            config = await self._maps.read_shard(replica.shard)
        except (Unavailable, CoordinatorUnavailable):
            return
        except Exception:
            _log.exception("reading the replica set failed", shard=replica.shard)
            return
        self._step(replica, ConfigSeen(config))

    async def _read_snapshot(self, replica: Replica, snapshot: OpenSnapshot, number: int, cursor: object) -> None:
        try:
            await asyncio.sleep(self._pace.take(self._clock.monotonic()))
            rows, following = await asyncio.to_thread(snapshot.source.read, cursor)
        except StorageError as error:
            self._committer.fail(str(error))
            return
        except Exception as defect:  # Unseen, the learner would wait for the rest for ever.
            self._stop(replica, "ReadSnapshot", defect)
            return
        finally:
            snapshot.task = None
            if number not in replica.snapshots:
                snapshot.source.close()  # Closed while it was read.
        if number in replica.snapshots:
            snapshot.sent_bytes += sum(len(key) + len(value) for key, value in rows)
            self._step(replica, SnapshotRows(number, rows, following))
