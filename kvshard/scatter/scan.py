"""Scan: every shard is read in chunks, and the chunks are merged into one ordered stream.

A shard that is split meanwhile goes on as two, each behind what the shard had delivered.

Owns the tasks that fetch chunks; leaving the stream early, by cancellation too, cancels and awaits them. Back-pressure: while
the caller does not ask for the next page, at most one further chunk a shard is fetched (`merge.ScanMerge` bounds it).
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from random import Random

from kvshard.clock import Clock
from kvshard.clustermap import Collection, ShardConfig
from kvshard.errors import DeadlineExceeded, ErrorDetails, Internal, ShardMoved, record_of
from kvshard.model import ShardScan, ShardScanReply
from kvshard.rpc.leaf_client import LeafClient
from kvshard.scatter.coverage import Coverage, FailedLeg, KnownCounts, coverage_of, shortfall
from kvshard.scatter.gather import ReadState, raise_request_fault
from kvshard.scatter.ledger import ScanTimes
from kvshard.scatter.leg import How
from kvshard.scatter.merge import Row, ScanMerge
from kvshard.scatter.moved import Rounds, heirs
from kvshard.scatter.requests import KeyRange, ReadPolicy
from kvshard.scatter.routes import MapSource, resolve
from kvshard.scatter.scatter import LegResult, Scatter
from kvshard.scatter.tokens import ScanPosition, TokenCodec, fingerprint

CHUNK_MAX_KEYS = 1_000
"""Keys of one fetch from a shard: a leaf reads so many in about 2 ms, so nothing behind it waits long."""

CHUNK_MIN_KEYS = 16
"""Below this a fetch is all overhead."""

BUFFERED_KEYS_MAX = 32_000
"""Keys that one scan may have fetched ahead over all shards; with many shards each fetch is smaller."""

PAGE_MAX_KEYS = 1_000
PAGE_MAX_BYTES = 1024 * 1024
"""One message of the stream: large enough that its cost per key vanishes, small enough that the first keys come soon."""

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
    """Rows in key order. token: resumes after them, empty at the end. coverage, states: set on the last page only.

    is_incomplete: keys are missing from this page or from one that it continues, since a shard did not answer. states: by
    shard, of each the oldest that a chunk was read from.
    """

    rows: list[Row]
    token: bytes
    coverage: Coverage | None
    states: list[ReadState] = field(default_factory=list)
    is_incomplete: bool = False


@dataclass(slots=True)
class _Progress:
    """One scan under way. configs: the shards, as they are asked. moved: those that were split since; rounds: see `Rounds`.

    chunk_timeout_s: what a fetch may take. times: the account of the read.
    """

    configs: dict[int, ShardConfig]
    collection: Collection
    request: ScanRequest
    policy: ReadPolicy
    how: How
    deadline: float
    merge: ScanMerge
    chunk_keys: int
    chunk_timeout_s: float
    is_continuing_incomplete: bool
    times: ScanTimes | None = None
    documents: dict[int, int] = field(default_factory=dict)
    failed: dict[int, FailedLeg] = field(default_factory=dict)
    states: dict[int, ReadState] = field(default_factory=dict)
    moved: set[int] = field(default_factory=set)
    rounds: Rounds | None = None
    fetches: set[asyncio.Task[LegResult[ShardScanReply]]] = field(default_factory=set)
    rows_left: int | None = None

    @property
    def is_incomplete(self) -> bool:
        """A shard is missing from what is emitted now, or was from what this scan continues."""
        return bool(self.failed) or self.is_continuing_incomplete

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
        Raises Unavailable when the coverage falls short and the policy does not accept a part.
        """
        progress = await self._begin(collection_name, request, policy, deadline)
        progress.times = times
        try:
            while True:
                if progress.moved:
                    await self._follow_split(progress)
                self._fetch(progress)
                if progress.merge.ready_rows or progress.merge.is_done:
                    page = self._page(progress)
                    yield page
                    if page.coverage is not None:
                        return
                else:
                    await self._await_fetch(progress)
        finally:
            for task in progress.fetches:
                task.cancel()
            await asyncio.gather(*progress.fetches, return_exceptions=True)

    async def _begin(self, collection_name: str, request: ScanRequest, policy: ReadPolicy, deadline: float) -> _Progress:
        cluster_map, collection = await resolve(self._maps, collection_name)
        start = request.range.start
        is_continuing_incomplete = False
        if request.token:
            position = self._tokens.decode_scan(request.token, collection.id, fingerprint(request.range_fields))
            start = max(start, position.last_key + b"\0")
            is_continuing_incomplete = position.is_incomplete
        wanted = KeyRange(start, request.range.end)
        shards = [] if wanted.is_empty else sorted(cluster_map.shards)
        chunk_keys = max(CHUNK_MIN_KEYS, min(CHUNK_MAX_KEYS, BUFFERED_KEYS_MAX // max(1, len(shards))))
        if request.limit:
            chunk_keys = min(chunk_keys, request.limit)
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
            merge=ScanMerge(shards, start, chunk_keys),
            chunk_keys=chunk_keys,
            chunk_timeout_s=min(CHUNK_TIMEOUT_S, patience),
            is_continuing_incomplete=is_continuing_incomplete,
            rows_left=request.limit or None,
        )

    def _fetch(self, progress: _Progress) -> None:
        """Start the fetches that are due, unless what is ready suffices."""
        if progress.rows_left is not None and progress.merge.ready_rows >= progress.rows_left:
            return
        deadline = min(progress.deadline, self._clock.monotonic() + progress.chunk_timeout_s)
        for shard, start in progress.merge.wanted():
            request = ShardScan(
                shard=shard,
                epoch=progress.configs[shard].epoch,
                collection_id=progress.collection.id,
                start=start,
                end=progress.request.range.end,
                limit=progress.chunk_keys,
                keys_only=progress.request.is_keys_only,
                is_stale_ok=progress.policy.is_stale,
                cuts=progress.configs[shard].cuts,
            )
            leg = self._scatter.ask("Scan", self._leaves.scan, request, deadline, progress.how)
            progress.fetches.add(asyncio.create_task(leg, name=f"scan-shard-{shard}"))

    async def _await_fetch(self, progress: _Progress) -> None:
        began = self._clock.monotonic()
        done, _ = await asyncio.wait(progress.fetches, return_when=asyncio.FIRST_COMPLETED)
        if progress.times is not None:
            progress.times.waited(self._clock.monotonic() - began)
        self._take_in(progress, done)
        if progress.failed and not progress.policy.is_partial_accepted:
            await self._raise_if_short(progress)

    def _take_in(self, progress: _Progress, done: set[asyncio.Task[LegResult[ShardScanReply]]]) -> None:
        progress.fetches -= done
        legs = [task.result() for task in done]
        if progress.times is not None:
            progress.times.add(legs, self._clock.monotonic())
        for leg in legs:
            if isinstance(leg.error, ShardMoved):
                progress.moved.add(leg.shard)
                continue
            if leg.answer is None:
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
            if not progress.merge.add(leg.shard, reply):
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

    def _page(self, progress: _Progress) -> ScanPage:
        max_rows = PAGE_MAX_KEYS if progress.rows_left is None else min(PAGE_MAX_KEYS, progress.rows_left)
        rows = progress.merge.take(max_rows, PAGE_MAX_BYTES)
        if progress.rows_left is not None:
            progress.rows_left -= len(rows)
        is_end = progress.merge.is_done
        is_last = is_end or progress.rows_left == 0
        token = b"" if is_end or not rows else self._token(progress, rows)
        if not is_last:
            return ScanPage(rows, token, None, is_incomplete=progress.is_incomplete)
        states = [state for _, state in sorted(progress.states.items())]
        return ScanPage(rows, token, self._coverage(progress), states, progress.is_incomplete)

    def _token(self, progress: _Progress, rows: list[Row]) -> bytes:
        position = ScanPosition(rows[-1][0], progress.is_incomplete)
        return self._tokens.encode_scan(progress.collection.id, fingerprint(progress.request.range_fields), position)
