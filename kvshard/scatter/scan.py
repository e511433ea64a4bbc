"""Scan: every shard is read in chunks, and the chunks are merged into one ordered stream.

A shard that is split meanwhile goes on as two, each behind what the shard had delivered.

Owns the tasks that fetch chunks; leaving the stream early, by cancellation too, cancels and awaits them. Back-pressure: while
the caller does not ask for the next page, at most one further chunk a shard is fetched (`scan_merge` bounds it). How large
chunks are, and what all scans together may hold, is decided in `scan_chunks`.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from random import Random

from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap, Collection, ShardConfig
from kvshard.errors import DeadlineExceeded, ErrorDetails, Internal, ShardMoved, record_of
from kvshard.model import ShardScan, ShardScanReply
from kvshard.rpc.leaf_client import LeafClient
from kvshard.scatter.coverage import Coverage, FailedLeg, KnownCounts, coverage_of, shortfall
from kvshard.scatter.gather import ReadState, raise_request_fault
from kvshard.scatter.ledger import ScanTimes
from kvshard.scatter.leg import How
from kvshard.scatter.moved import Rounds, heirs
from kvshard.scatter.requests import KeyRange, ReadPolicy
from kvshard.scatter.routes import MapSource, resolve
from kvshard.scatter.scan_chunks import SHORT_SCAN_KEYS, ScanMemory, ScanPart, chunk_keys, routing_prefix
from kvshard.scatter.scan_merge import Rows, ScanMerge
from kvshard.scatter.scatter import LegResult, Scatter
from kvshard.scatter.tokens import ScanPosition, TokenCodec, fingerprint

PAGE_MAX_KEYS = 1_000
PAGE_MAX_BYTES = 1024 * 1024
"""One message of the stream: large enough that its cost per key vanishes, small enough that the first keys come soon."""

PAGE_MIN_KEYS = 100
PAGE_MIN_BYTES = 64 * 1024
"""While chunks are on the way less than both is not worth a message. A short scan waits for all that it wants."""

CHUNK_TIMEOUT_S = 10.0
"""A fetch that takes longer is a failed leg, also in a scan without a deadline."""

PATIENCE = 0.5
"""Of a stream's time: how long a scan that may go on without a shard waits for it. The rest is for the others' keys."""

OTHER_FAILURES_WAIT_S = 0.1
"""After the first failed shard, how long the others that are being asked may take to fail too, so that the error names all."""


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """A scan in domain terms. range_fields: prefix, start and end as they came, for the token. limit 0: all keys."""

    range: KeyRange
    range_fields: tuple[bytes, bytes, bytes]
    limit: int
    is_keys_only: bool
    token: bytes


@dataclass(frozen=True, slots=True)
class ScanPage:
    """Rows in key order, in columns. token: resumes after them, empty at the end. coverage, states: set on the last page only.

    values: empty ones where only keys were asked for. expires_at_ms: empty when none expires. is_incomplete: keys are missing
    from this page or from one that it continues, since a shard did not answer. states: by shard, of each the oldest that a
    chunk was read from.
    """

    keys: Sequence[bytes]
    values: Sequence[bytes]
    versions: Sequence[int]
    expires_at_ms: Sequence[int]
    token: bytes
    coverage: Coverage | None = None
    states: list[ReadState] = field(default_factory=list)
    is_incomplete: bool = False


@dataclass(slots=True)
class _Progress:
    """One scan under way. configs: the shards, as they are asked. moved: those that were split since; rounds: see `Rounds`.

    chunk_timeout_s: what a fetch may take. times: the account of the read. part: what it holds of the memory for scans.
    fingerprint: of the request, for its tokens.
    """

    configs: dict[int, ShardConfig]
    collection: Collection
    request: ScanRequest
    policy: ReadPolicy
    how: How
    deadline: float
    merge: ScanMerge
    part: ScanPart
    chunk_timeout_s: float
    is_continuing_incomplete: bool
    fingerprint: bytes
    times: ScanTimes | None = None
    documents: dict[int, int] = field(default_factory=dict)
    failed: dict[int, FailedLeg] = field(default_factory=dict)
    states: dict[int, ReadState] = field(default_factory=dict)
    moved: set[int] = field(default_factory=set)
    rounds: Rounds | None = None
    fetches: set[asyncio.Task[list[LegResult[ShardScanReply]]]] = field(default_factory=set)
    rows_left: int | None = None

    @property
    def is_incomplete(self) -> bool:
        """A shard is missing from what is emitted now, or was from what this scan continues."""
        return bool(self.failed) or self.is_continuing_incomplete

    @property
    def is_short(self) -> bool:
        """What is left of it fits one page."""
        return self.rows_left is not None and self.rows_left <= min(SHORT_SCAN_KEYS, PAGE_MAX_KEYS)

    @property
    def enough(self) -> int:
        """Rows that are worth a page."""
        return self.rows_left if self.rows_left is not None and self.is_short else PAGE_MIN_KEYS

    @property
    def is_page_due(self) -> bool:
        """Nothing is to be waited for before the next page."""
        merge = self.merge
        if not merge.ready_rows:
            return merge.is_done
        if merge.ready_rows >= self.enough or not self.fetches:
            return True
        return merge.ready_rows * merge.row_bytes >= (PAGE_MAX_BYTES if self.is_short else PAGE_MIN_BYTES)

    @property
    def unheard(self) -> bool:
        """Some shard has neither answered nor failed yet."""
        return any(shard not in self.documents and shard not in self.failed for shard in self.configs)

    def fail(self, leg: FailedLeg) -> None:
        """Give a shard up; what it delivered is still emitted, but it does not count as having answered."""
        self.failed[leg.shard] = leg
        self.documents.pop(leg.shard, None)
        self.merge.fail(leg.shard)


class ScanOperation:
    """Scan in domain terms."""

    def __init__(
        self,
        maps: MapSource,
        leaves: LeafClient,
        scatter: Scatter,
        known: KnownCounts,
        tokens: TokenCodec,
        clock: Clock,
    ) -> None:
        self._maps = maps
        self._leaves = leaves
        self._scatter = scatter
        self._known = known
        self._tokens = tokens
        self._clock = clock
        self._rng = Random()
        self.memory = ScanMemory()

    async def scan(
        self,
        collection_name: str,
        request: ScanRequest,
        policy: ReadPolicy,
        deadline: float,
        times: ScanTimes | None = None,
    ) -> AsyncGenerator[ScanPage, None]:
        """The pages of a scan, the last one with its coverage. Close the generator when leaving it early.

        times: the account of the read.
        Raises Unavailable when the coverage falls short and the policy does not accept a part, ResourceExhausted when the scans
        under way hold too much.
        """
        progress = await self._begin(collection_name, request, policy, deadline)
        progress.times = times
        try:
            while True:
                if progress.moved:
                    await self._follow_split(progress)
                progress.merge.advance(progress.enough)
                self._fetch(progress)
                if not progress.is_page_due:
                    await self._await_fetch(progress)
                    continue
                rows = self._take(progress)
                page = self._page(progress, rows)
                yield page
                if page.coverage is not None:
                    return
                progress.part.give(rows.cost)
        finally:
            progress.part.end()
            for task in progress.fetches:
                task.cancel()
            await asyncio.gather(*progress.fetches, return_exceptions=True)

    async def _begin(self, collection_name: str, request: ScanRequest, policy: ReadPolicy, deadline: float) -> _Progress:
        cluster_map, collection = await resolve(self._maps, collection_name)
        start = request.range.start
        is_continuing_incomplete = False
        identity = fingerprint(request.range_fields)
        if request.token:
            position = self._tokens.decode_scan(request.token, collection.id, identity)
            start = max(start, position.last_key + b"\0")
            is_continuing_incomplete = position.is_incomplete
        wanted = KeyRange(start, request.range.end)
        shards = _shards_of(cluster_map, wanted)
        patience = deadline - self._clock.monotonic()
        if policy.may_lack_shards:
            patience *= PATIENCE
        return _Progress(
            configs={shard: cluster_map.shards[shard] for shard in shards},
            collection=collection,
            request=request,
            policy=policy,
            how=self._scatter.how_to_read(policy, collection),
            deadline=deadline,
            merge=ScanMerge(shards, start),
            part=self.memory.begin(),
            chunk_timeout_s=min(CHUNK_TIMEOUT_S, patience),
            is_continuing_incomplete=is_continuing_incomplete,
            fingerprint=identity,
            rows_left=request.limit or None,
        )

    def _fetch(self, progress: _Progress) -> None:
        """Start the fetches that are due."""
        merge, part, left = progress.merge, progress.part, progress.rows_left
        due = merge.wanted(left, is_memory_short=part.is_short)
        if not due:
            return
        deadline = min(progress.deadline, self._clock.monotonic() + progress.chunk_timeout_s)
        shards, row_bytes = merge.shards, merge.row_bytes
        max_bytes = self.memory.chunk_bytes(shards)
        requests = []
        for shard, start, chunks in due:
            keys = chunk_keys(left, shards, chunks, max_bytes)
            part.ask(shard, keys, max_bytes, row_bytes)
            request = ShardScan(
                shard=shard,
                epoch=progress.configs[shard].epoch,
                collection_id=progress.collection.id,
                start=start,
                end=progress.request.range.end,
                limit=keys,
                keys_only=progress.request.is_keys_only,
                is_stale_ok=progress.policy.is_stale,
                cuts=progress.configs[shard].cuts,
                max_bytes=max_bytes,
            )
            requests.append(request)
        # What is due together is wanted together, and costs least so.
        leaves = self._leaves
        legs = self._scatter.gather("Scan", leaves.scan, requests, deadline, progress.how, leaves.start)
        progress.fetches.add(asyncio.create_task(legs, name="scan-fetch"))

    async def _await_fetch(self, progress: _Progress) -> None:
        began = self._clock.monotonic()
        done, _ = await asyncio.wait(progress.fetches, return_when=asyncio.FIRST_COMPLETED)
        if progress.times is not None:
            progress.times.waited(self._clock.monotonic() - began)
        self._take_in(progress, done)
        if progress.failed and not progress.policy.is_partial_accepted:
            await self._raise_if_short(progress)

    def _take_in(self, progress: _Progress, done: set[asyncio.Task[list[LegResult[ShardScanReply]]]]) -> None:
        progress.fetches -= done
        legs = [leg for task in done for leg in task.result()]
        if progress.times is not None:
            progress.times.add(legs, self._clock.monotonic())
        for leg in legs:
            if isinstance(leg.error, ShardMoved):
                progress.part.came(leg.shard, 0, 0)
                progress.moved.add(leg.shard)
                continue
            if leg.answer is None:
                progress.part.came(leg.shard, 0, 0)
                if progress.policy.may_lack_shards and self._clock.monotonic() >= progress.deadline:
                    # The stream's time is over: that says nothing of a shard. Its caller goes on behind the last page.
                    raise DeadlineExceeded("the scan's deadline passed", ErrorDetails(shards=(leg.shard,)))
                progress.fail(leg.as_failed())
                continue
            progress.rounds = None
            reply = leg.answer.reply
            progress.documents[leg.shard] = reply.documents
            self._known.learn(progress.collection.id, leg.shard, reply.documents)
            state = ReadState(leg.shard, reply.seqno, reply.age_ms)
            progress.states[leg.shard] = progress.states.get(leg.shard, state).older(state)
            size, has_got_further = progress.merge.add(leg.shard, reply)
            progress.part.came(leg.shard, size, len(reply.keys))
            if not has_got_further:
                stuck = Internal(f"the scan of shard {leg.shard} does not get further", ErrorDetails(shards=(leg.shard,)))
                progress.fail(FailedLeg(leg.shard, record_of(stuck), leg.replicas_tried))

    async def _follow_split(self, progress: _Progress) -> None:
        """Go on in the shards that those were split into which said so."""
        if progress.rounds is None:
            deadline = min(progress.deadline, self._clock.monotonic() + CHUNK_TIMEOUT_S)
            progress.rounds = Rounds(self._maps, self._clock, deadline, self._rng)
        newer = await progress.rounds.next()
        for shard in progress.moved:
            if newer is None:
                error = ShardMoved(f"shard {shard} is just being split", ErrorDetails(shards=(shard,)))
                progress.fail(FailedLeg(shard, record_of(error), ()))
                continue
            found = heirs(newer, progress.configs[shard])
            # While the map does not show the split the shard is the only one, and is asked again.
            progress.merge.divide(shard, [each.id for each in found])
            progress.configs |= {each.id: each for each in found}
        progress.moved.clear()
        if progress.failed and not progress.policy.is_partial_accepted:
            await self._raise_if_short(progress)

    async def _raise_if_short(self, progress: _Progress) -> None:
        """Fail the scan when what is missing is more than the policy forgives.

        A scan that may lack something is judged when every shard has been heard: nothing is emitted before, and how much a
        failed one weighs can be told only beside the others.
        """
        if progress.fetches:
            done, _ = await asyncio.wait(progress.fetches, timeout=OTHER_FAILURES_WAIT_S)
            self._take_in(progress, done)
        raise_request_fault(list(progress.failed.values()))
        if progress.policy.may_lack_shards and progress.unheard:
            return
        error = shortfall(self._coverage(progress), progress.policy.min_coverage)
        if error is not None:
            raise error

    def _coverage(self, progress: _Progress) -> Coverage:
        known = self._known.of(progress.collection.id)
        return coverage_of(progress.documents, list(progress.failed.values()), known, progress.is_continuing_incomplete)

    def _take(self, progress: _Progress) -> Rows:
        left = progress.rows_left
        rows = progress.merge.take(PAGE_MAX_KEYS if left is None else min(PAGE_MAX_KEYS, left), PAGE_MAX_BYTES)
        if left is not None:
            progress.rows_left = left - len(rows.keys)
        return rows

    def _page(self, progress: _Progress, rows: Rows) -> ScanPage:
        is_end, is_incomplete = progress.merge.is_done, progress.is_incomplete
        token = b""
        if rows.keys and not is_end:
            position = ScanPosition(rows.keys[-1], is_incomplete)
            token = self._tokens.encode_scan(progress.collection.id, progress.fingerprint, position)
        keys, values, versions, expires_at_ms, _ = rows
        if not (is_end or progress.rows_left == 0):
            return ScanPage(keys, values, versions, expires_at_ms, token, is_incomplete=is_incomplete)
        states = [state for _, state in sorted(progress.states.items())]
        coverage = self._coverage(progress)
        return ScanPage(keys, values, versions, expires_at_ms, token, coverage, states, is_incomplete)


def _shards_of(cluster_map: ClusterMap, range: KeyRange) -> list[int]:
    """The shards that may hold keys of a range: all, or the one whose routing key the range names."""
    if range.is_empty:
        return []
    prefix = routing_prefix(range)
    return sorted(cluster_map.shards) if prefix is None else [cluster_map.shard_of_key(prefix)]
