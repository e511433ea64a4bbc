"""The asyncio client: `async with Client("127.0.0.1:7700") as kv`."""

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypedDict, Unpack, overload

from kvshard.client import faults
from kvshard.client.checks import check_timeout, invalid
from kvshard.client.codecs import BYTES
from kvshard.client.collection import Collection
from kvshard.client.connection import Connection
from kvshard.client.direct_status import DirectStatus
from kvshard.client.faults import ClearedFaults, FaultKindName, FaultList, FaultMethodName, LeafFault
from kvshard.client.keyspace import Keyspace
from kvshard.client.logs import hand_logs_to_the_program
from kvshard.client.options import ConsistencyName, ReadOptions, ReplicaChoiceName, ShortfallName
from kvshard.client.results import CollectionInfo, K, SlowReads
from kvshard.client.retries import RetryPolicy
from kvshard.client.router_lanes import LANES
from kvshard.client.status import ClusterStatus
from kvshard.client.wire import cluster_status_of, collection_info_of, slow_read_of
from kvshard.clustermap import DEFAULT_COLLECTION, ClusterMap, Leaf, ShardConfig, WantedSplit
from kvshard.errors import FailedPrecondition
from kvshard.fault_model import FaultRecord
from kvshard.rpc.convert import aliases_from_proto, cluster_map_from_proto, leaf_from_proto, shard_from_proto, split_from_proto
from kvshard.v1 import cluster_pb2

if TYPE_CHECKING:
    from kvshard.client.direct import Direct, RouterView

ASK_ROUTER_TIMEOUT_S = 2.0
"""A router answers its status within a second, whatever its leaves do."""

SLOW_READS_MAX = 1_000
"""Of one answer; a router keeps fewer."""

DEFAULT_ROUTER = "127.0.0.1:7700"


class ClientSettings(TypedDict, total=False):
    """How a client's calls are done where they do not say otherwise; see ReadOptions for the meaning."""

    timeout: float
    consistency: ConsistencyName
    hedge: str
    replica_choice: ReplicaChoiceName
    min_coverage: float
    on_shortfall: ShortfallName
    explain_timing: bool


class Client(Keyspace[K, bytes]):
    """Keys and values of the default collection, and the door to everything else.

    routers: "host:port", or several of them, of which each call asks one and turns to the next when it cannot be reached.
    keys: str (UTF-8, the default) or bytes, the type in which keys are given back; either may be given. direct: operations on
    keys go to the leaves without a router between, where they can be reached from here; all else, and what cannot be done so,
    goes through a router. timeout: seconds for a whole call with its retries. retries: NO_RETRIES gives every failure to the
    caller. lanes: streams to a router that carry operations on keys; with a router of several workers, two for each of them.
    Every call raises a KvShardError when it fails, whatever lies beneath.

    A client belongs to one event loop; share it between tasks, since `get`, `put` and `delete` of tasks that run side by side
    travel together: hundreds of them cost little more than one. Writes of one key take effect in the order in which they were
    called, awaited or not; a read sees every write that had returned before it was called, and may or may not see one that
    had not. That order holds among single calls of one client; a batch beside them is concurrent. A call whose task is
    cancelled is not sent, if it was not sent yet. Without `async with`, end the client with `close()`.
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
        **settings: Unpack[ClientSettings],
    ) -> None:
        hand_logs_to_the_program()
        addresses = (routers,) if isinstance(routers, str) else tuple(routers)
        connection = Connection(addresses, retries or RetryPolicy(), lanes=lanes)
        super().__init__(
            connection,
            DEFAULT_COLLECTION.name,
            keys,  # type: ignore[arg-type]
            BYTES,
            ReadOptions(**settings),
        )
        self._direct = self._go_direct(connection) if direct else None

    def _go_direct(self, connection: Connection) -> "Direct":
        # Here, since a client that is not direct needs nothing of what a router does.
        from kvshard.client.direct import over_lanes, view_of
        from kvshard.client.direct_scan import DirectScans
        from kvshard.client.scan_source import RouterScans

        async def ask_router() -> "RouterView":
            return view_of(await self.status(timeout=ASK_ROUTER_TIMEOUT_S))

        direct = over_lanes(connection.addresses, connection.keys.transport, ask_router, connection.clock)
        connection.keys.transport = direct
        routers = RouterScans(connection)
        connection.scan_source = DirectScans(direct, routers, connection.clock, connection.streams.add)
        return direct

    async def __aenter__(self) -> Self:
        if self._direct is not None:
            self._direct.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls under way fail with Cancelled, later ones with FailedPrecondition."""
        await self._connection.close()

    async def wait_direct(self, *, timeout: float | None = None) -> bool:
        """Wait until a direct client can ask the leaves for every shard; False: for so long it could not.

        Nobody needs to wait: until then all goes through a router. Raises FailedPrecondition when the client is not direct.
        """
        return await self._direct_part().wait_ready(self._options.timeout if timeout is None else check_timeout(timeout))

    def direct_status(self) -> DirectStatus:
        """What a direct client does by itself, and what it leaves to a router, and why.

        Raises FailedPrecondition when the client is not direct.
        """
        return self._direct_part().status()

    def _direct_part(self) -> "Direct":
        if self._direct is None:
            raise FailedPrecondition("the client is not direct: it was made without direct=True")
        return self._direct

    def collection(self, name: str) -> Collection[K]:
        """The collection of that name or alias, whether or not it exists: `create` it first, or use one that is there."""
        return Collection(self._connection, name, self._keys, self._options)

    async def collections(self, *, timeout: float | None = None) -> list[CollectionInfo]:
        """All collections, by name, with their aliases."""
        response = await self._connection.unary(
            lambda stubs: stubs.cluster.ListCollections,
            cluster_pb2.ListCollectionsRequest(),
            deadline=self._deadline(timeout),
            is_repeatable=True,
        )
        aliases = aliases_from_proto(response.aliases)
        return [collection_info_of(collection, aliases) for collection in response.collections]

    async def set_alias(
        self, alias: str, collection: str, *, if_collection: str | None = None, timeout: float | None = None
    ) -> None:
        """Let an alias stand for a collection, in every operation; what it stood for before it no longer does, at once.

        if_collection: only if it stands for this collection now, "": if it is new; ChangeConflict otherwise. Raises
        CollectionNotFound; CollectionExists when a collection has its name.
        """
        await self._connection.unary(
            lambda stubs: stubs.cluster.SetAlias,
            cluster_pb2.SetAliasRequest(alias=alias, collection=collection, if_collection=if_collection),
            deadline=self._deadline(timeout),
            is_repeatable=True,
        )

    async def remove_alias(self, alias: str, *, timeout: float | None = None) -> str:
        """Remove an alias; its collection stays. Returns which that is. Raises AliasNotFound."""
        response = await self._connection.unary(
            lambda stubs: stubs.cluster.RemoveAlias,
            cluster_pb2.RemoveAliasRequest(alias=alias),
            deadline=self._deadline(timeout),
            is_repeatable=False,  # A repetition would not find what the first one has removed.
        )
        return response.collection

    async def map(self, *, timeout: float | None = None) -> ClusterMap:
        """The cluster map that the router follows at present."""
        response = await self._connection.unary(
            lambda stubs: stubs.cluster.GetMap,
            cluster_pb2.GetMapRequest(),
            deadline=self._deadline(timeout),
            is_repeatable=True,
        )
        return cluster_map_from_proto(response.map)

    async def status(self, *, timeout: float | None = None) -> ClusterStatus:
        """State of every leaf and shard, and of the processes of the router that answers."""
        response = await self._connection.unary(
            lambda stubs: stubs.cluster.GetStatus,
            cluster_pb2.GetStatusRequest(),
            deadline=self._deadline(timeout),
            is_repeatable=True,
        )
        return cluster_status_of(response)

    async def slow_reads(
        self, limit: int = 20, *, method: str = "", reset: bool = False, timeout: float | None = None
    ) -> SlowReads:
        """The slowest reads of the last ten minutes at the router that answers, in all of its processes, the slowest first.

        method: only "Get", "BatchGet", "Scan", "Search" or "Suggest". reset: let that router forget them afterwards.
        """
        if not 1 <= limit <= SLOW_READS_MAX:
            raise invalid(f"limit lies between 1 and {SLOW_READS_MAX}, not {limit}", "limit", SLOW_READS_MAX)
        response = await self._connection.unary(
            lambda stubs: stubs.cluster.ListSlowReads,
            cluster_pb2.ListSlowReadsRequest(limit=limit, method=method, reset=reset),
            deadline=self._deadline(timeout),
            is_repeatable=not reset,  # A repetition would find what the first one has emptied.
        )
        return SlowReads(map(slow_read_of, response.reads), response.silent)

    async def drain_leaf(self, leaf: str, *, undo: bool = False, timeout: float | None = None) -> Leaf:
        """Have a leaf emptied, or take that back; `status` shows how far it is.

        Raises LeafNotFound; FailedPrecondition when the leaves that stay could not keep the shards writable.
        """
        response = await self._connection.unary(
            lambda stubs: stubs.cluster.DrainLeaf,
            cluster_pb2.DrainLeafRequest(leaf=leaf, undo=undo),
            deadline=self._deadline(timeout),
            is_repeatable=True,
        )
        return leaf_from_proto(response.leaf)

    async def remove_leaf(self, leaf: str, *, force: bool = False, timeout: float | None = None) -> bool:
        """Take a leaf out of the cluster. False: it goes when what it held is made anew elsewhere (only with force).

        force: also when shards name it, if it is not alive. Raises LeafNotFound; FailedPrecondition, whose details name the
        shards, while it holds something.
        """
        response = await self._connection.unary(
            lambda stubs: stubs.cluster.RemoveLeaf,
            cluster_pb2.RemoveLeafRequest(leaf=leaf, force=force),
            deadline=self._deadline(timeout),
            is_repeatable=False,
        )
        return response.is_done

    async def move_replica(self, shard: int, source: str, target: str, *, timeout: float | None = None) -> ShardConfig:
        """Want a shard's replica on another leaf; `status` shows how far it is.

        Raises ShardNotFound, LeafNotFound; FailedPrecondition when the target may not hold it.
        """
        move = cluster_pb2.ReplicaMove(from_leaf=source, to_leaf=target)
        return await self._move_shard(cluster_pb2.MoveShardRequest(shard=shard, replica=move), timeout)

    async def move_primary(self, shard: int, leaf: str, *, timeout: float | None = None) -> ShardConfig:
        """Want another of a shard's leaves as its primary.

        Raises ShardNotFound, LeafNotFound; FailedPrecondition when the shard is not wanted on that leaf.
        """
        return await self._move_shard(cluster_pb2.MoveShardRequest(shard=shard, primary=leaf), timeout)

    async def split_shards(
        self, shards: Sequence[int] | None = None, *, timeout: float | None = None
    ) -> dict[int, WantedSplit]:
        """Have shards (None: every one that there is now) cut in two while they serve; `status` shows how far it is.

        Returns the splits that are wanted, by shard; of a shard that is to be split already the one that is. Raises
        ShardNotFound; FailedPrecondition for a shard that cannot be cut any finer; ResourceExhausted when there would be too
        many. Then nothing is done.
        """
        response = await self._connection.unary(
            lambda stubs: stubs.cluster.SplitShards,
            cluster_pb2.SplitShardsRequest(shards=shards or (), all=shards is None),
            deadline=self._deadline(timeout),
            is_repeatable=False,  # It may have been done, and a repetition would split once more.
        )
        return {each.shard: split_from_proto(each.split) for each in response.splits}

    async def inject_fault(
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

        kind: "pause" stops the whole leaf for `delay` seconds every now and then, `probability` of the time; "delay" lets
        requests begin `delay` seconds later, "slow" lets them take `factor` times as long, "error" fails them, "drop" never
        answers them. probability: part of the requests that it happens to. duration: seconds after which it ends by itself.
        seed: repeats the same chances; 0: any. methods: only these ones; none named: reads, scans, searches and writes.

        Raises FailedPrecondition when a leaf was not started with --allow-faults, LeafNotFound, InvalidArgument, Unavailable
        when a leaf does not answer; then no leaf has it, as far as they could be reached.
        """
        fault = FaultRecord("", kind, probability, delay, factor, duration, seed, list(methods))
        return await faults.inject(self._connection, fault, leaves, self._deadline(timeout))

    async def clear_faults(
        self, *, leaves: Sequence[str] = (), ids: Sequence[str] = (), timeout: float | None = None
    ) -> ClearedFaults:
        """End faults (no ids: all) at leaves (none named: all) before their time. Raises LeafNotFound."""
        return await faults.clear(self._connection, leaves, ids, self._deadline(timeout))

    async def list_faults(self, *, timeout: float | None = None) -> FaultList:
        """The faults in force."""
        return await faults.list_all(self._connection, self._deadline(timeout))

    async def _move_shard(self, request: cluster_pb2.MoveShardRequest, timeout: float | None) -> ShardConfig:
        response = await self._connection.unary(
            lambda stubs: stubs.cluster.MoveShard, request, deadline=self._deadline(timeout), is_repeatable=True
        )
        return shard_from_proto(response.shard)
