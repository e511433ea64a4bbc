"""Keeps the search indexes of a leaf's shards: feeds them from the committed log, refreshes, rebuilds and searches them.

Everything that costs CPU runs on threads (tantivy frees the GIL): one for all indexing, since a leaf must not lose its cores to
it, and two for searches. Nothing is pushed into an index: it pulls from the committed log at its own pace, so no queue grows
behind a slow one. The task here only decides which index takes the next step (`leaf/index_slot.py`).
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from kvshard.clock import Clock
from kvshard.clustermap import Collection
from kvshard.errors import DeadlineExceeded, ErrorDetails, Internal, InvalidArgument, NotReady
from kvshard.heap import trim_heap
from kvshard.limits import REFRESH_INTERVAL_S
from kvshard.model import ShardSearch, ShardSearchReply, ShardTerms, ShardTermsReply
from kvshard.rpc.request_times import note_wait
from leaf.admission import SearchQueue
from leaf.force_merge import MergeTurn
from leaf.index_report import IndexReport, report_of
from leaf.index_search import SearchJob
from leaf.index_slot import Fork, IndexSlot, Phase, SlotKey
from leaf.leg_group import LegGroups
from leaf.log_source import LogSource
from leaf.operations import WriteOperation
from leaf.search_plan import SearchPlans
from leaf.search_pool import LONG_AFTER_S, SearchPool
from leaf.term_statistics import TermsJob
from leaf.text_index import IndexFailed, TextIndex, remove_index

__all__ = ["Indexer", "LogSource"]

SEARCH_THREADS: Final = 2
"""tantivy frees the GIL, so that two searches run at once; more would take the cores from the leaf's event loop."""

logger = structlog.get_logger(__name__)


class _Waiter(NamedTuple):
    """Who waits until an index covers a seqno. is_hurried: it is to be refreshed for that, out of turn."""

    seqno: int
    is_hurried: bool
    future: "asyncio.Future[None]"


class Indexer:
    """The search indexes of one leaf. All methods are called on the event loop.

    on_refresh_seconds is told how long each refresh of an index took, on_wasted_seconds of each search for whose answer nobody
    waited any more how long it ran. queue: what is taken on.
    """

    def __init__(
        self,
        root: Path,
        source: LogSource,
        clock: Clock,
        refresh_interval_s: float = REFRESH_INTERVAL_S,
        on_refresh_seconds: Callable[[float], object] = float,
        on_wasted_seconds: Callable[[float], object] = float,
    ) -> None:
        self.queue = SearchQueue(SEARCH_THREADS)
        self._root = root
        self._source = source
        self._clock = clock
        self._interval_s = refresh_interval_s
        self._on_refresh_seconds = on_refresh_seconds
        self._on_wasted_seconds = on_wasted_seconds
        self._slots: dict[SlotKey, IndexSlot] = {}
        self._serving: dict[tuple[int, int], IndexSlot] = {}
        self._shards: set[int] = set()
        self._applied: dict[int, int] = {}
        self._floor: dict[int, int] = {}
        self._news: set[int] = set()
        self._expected: set[int] = set()
        self._waiters: dict[IndexSlot, list[_Waiter]] = {}
        self._unwanted: list[Path] = []
        self._awaited: set[SlotKey] = set()
        self._merge_turn = MergeTurn()
        self._index_pool = ThreadPoolExecutor(1, thread_name_prefix="indexing")
        self._search_pool: SearchPool[ShardSearchReply | ShardTermsReply] = SearchPool(SEARCH_THREADS, clock)
        self._plans, self._groups = SearchPlans(), LegGroups(clock)
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_closing = False

    def __repr__(self) -> str:
        return f"Indexer({sorted(self._slots)}, {self.queue.searches} searches)"

    def open_shard(self, shard: int, collections: Iterable[Collection]) -> None:
        """Start to keep the indexes of this shard, which has recovered. Collections without a schema have none."""
        self._shards.add(shard)
        self._applied[shard] = self._source.applied_seqno(shard)
        self.require(shard, self._applied[shard])
        self._set_collections(shard, collections)
        # Of collections that were dropped while the leaf was down. Not at each change of the map: it reads the whole folder.
        known = {self._path(slot.key) for slot in self._slots_of(shard)}
        self._unwanted += [path for path in self._root.glob(f"{shard}-*") if path not in known]

    def set_collections(self, shards: Iterable[int], collections: Sequence[Collection]) -> None:
        """The map's collections now: indexes of new ones are made, those of dropped ones removed. Shards not open: ignored."""
        for shard in shards:
            if shard in self._shards:
                self._set_collections(shard, collections)

    def close_shard(self, shard: int) -> None:
        """Stop to keep the indexes of this shard; their files stay."""
        self._shards.discard(shard)
        for slot in self._slots_of(shard):
            self._forget(slot)

    def require(self, shard: int, seqno: int) -> None:
        """Answer no search of this shard before its index holds the entries through a seqno.

        An index that was opened, or whose replica was learning, may be behind by any time; afterwards it is by one refresh.
        """
        self._floor[shard] = seqno

    def remove_shard(self, shard: int) -> None:
        """Remove the files of a shard that is not open here."""
        if shard not in self._shards:
            self._unwanted += self._root.glob(f"{shard}-*")
            self._start()

    def split(self, shard: int, child: int, first_slot: int, last_slot: int, seqno: int) -> None:
        """The slots have left the shard for the child with this entry, which is applied: fork its indexes off."""
        for slot in self._slots_of(shard):
            heir = (child, *slot.key[1:])
            if heir in self._slots:
                continue
            self._awaited.add(heir)
            slot.split(Fork(self._path(heir), child, first_slot, last_slot, seqno))
        self._start()

    def notify(self, shard: int, applied_seqno: int, operations: Iterable[object] = ()) -> None:
        """The shard has applied entries through this seqno. Cheap; called after each apply.

        operations: of these entries; by them it is known how old what an index does not show yet is.
        """
        self._applied[shard] = applied_seqno
        if not self._slots:
            return  # The task would wake for nothing, at every write.
        for collection_id in {each.collection_id for each in operations if isinstance(each, WriteOperation)}:
            slot = self._serving.get((shard, collection_id))
            if slot is not None:
                slot.unseen.note(applied_seqno, self._clock.monotonic())
        if shard not in self._news or shard in self._expected:
            self._news.add(shard)
            self._wake.set()

    async def refresh(self, shard: int, seqno: int, *, is_hurried: bool = True) -> None:
        """Return when searches of this shard see everything through the seqno. is_hurried: no regular refresh is waited for."""
        slots = [slot for slot in self._slots_of(shard) if not slot.is_beside and not slot.covers(seqno)]
        waits = [self._wait_for(slot, seqno, is_hurried=is_hurried) for slot in slots]
        if waits:
            await asyncio.gather(*waits)

    def indexed_through(self, shard: int, collection_id: int) -> int:
        """The seqno through which every index of it is durable, 0 while one is made; the log beyond must be kept."""
        slots = [slot for slot in self._slots_of(shard) if slot.collection.id == collection_id and not slot.needs_no_log]
        return min((slot.indexed_through() for slot in slots), default=0)

    def report(self, shard: int, collection_id: int) -> IndexReport:
        """How the indexes of a collection are."""
        slots = [slot for slot in self._slots_of(shard) if slot.collection.id == collection_id]
        documents = self._source.live_documents(shard, collection_id) if slots else 0
        return report_of(slots, documents)

    def ready(self, collection_id: int, version: int) -> frozenset[int]:
        """The shards in which the index of this schema version could serve."""
        slots = (self._slots.get((shard, collection_id, version)) for shard in self._shards)
        return frozenset(slot.shard for slot in slots if slot is not None and slot.is_ready)

    async def search(self, request: ShardSearch, collection: Collection, deadline: float) -> ShardSearchReply:
        """Answer a search of a shard; the deadline is on the clock's monotonic time.

        A search during a rebuild waits for it, and raises NotReady at its deadline.
        """
        slot = self._slot_for(request.shard, collection)
        job = SearchJob(request, collection, self._source, self._clock, deadline, slot.unseen, self._plans)
        reply = await self._answer(slot, job, deadline, request.refresh)
        assert isinstance(reply, ShardSearchReply)
        return reply

    async def term_statistics(self, request: ShardTerms, collection: Collection, deadline: float) -> ShardTermsReply:
        """Tell a shard's statistics for some terms: the same in all else."""
        slot = self._slot_for(request.shard, collection)
        reply = await self._answer(slot, TermsJob(request, collection, self._source), deadline)
        assert isinstance(reply, ShardTermsReply)
        return reply

    async def _answer(
        self, slot: IndexSlot, job: SearchJob | TermsJob, deadline: float, refresh: bool = False
    ) -> ShardSearchReply | ShardTermsReply:
        shard = slot.shard
        began = self._clock.monotonic()
        refusal = self.queue.refusal(deadline - began)
        if refusal is not None:
            raise refusal
        self.queue.enter()
        ran: list[float] = []
        try:
            async with asyncio.timeout(max(deadline - began, 0.0)):
                return await self._run_in(slot, job, refresh, ran)
        except TimeoutError:
            details = ErrorDetails(shards=(shard,))
            if slot.phase is not Phase.SERVING:
                message = f"the search index of shard {shard} is being rebuilt"
                raise NotReady(message, details) from None
            raise DeadlineExceeded(f"the deadline passed during a search of shard {shard}", details) from None
        finally:
            self.queue.leave()
            note_wait(self._clock.monotonic() - began - sum(ran))

    async def close(self) -> None:
        """Stop the task and the threads. What was not committed is read from the log at the next start."""
        self._is_closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
            self._task = None
        for slot in list(self._slots.values()):
            self._forget(slot)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._search_pool.close)
        await loop.run_in_executor(None, self._index_pool.shutdown)

    async def _run_in(
        self, slot: IndexSlot, job: SearchJob | TermsJob, refresh: bool, ran: list[float]
    ) -> ShardSearchReply | ShardTermsReply:
        """ran: gets how long the job ran on a thread."""
        shard, applied = slot.shard, self._source.applied_seqno(slot.shard)
        await self._wait_for(slot, applied if refresh else min(applied, self._floor.get(shard, 0)))
        for _ in range(2):
            index = await self._serving_index(slot)
            try:
                return await self._run_job(job, index, ran)
            except IndexFailed as error:
                logger.error("search failed in the index", shard=shard, collection=slot.collection.name, error=str(error))
                if not error.is_damage or not slot.report_damage(index):
                    break
                self._start()
                await self._wait_until_replaced(slot, index)
        raise Internal(f"the search index of shard {shard} failed", ErrorDetails(shards=(shard,)))

    async def _run_job(
        self, job: SearchJob | TermsJob, index: TextIndex, ran: list[float]
    ) -> ShardSearchReply | ShardTermsReply:
        if self._is_closing:
            raise NotReady("the leaf is stopping")

        def on_end(seconds: float, is_wanted: bool) -> None:
            ran.append(seconds)
            self.queue.note_run(min(seconds, LONG_AFTER_S))  # Long ones keep nobody waiting: see the pool.
            if not is_wanted:
                self._on_wasted_seconds(seconds)

        if isinstance(job, SearchJob):
            job.bind(index, self._groups, asyncio.get_running_loop().call_soon, self._search_pool)
        try:
            return await self._search_pool.submit(job.group, partial(job.run, index), on_end)
        except DeadlineExceeded:
            self._on_wasted_seconds(ran[-1])
            raise
        except asyncio.CancelledError:
            job.cancel()
            raise

    async def _serving_index(self, slot: IndexSlot) -> TextIndex:
        while slot.index is None or slot.phase is not Phase.SERVING:
            await self._wait_for(slot, 0)
        return slot.index

    async def _wait_until_replaced(self, slot: IndexSlot, index: TextIndex) -> None:
        while slot.index is index:
            await self._wait_for(slot, 0, is_new=True)

    async def _wait_for(self, slot: IndexSlot, seqno: int, *, is_new: bool = False, is_hurried: bool = True) -> None:
        """Return when the slot covers the seqno; is_new: not before its next step. is_hurried: have that step taken at once."""
        if slot.covers(seqno) and not is_new:
            return
        if self._is_closing or self._slots.get(slot.key) is not slot:
            raise _gone(slot)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(slot, []).append(_Waiter(seqno, is_hurried, future))
        self._start()
        await future

    def _slot_for(self, shard: int, collection: Collection) -> IndexSlot:
        if not collection.schema:
            message = f"collection {collection.name} has no schema, so it cannot be searched"
            raise InvalidArgument(message, ErrorDetails(field="collection"))
        if shard not in self._shards or self._is_closing:
            raise NotReady(f"shard {shard} is not open at this leaf", ErrorDetails(shards=(shard,)))
        slot = self._slots.get((shard, collection.id, collection.version))
        return slot if slot is not None else self._add(shard, collection)

    def _slots_of(self, shard: int) -> list[IndexSlot]:
        return [slot for slot in self._slots.values() if slot.shard == shard]

    def _set_collections(self, shard: int, collections: Iterable[Collection]) -> None:
        wanted = {(each.id, each.version): each for each in collections if each.schema}
        coming = {(each.id, each.version): each for each in (one.changed() for one in collections if one.change is not None)}
        for slot in self._slots_of(shard):
            if slot.key[1:] not in wanted and slot.key[1:] not in coming:
                self._forget(slot, remove=True)
        for version, collection in {**wanted, **coming}.items():
            slot = self._slots.get((shard, *version)) or self._add(shard, collection, version in coming)
            if slot.is_beside and version in wanted:
                # What a search could see before the switch it must see after it.
                slot.is_beside = False
                self._serving[shard, slot.collection.id] = slot
                self.require(shard, max(self._floor.get(shard, 0), self._applied.get(shard, 0)))
        self._start()

    def _add(self, shard: int, collection: Collection, is_beside: bool = False) -> IndexSlot:
        key = (shard, collection.id, collection.version)
        slot = IndexSlot(self._path(key), shard, collection, self._source, self._clock, self._merge_turn)
        slot.is_beside = is_beside
        slot.is_awaited = key in self._awaited
        self._slots[key] = slot
        if not is_beside:
            self._serving[shard, collection.id] = slot
        self._start()
        return slot

    def _path(self, key: SlotKey) -> Path:
        shard, collection_id, version = key
        return self._root / (f"{shard}-{collection_id}" if version == 1 else f"{shard}-{collection_id}-{version}")

    def _forget(self, slot: IndexSlot, remove: bool = False) -> None:
        del self._slots[slot.key]
        if self._serving.get(slot.key[:2]) is slot:
            del self._serving[slot.key[:2]]
        self._end_waiting(slot.forks, slot)
        for waiter in self._waiters.pop(slot, []):
            if not waiter.future.done():
                waiter.future.set_exception(_gone(slot))
        if remove:
            self._unwanted.append(self._path(slot.key))
        self._index_pool.submit(slot.close)

    def _end_waiting(self, forks: Iterable[Fork], parent: IndexSlot) -> None:
        """These indexes are made, or will not be."""
        for fork in forks:
            heir = (fork.child, *parent.key[1:])
            self._awaited.discard(heir)
            child = self._slots.get(heir)
            if child is not None:
                child.is_awaited = False
                self._wake.set()

    def _start(self) -> None:
        """There is something to do: wake the task, and start it if it does not run yet."""
        self._wake.set()
        if self._task is None and not self._is_closing:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="indexer")

    async def _run(self) -> None:
        while not self._is_closing:
            self._wake.clear()
            await self._remove_unwanted()
            due = await self._step_slots()
            delay = None if due is None else max(due - self._clock.monotonic(), 0.0)
            if delay is None or delay > 0.0:
                await self._sleep(delay)

    async def _sleep(self, delay: float | None) -> None:
        try:
            async with asyncio.timeout(delay):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _step_slots(self) -> float | None:
        """One step for every index that is due. Returns when the next one will be."""
        self._news.clear()
        self._expected.clear()
        due: list[float] = []
        for slot in list(self._slots.values()):
            due_at = self._due_at(slot)
            if due_at is not None and due_at <= self._clock.monotonic() and not self._is_closing:
                await self._step(slot)
                due_at = self._due_at(slot)
            if due_at is not None:
                due.append(due_at)
                is_soon = due_at <= self._clock.monotonic() + self._interval_s
                if is_soon and not slot.covers(self._applied.get(slot.shard, 0)):
                    self._news.add(slot.shard)  # the task wakes soon anyhow: more news of this shard need not wake it
        return min(due, default=None)

    def _due_at(self, slot: IndexSlot) -> float | None:
        if self._slots.get(slot.key) is not slot or not self._may_step(slot):
            return None
        applied, wanted = self._applied.get(slot.shard, 0), 0
        for seqno, is_hurried, future in self._waiters.get(slot, ()):
            if is_hurried and not future.done():
                if seqno > applied:
                    self._expected.add(slot.shard)  # There is nothing to do for it before that entry is there.
                wanted = max(wanted, min(seqno, applied))
        return slot.due_at(applied, wanted, self._interval_s)

    def _may_step(self, slot: IndexSlot) -> bool:
        """One index that nobody waits for is built at a time: each holds memory, and all of them one thread."""
        if not slot.is_beside or slot.phase is not Phase.REBUILDING:
            return True
        building = [each for each in self._slots.values() if each.phase is Phase.REBUILDING]
        first = min(building, key=lambda each: (each.is_beside, not each.has_begun))
        return first is slot

    async def _step(self, slot: IndexSlot) -> None:
        started, before, had_writer = self._clock.monotonic(), slot.indexed_through(), slot.has_writer
        forks, was_building = slot.forks, slot.phase is Phase.REBUILDING
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._index_pool, slot.step, lambda: self._is_closing)
        slot.unseen.forget(slot.indexed_through())
        self._end_waiting([fork for fork in forks if fork not in slot.forks], slot)
        if was_building and slot.phase is not Phase.REBUILDING:
            self._wake.set()  # The next one has waited for that.
        if slot.indexed_through() > before:
            self._on_refresh_seconds(self._clock.monotonic() - started)
        if had_writer and not any(each.has_writer for each in self._slots.values()):
            await loop.run_in_executor(self._index_pool, trim_heap)
        left: list[_Waiter] = []
        for waiter in self._waiters.pop(slot, []):
            if waiter.future.done():
                continue
            if slot.covers(waiter.seqno):
                waiter.future.set_result(None)
            else:
                left.append(waiter)
        if left:
            self._waiters[slot] = left

    async def _remove_unwanted(self) -> None:
        loop = asyncio.get_running_loop()
        while self._unwanted:
            path = self._unwanted.pop()
            if any(path == self._path(key) for key in self._slots):
                continue  # wanted again
            try:
                await loop.run_in_executor(self._index_pool, remove_index, path)
            except IndexFailed as error:
                logger.warning("search index cannot be removed", path=path.name, error=str(error))


def _gone(slot: IndexSlot) -> NotReady:
    message = f"the search index of {slot.collection.name} in shard {slot.shard} was closed"
    return NotReady(message, ErrorDetails(shards=(slot.shard,)))
