"""The synchronous client: `with Client("127.0.0.1:7700") as kv`."""

from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack, overload

from kvshard.client.client import DEFAULT_ROUTER, ClientSettings
from kvshard.client.client import Client as AsyncClient
from kvshard.client.codecs import BYTES
from kvshard.client.direct_status import DirectStatus
from kvshard.client.faults import ClearedFaults, FaultKindName, FaultList, FaultMethodName, LeafFault
from kvshard.client.results import CollectionInfo, K, SlowReads
from kvshard.client.retries import RetryPolicy
from kvshard.client.router_lanes import LANES
from kvshard.client.status import ClusterStatus
from kvshard.clustermap import DEFAULT_COLLECTION, ClusterMap, Leaf, ShardConfig, WantedSplit
from kvshard.sync.collection import Collection
from kvshard.sync.keyspace import Keyspace
from kvshard.sync.source import Source

T = TypeVar("T")


class Client(Keyspace[K, bytes]):
    """`kvshard.Client` for threads: the same methods, which block until their outcome is there.

    The arguments are those of `kvshard.Client`. A client may be shared by all threads of a process, and is best made once:
    calls that several threads make at the same time travel together. All clients of a process share one thread that talks to
    the routers; it is started by the first call, and ends with the process. After a fork every process has its own, also where
    the client was made before. Ctrl-C in the midst of a call takes the call back.

    In a thread that runs an event loop each call raises FailedPrecondition, since the loop would stand still: there,
    `kvshard.Client` is the right one. may_block_event_loop: do it all the same, as a notebook may.

    Without `with`, end it with `close()`; one that is only dropped is closed soon after.
    """

    @overload
    def __init__(
        self: "Client[str]",
        routers: str | Sequence[str] = DEFAULT_ROUTER,
        *,
        keys: type[str] = str,
        direct: bool = False,
        retries: RetryPolicy | None = None,
        lanes: int = LANES,
        may_block_event_loop: bool = False,
        **settings: Unpack[ClientSettings],
    ) -> None: ...

    @overload
    def __init__(
        self: "Client[bytes]",
        routers: str | Sequence[str] = DEFAULT_ROUTER,
        *,
        keys: type[bytes],
        direct: bool = False,
        retries: RetryPolicy | None = None,
        lanes: int = LANES,
        may_block_event_loop: bool = False,
        **settings: Unpack[ClientSettings],
    ) -> None: ...

    def __init__(
        self,
        routers: str | Sequence[str] = DEFAULT_ROUTER,
        *,
        keys: type[str] | type[bytes] = str,
        direct: bool = False,
        retries: RetryPolicy | None = None,
        lanes: int = LANES,
        may_block_event_loop: bool = False,
        **settings: Unpack[ClientSettings],
    ) -> None:
        addresses = routers if isinstance(routers, str) else tuple(routers)

        def make() -> AsyncClient[K]:
            return AsyncClient(  # type: ignore[return-value]  # keys says it
                addresses, keys=keys, direct=direct, retries=retries, lanes=lanes, **settings
            )

        source = Source(make, may_block_event_loop)
        super().__init__(source, DEFAULT_COLLECTION.name, BYTES, lambda client: client, lambda client: client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; calls under way in other threads fail with Cancelled, later ones with FailedPrecondition."""
        self._source.close()

    def collection(self, name: str) -> Collection[K]:
        """The collection of that name or alias, whether or not it exists: `create` it first, or use one that is there."""
        return Collection(self._source, name)

    def _ask(self, begin: Callable[[AsyncClient[K]], Awaitable[T]]) -> T:
        return self._source.run(begin)

    def wait_direct(self, *, timeout: float | None = None) -> bool:
        """Wait until a direct client can ask the leaves for every shard; False: for so long it could not.

        Nobody needs to wait: until then all goes through a router. Raises FailedPrecondition when the client is not direct.
        """
        return self._ask(lambda kv: kv.wait_direct(timeout=timeout))

    def direct_status(self) -> DirectStatus:
        """What a direct client does by itself, and what it leaves to a router, and why.

        Raises FailedPrecondition when the client is not direct.
        """

        async def ask(kv: AsyncClient[K]) -> DirectStatus:
            return kv.direct_status()

        return self._ask(ask)

    def collections(self, *, timeout: float | None = None) -> list[CollectionInfo]:
        """All collections, by name, with their aliases."""
        return self._ask(lambda kv: kv.collections(timeout=timeout))

    def set_alias(self, alias: str, collection: str, *, if_collection: str | None = None, timeout: float | None = None) -> None:
        """Let an alias stand for a collection, in every operation; what it stood for before it no longer does, at once.

        if_collection: only if it stands for this collection now, "": if it is new; ChangeConflict otherwise. Raises
        CollectionNotFound; CollectionExists when a collection has its name.
        """
        self._ask(lambda kv: kv.set_alias(alias, collection, if_collection=if_collection, timeout=timeout))

    def remove_alias(self, alias: str, *, timeout: float | None = None) -> str:
        """Remove an alias; its collection stays. Returns which that is. Raises AliasNotFound."""
        return self._ask(lambda kv: kv.remove_alias(alias, timeout=timeout))

    def map(self, *, timeout: float | None = None) -> ClusterMap:
        """The cluster map that the router follows at present."""
        return self._ask(lambda kv: kv.map(timeout=timeout))

    def status(self, *, timeout: float | None = None) -> ClusterStatus:
        """State of every leaf and shard, and of the processes of the router that answers."""
        return self._ask(lambda kv: kv.status(timeout=timeout))

    def slow_reads(self, limit: int = 20, *, method: str = "", reset: bool = False, timeout: float | None = None) -> SlowReads:
        """The slowest reads of the last ten minutes at the router that answers, in all of its processes, the slowest first.

        method: only "Get", "BatchGet", "Scan", "Search" or "Suggest". reset: let that router forget them afterwards.
        """
        return self._ask(lambda kv: kv.slow_reads(limit, method=method, reset=reset, timeout=timeout))

    def drain_leaf(self, leaf: str, *, undo: bool = False, timeout: float | None = None) -> Leaf:
        """Have a leaf emptied, or take that back; `status` shows how far it is.

        Raises LeafNotFound; FailedPrecondition when the leaves that stay could not keep the shards writable.
        """
        return self._ask(lambda kv: kv.drain_leaf(leaf, undo=undo, timeout=timeout))

    def remove_leaf(self, leaf: str, *, force: bool = False, timeout: float | None = None) -> bool:
        """Take a leaf out of the cluster. False: it goes when what it held is made anew elsewhere (only with force).

        force: also when shards name it, if it is not alive. Raises LeafNotFound; FailedPrecondition, whose details name the
        shards, while it holds something.
        """
        return self._ask(lambda kv: kv.remove_leaf(leaf, force=force, timeout=timeout))

    def move_replica(self, shard: int, source: str, target: str, *, timeout: float | None = None) -> ShardConfig:
        """Want a shard's replica on another leaf; `status` shows how far it is.

        Raises ShardNotFound, LeafNotFound; FailedPrecondition when the target may not hold it.
        """
        return self._ask(lambda kv: kv.move_replica(shard, source, target, timeout=timeout))

    def move_primary(self, shard: int, leaf: str, *, timeout: float | None = None) -> ShardConfig:
        """Want another of a shard's leaves as its primary.

        Raises ShardNotFound, LeafNotFound; FailedPrecondition when the shard is not wanted on that leaf.
        """
        return self._ask(lambda kv: kv.move_primary(shard, leaf, timeout=timeout))

    def split_shards(self, shards: Sequence[int] | None = None, *, timeout: float | None = None) -> dict[int, WantedSplit]:
        """Have shards (None: every one that there is now) cut in two while they serve; `status` shows how far it is.

        Returns the splits that are wanted, by shard; of a shard that is to be split already the one that is. Raises
        ShardNotFound; FailedPrecondition for a shard that cannot be cut any finer; ResourceExhausted when there would be too
        many. Then nothing is done.
        """
        return self._ask(lambda kv: kv.split_shards(shards, timeout=timeout))

    def inject_fault(
        self,
        kind: FaultKindName,
        *,
        leaves: Sequence[str] = (),
        probability: float = 1.0,
        delay: float = 0.0,
        factor: float = 0.0,
        duration: float = 60.0,
        seed: int = 0,
        methods: Sequence[FaultMethodName] = (),
        timeout: float | None = None,
    ) -> list[LeafFault]:
        """Have leaves (none named: all) misbehave for a while, to see what becomes of the service. See `kvshard.faults`.

        The arguments and errors are those of `kvshard.Client.inject_fault`.
        """
        return self._ask(
            lambda kv: kv.inject_fault(
                kind,
                leaves=leaves,
                probability=probability,
                delay=delay,
                factor=factor,
                duration=duration,
                seed=seed,
                methods=methods,
                timeout=timeout,
            )
        )

    def clear_faults(
        self, *, leaves: Sequence[str] = (), ids: Sequence[str] = (), timeout: float | None = None
    ) -> ClearedFaults:
        """End faults (no ids: all) at leaves (none named: all) before their time. Raises LeafNotFound."""
        return self._ask(lambda kv: kv.clear_faults(leaves=leaves, ids=ids, timeout=timeout))

    def list_faults(self, *, timeout: float | None = None) -> FaultList:
        """The faults in force."""
        return self._ask(lambda kv: kv.list_faults(timeout=timeout))
