"""A client that asks the leaves itself: operations on keys go to them, with all the defences of a router, and save its hop.

Everything goes through a router as long as that is better: before the map is known and leaves have answered, while no leaf that
could answer can be reached from here, and for what failed here. Which that is says `direct_path`; here is what becomes of it:

    read    failed in a way that a router might not: the same read again, through a router. If that fails too, the part that
            the leaves gave, where the caller takes a part
    write   known not to have been done at all: the same write, under its id, through a router. Else the caller learns what
            is known, and repeats it under the same id; then, its shards having had a setback, it goes through a router
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

import structlog

from kvshard.client.direct_path import DirectPath, is_for_a_router
from kvshard.client.direct_status import Detour, DirectStatus
from kvshard.client.map_watch import MapWatch
from kvshard.client.status import ClusterStatus
from kvshard.client.transport import KeyTransport, ReadHeard, TakeBack
from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap
from kvshard.errors import (
    CollectionNotFound,
    ErrorRecord,
    Internal,
    InvalidArgument,
    KvShardError,
    Unavailable,
    error_of,
    record_of,
)
from kvshard.lane_messages import KeysRead, KeysReadReply, KeysWrite, KeysWriteReply
from kvshard.rpc.codec import leaf_mark
from kvshard.rpc.key_convert import rest_of_write
from kvshard.rpc.lane_client import LaneLeafClient
from kvshard.rpc.leaf_client import LeafClient
from kvshard.scatter.key_frames import FrameAccount
from kvshard.scatter.ledger import ReadTimes
from kvshard.scatter.routes import MapSource
from kvshard.tail.hedging import BUDGET_MOST, HedgeSettings, parse_policy
from kvshard.tail.status import TailStatus
from kvshard.v1 import kv_pb2

MAP_WAIT_S = 60.0
"""Between two log lines of a client that waits for its first map."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RouterView:
    """What a router tells a direct client that begins.

    tail: what it does against slow leaves, None where it does not say. committed: seqnos that shards had committed by then.
    Without them a direct client would know only of the shards that it has talked to; a busy shard that gets the first write of
    such a client twice, since the first answer was lost, would have to refuse it as too old.
    """

    tail: TailStatus | None = None
    committed: Mapping[int, int] = field(default_factory=dict)


AskRouter = Callable[[], Awaitable[RouterView]]
"""Raises a KvShardError."""


class FollowedMaps(MapSource, Protocol):
    """A source of the map that follows it by itself; `kvshard.client.map_watch.MapWatch` is one, tests bring their own."""

    @property
    def cluster_id(self) -> str:
        """Name of the cluster; empty where nobody tells it. The maps of different ones have nothing in common."""
        ...

    def start(self) -> None:
        """Follow the map from now on."""
        ...

    def subscribe(self, subscriber: Callable[[ClusterMap], None]) -> None:
        """Have it called with each map that is installed from now on."""
        ...

    async def close(self) -> None:
        """Stop following."""
        ...


def over_lanes(addresses: Sequence[str], router: KeyTransport, ask_router: AskRouter, clock: Clock) -> "Direct":
    """A direct transport to real leaves, by the map of the routers at these addresses."""
    rng = Random()
    maps = MapWatch(addresses, clock, rng)

    def new_leaves() -> LeafClient:
        cluster_id = maps.cluster_id
        # An address of the map was made for its cluster's network. In this one somebody else may live there.
        return LaneLeafClient(
            lambda leaf: maps.current.leaf_address(leaf), clock, rng, mark_of=lambda leaf: leaf_mark(cluster_id, leaf)
        )

    return Direct(router, maps, new_leaves, ask_router, clock, rng)


class Direct(KeyTransport):
    """Carries keys to the leaves, or else through `router`, which is closed together with this.

    maps: follows the cluster map; closed together with this, too. new_leaves: makes what asks the leaves of that map.
    ask_router: how it hedges, this does it alike; and what it knows of the shards. Begins at the first request, or at `start`.
    """

    def __init__(
        self,
        router: KeyTransport,
        maps: FollowedMaps,
        new_leaves: Callable[[], LeafClient],
        ask_router: AskRouter,
        clock: Clock,
        rng: Random | None = None,
    ) -> None:
        self._router = router
        self._maps = maps
        self._new_leaves = new_leaves
        self._ask_router = ask_router
        self._clock = clock
        self._rng = rng or Random()
        maps.subscribe(self._on_map)
        self._settings: HedgeSettings | None = None
        self._path: DirectPath | None = None
        self._cluster_id = ""
        self._beginning: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._reached = asyncio.Event()
        self._direct = 0
        self._detours: dict[Detour, int] = dict.fromkeys(Detour, 0)
        self._is_closed = False

    def __repr__(self) -> str:
        return f"Direct({self._maps!r}, {self._path!r}, direct={self._direct})"

    def start(self) -> None:
        """Get the map and look for the leaves from now on."""
        if self._beginning is None and not self._is_closed:
            self._maps.start()
            self._beginning = asyncio.create_task(self._begin(), name="direct-begin")

    async def wait_ready(self, timeout: float) -> bool:
        """Wait until every shard can be read and written at the leaves; False: for so long some could not."""
        self.start()
        try:
            async with asyncio.timeout(timeout):
                while self._path is None or not self._path.is_whole:
                    await self._reached.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Close the connections; calls under way fail with Unavailable."""
        self._is_closed = True
        if self._beginning is not None:
            self._beginning.cancel()
            await asyncio.gather(self._beginning, return_exceptions=True)
        await self._router.close()  # First: what the leaves do not answer any more must not go on there.
        await self._maps.close()
        path, self._path = self._path, None
        if path is not None:
            await path.close()
        await asyncio.gather(*self._closing)

    # -- requests

    async def read(self, request: KeysRead, deadline: float) -> KeysReadReply:
        """Read keys. Raises a KvShardError."""
        path = self.path_for(request.keys, is_write=False)
        if path is None:
            return await self._router.read(request, deadline)
        account = FrameAccount()
        reply: KeysReadReply | None = None
        try:
            reply = await path.frames.read(request, deadline, account)
            errors = _for_a_router(account.failures)
        except KvShardError as error:
            if not is_for_a_router(error):
                raise
            errors = [error]
        if reply is not None and not errors:
            self._direct += 1
            return reply
        self.note_failed(path, errors, request.keys)
        try:
            return await self._router.read(request, deadline)
        except KvShardError:
            if reply is None:
                raise
            return reply  # The caller takes a part, and there is no more to be had.

    def begin_read(self, request: KeysRead, deadline: float, heard: ReadHeard) -> TakeBack | None:
        """Read a single key that the leaves can be asked for now. Every other read needs a task, and so does what a router may
        still answer."""
        path = self._path
        if path is None:
            return None
        lone = path.lone.find(request)
        if lone is None or path.detour(request.keys, is_write=False) is not None:
            return None

        def told(outcome: KeysReadReply | KvShardError | None) -> None:
            if isinstance(outcome, KeysReadReply):
                self._direct += 1
            elif outcome is not None and is_for_a_router(outcome):
                self.note_failed(path, (outcome,), request.keys)
                outcome = None
            heard(outcome)

        return path.lone.begin(lone, deadline, ReadTimes(self._clock.monotonic()), told)

    async def write(self, request: KeysWrite, deadline: float) -> KeysWriteReply:
        """Write keys. Raises a KvShardError when nothing is known of any key."""
        if request.refresh:
            self._detours[Detour.REFRESH] += 1
            return await self._router.write(request, deadline)
        path = self.path_for(request.keys, is_write=True)
        if path is None:
            return await self._router.write(request, deadline)
        account = FrameAccount()
        try:
            reply = await path.frames.write(request, deadline, account)
        except KvShardError as error:
            if not is_for_a_router(error):
                raise
            self.note_failed(path, (error,), request.keys)
            if not _is_undone(error):
                raise _worth_repeating(error) from None
            return await self._router.write(request, deadline)
        errors = _for_a_router(account.failures)
        if not errors:
            self._direct += 1
            return reply
        self.note_failed(path, errors, request.keys)
        if len(errors) == len(request.keys) and all(map(_is_undone, errors)):
            return await self._router.write(request, deadline)
        return _in_part(reply, account.failures)

    def path_for(self, keys: Sequence[bytes] | None, *, is_write: bool) -> DirectPath | None:
        """The way to the leaves for these keys (None: for a scan); None, and counted: through a router."""
        path = self._path
        if path is None:
            self.start()
            self._detours[Detour.STARTING] += 1
            return None
        why = path.detour(keys, is_write=is_write)
        if why is not None:
            self.note_detour(why)
            return None
        return path

    def note_detour(self, why: Detour) -> None:
        """A request goes through a router."""
        self._detours[why] += 1

    def note_direct(self) -> None:
        """A request was answered by leaves alone."""
        self._direct += 1

    def note_failed(self, path: DirectPath, errors: Sequence[KvShardError], keys: Sequence[bytes] | None) -> None:
        """A request for these keys was tried at the leaves, and failed so."""
        self._detours[Detour.FAILED] += 1
        path.note_failures([error for error in errors if not isinstance(error, CollectionNotFound)], keys)
        log.debug("a request failed at the leaves", error=errors[0].message, reason=errors[0].reason)

    def status(self) -> DirectStatus:
        """What this does."""
        path = self._path
        version = self._maps.current.version if self._maps.has_map else None
        if path is None:
            return DirectStatus(version, direct=self._direct, detours=dict(self._detours))
        return DirectStatus(version, path.leaves(), self._direct, dict(self._detours), path.setbacks(), path.tail())

    # -- the map

    async def _begin(self) -> None:
        """Have a path as soon as there is a map, with the settings of a router."""
        while not self._maps.has_map:
            with suppress(Unavailable):
                await self._maps.wait_newer(-1, MAP_WAIT_S)
            if not self._maps.has_map:
                log.warning("no router has sent the cluster map yet", waited_s=MAP_WAIT_S)
        try:
            view = await self._ask_router()
        except KvShardError as error:
            view = RouterView()
            log.info("how routers hedge is not known", error=error.message)
        self._settings = settings_of(view.tail)
        if not self._maps.cluster_id:
            log.info("the routers are too old for a direct client: they do not tell which cluster they serve")
        self._on_map(self._maps.current)
        if self._path is not None:
            self._path.learn(view.committed)

    def _on_map(self, cluster_map: ClusterMap) -> None:
        cluster_id = self._maps.cluster_id
        if self._settings is None or not cluster_id or self._is_closed:
            return
        if self._path is None or cluster_id != self._cluster_id:
            self._replace_path(cluster_id, self._settings)
        else:
            self._path.install(cluster_map)
        self._on_reached()  # What could not be reached may not be needed any more.

    def _replace_path(self, cluster_id: str, settings: HedgeSettings) -> None:
        """What was heard of another cluster's shards must not be said of this one's."""
        if self._path is not None:
            closing = asyncio.create_task(self._path.close(), name="direct-path-close")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        self._cluster_id = cluster_id
        self._path = DirectPath(self._maps, self._new_leaves(), self._clock, settings, self._rng, self._on_reached)
        self._path.start()

    def _on_reached(self) -> None:
        """Let those look who wait for the leaves."""
        self._reached.set()
        self._reached = asyncio.Event()


def _is_undone(error: KvShardError) -> bool:
    """Whether a write with this error is known not to have been done. A defect may lie in the answer."""
    return not error.details.maybe_applied and not isinstance(error, Internal)


def _worth_repeating(error: KvShardError) -> KvShardError:
    """The error as one after which its caller repeats the write: it will go through a router, which knows more of the shard.

    A primary that has stopped for good, for one, is followed by another. What is a defect remains one.
    """
    if not is_for_a_router(error) or error.is_retryable or isinstance(error, Internal):
        return error
    return Unavailable(error.message, error.details)


def _in_part(reply: KeysWriteReply, failures: Sequence[tuple[int, ErrorRecord]]) -> KeysWriteReply:
    """The answer to a write of which a part was done, and the rest is worth repeating."""
    repeated = [(index, record_of(_worth_repeating(error_of(record)))) for index, record in failures]
    rest = kv_pb2.BatchWriteResponse.FromString(reply.rest)
    return KeysWriteReply(reply.versions, reply.existed, rest_of_write(repeated, rest.watermarks, rest.written))


def _for_a_router(failures: Sequence[tuple[int, ErrorRecord]]) -> list[KvShardError]:
    """The failures of keys to which a router may have another answer."""
    return [error for error in (error_of(record) for _, record in failures) if is_for_a_router(error)]


def view_of(status: ClusterStatus) -> RouterView:
    """What a direct client takes from a router's status. A shard has committed what any of its replicas knows to be."""
    committed: dict[int, int] = {}
    for leaf in status.leaves:
        for replica in leaf.replicas:
            committed[replica.shard] = max(replica.committed, committed.get(replica.shard, 0))
    return RouterView(status.tail, committed)


def settings_of(tail: TailStatus | None) -> HedgeSettings:
    """The settings with which a router shows this state; those of any router where it does not say, or is too new."""
    if tail is None:
        return HedgeSettings()
    try:
        policy = parse_policy(tail.policy)
    except InvalidArgument:
        return HedgeSettings()
    # One that tunes its budget itself shows the most that it may become.
    budget = None if tail.budget_max == BUDGET_MOST else tail.budget_max
    return HedgeSettings(policy, budget, tail.max_attempts)
