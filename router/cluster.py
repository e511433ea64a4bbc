"""The public Cluster service: the map and its changes, collections, and the state of every leaf."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from kvshard.clock import Clock
from kvshard.clustermap import DEFAULT_COLLECTION, ClusterMap, Collection, Hedging, Leaf, ShardConfig, WantedSplit
from kvshard.coordination.placements import Removal
from kvshard.errors import CollectionNotFound, DeadlineExceeded, ErrorDetails, InvalidArgument, KvShardError, Unavailable
from kvshard.hedge_settings import check_hedging, hedging_fields
from kvshard.model import LeafStatusReply, LeafStatusRequest
from kvshard.rpc import convert
from kvshard.rpc.fault_convert import fault_from_proto, leaf_fault_to_proto
from kvshard.rpc.leaf_client import LeafClient
from kvshard.rpc.worker_convert import worker_status_to_proto
from kvshard.scatter.requests import check_collection_name
from kvshard.scatter.routes import MapSource, known_map
from kvshard.schema import parse_schema
from kvshard.v1 import cluster_pb2, cluster_pb2_grpc
from router.calls import Calls, Context
from router.faults import IDS_MAX, FaultOrders
from router.ledger_wire import slow_read_to_proto
from router.siblings import Siblings
from router.slowlog import METHODS, SlowLog

SYNONYMS = "synonyms"
"""What an update mask calls them."""

STATUS_TIMEOUT_S = 1.0
"""A leaf answers its status from memory; one that takes longer is shown as not up."""

MAP_TIMEOUT_S = 0.25
"""A status must not hang with the coordinator: after that it speaks of the map that is known."""

SLOW_READS_LIMIT = 20
"""Slow reads shown to a caller who does not say how many."""

WATCH_POLL_S = 0.5
"""How soon a watcher of the map notices that the router is stopping."""


class MapEditor(MapSource, Protocol):
    """A source of the map that can also change it; `kvshard.coordination.mapstore.MapStore` is one."""

    async def create_collection(self, name: str, schema: Mapping[str, str], hedging: Hedging | None = None) -> Collection:
        """Create a collection; the same one again is returned as it is."""
        ...

    async def update_collection(
        self, name: str, hedging: Hedging, names: Sequence[str], synonyms: Sequence[str] | None = None
    ) -> Collection:
        """Change the named fields of a collection's hedging settings, and its synonyms; None leaves them."""
        ...

    async def drop_collection(self, name: str) -> Collection:
        """Drop a collection."""
        ...

    async def add_fields(self, name: str, fields: Mapping[str, str]) -> Collection:
        """Begin to add fields to a collection's schema."""
        ...

    async def reindex(self, name: str, fields: Mapping[str, str]) -> Collection:
        """Begin to build a collection's indexes anew."""
        ...

    async def call_off_change(self, name: str) -> Collection:
        """Call off the change of a collection's schema."""
        ...

    async def set_alias(self, alias: str, collection: str, expected: str | None = None) -> None:
        """Let an alias stand for a collection, if it stands for the expected one (None: for any) now."""
        ...

    async def remove_alias(self, alias: str) -> str:
        """Remove an alias. Returns what it stood for."""
        ...

    async def set_draining(self, leaf: str, is_draining: bool) -> Leaf:
        """Have a leaf emptied, or take that back."""
        ...

    async def remove_leaf(self, leaf: str, is_forced: bool) -> Removal:
        """Take a leaf out of the map."""
        ...

    async def move_replica(self, shard: int, source: str, target: str) -> ShardConfig:
        """Want a replica of a shard on another leaf."""
        ...

    async def move_primary(self, shard: int, target: str) -> ShardConfig:
        """Want another primary of a shard."""
        ...

    async def request_splits(self, shards: Sequence[int] | None) -> dict[int, WantedSplit]:
        """Want shards (None: all) to be split."""
        ...


class ClusterService(cluster_pb2_grpc.ClusterServicer):
    """kvshard.v1.Cluster."""

    def __init__(
        self,
        calls: Calls,
        maps: MapEditor,
        leaves: LeafClient,
        clock: Clock,
        slow: SlowLog,
        siblings: Siblings,
    ) -> None:
        """slow: of this process. siblings: those that share its port, and itself. cluster_id is set when it is known, before
        calls come."""
        self._siblings = siblings
        self._calls = calls
        self._slow = slow
        self._maps = maps
        self._leaves = leaves
        self._clock = clock
        self._faults = FaultOrders(leaves, clock)
        self.cluster_id = ""
        self._is_stopping = False

    def stop_watches(self) -> None:
        """Let the watchers of the map end, so that a graceful stop does not wait for them."""
        self._is_stopping = True

    async def GetMap(self, request: cluster_pb2.GetMapRequest, context: Context) -> cluster_pb2.GetMapResponse:
        """Returns the map."""
        async with self._calls.call("GetMap", context):
            current = convert.cluster_map_to_proto(known_map(self._maps))
            return cluster_pb2.GetMapResponse(map=current, cluster_id=self.cluster_id)

    async def WatchMap(  # type: ignore[override]  # writes to the context, which awaits gRPC taking the message
        self, request: cluster_pb2.WatchMapRequest, context: Context
    ) -> None:
        """Sends the map at once, and again whenever it changes."""
        async with self._calls.call("WatchMap", context, is_stream=True):
            seen = request.after_version
            while not self._is_stopping:
                newer = await self._newer_map(seen)
                if newer is not None:
                    seen = newer.version
                    current = convert.cluster_map_to_proto(newer)
                    await context.write(cluster_pb2.WatchMapResponse(map=current, cluster_id=self.cluster_id))
            raise Unavailable("this router is stopping; watch at another one", ErrorDetails(retry_after_ms=1_000))

    async def _newer_map(self, version: int) -> ClusterMap | None:
        try:
            newer = await self._maps.wait_newer(version, WATCH_POLL_S)
        except DeadlineExceeded:
            return None
        return newer if newer.version > version else None

    async def CreateCollection(
        self, request: cluster_pb2.CreateCollectionRequest, context: Context
    ) -> cluster_pb2.CreateCollectionResponse:
        """Creates a collection; the same one again is no error."""
        async with self._calls.call("CreateCollection", context):
            check_collection_name(request.name)
            schema = parse_schema(convert.schema_from_proto(request.fields))
            hedging = check_hedging(convert.hedging_from_proto(request.hedging))
            said = None if hedging == Hedging() else hedging
            collection = await self._maps.create_collection(request.name, schema, said)
            return cluster_pb2.CreateCollectionResponse(collection=convert.collection_to_proto(collection))

    async def UpdateCollection(
        self, request: cluster_pb2.UpdateCollectionRequest, context: Context
    ) -> cluster_pb2.UpdateCollectionResponse:
        """Changes how reads of a collection are hedged, and its synonyms, or adds fields to its schema."""
        async with self._calls.call("UpdateCollection", context):
            _require("name", request.name)
            paths = list(request.update_mask.paths)
            if paths == ["fields"]:
                changed = await self._maps.add_fields(request.name, convert.schema_from_proto(request.fields))
                return cluster_pb2.UpdateCollectionResponse(collection=convert.collection_to_proto(changed))
            other = [path for path in paths if path != SYNONYMS]
            names = hedging_fields(other) if other or not paths else []
            hedging = convert.hedging_from_proto(request.hedging)
            synonyms = request.synonyms if SYNONYMS in paths else None
            collection = await self._maps.update_collection(request.name, hedging, names, synonyms)
            return cluster_pb2.UpdateCollectionResponse(collection=convert.collection_to_proto(collection))

    async def ReindexCollection(
        self, request: cluster_pb2.ReindexCollectionRequest, context: Context
    ) -> cluster_pb2.ReindexCollectionResponse:
        """Builds the indexes of a collection anew, or calls that off."""
        async with self._calls.call("ReindexCollection", context):
            _require("name", request.name)
            if request.cancel and request.fields:
                raise InvalidArgument("cancel goes without fields", ErrorDetails(field="cancel"))
            if request.cancel:
                collection = await self._maps.call_off_change(request.name)
            else:
                collection = await self._maps.reindex(request.name, convert.schema_from_proto(request.fields))
            return cluster_pb2.ReindexCollectionResponse(collection=convert.collection_to_proto(collection))

    async def ListCollections(
        self, request: cluster_pb2.ListCollectionsRequest, context: Context
    ) -> cluster_pb2.ListCollectionsResponse:
        """Lists the collections by name."""
        async with self._calls.call("ListCollections", context):
            collections = [collection for _, collection in sorted(known_map(self._maps).collections.items())]
            aliases = convert.aliases_to_proto(known_map(self._maps).aliases)
            return cluster_pb2.ListCollectionsResponse(
                collections=map(convert.collection_to_proto, collections), aliases=aliases
            )

    async def DropCollection(
        self, request: cluster_pb2.DropCollectionRequest, context: Context
    ) -> cluster_pb2.DropCollectionResponse:
        """Drops a collection with all its keys."""
        async with self._calls.call("DropCollection", context):
            if request.name == DEFAULT_COLLECTION.name:
                raise InvalidArgument(f"the collection {request.name!r} cannot be dropped", ErrorDetails(field="name"))
            if not request.name:
                raise InvalidArgument("name must not be empty", ErrorDetails(field="name"))
            try:
                await self._maps.drop_collection(request.name)
            except CollectionNotFound:
                raise CollectionNotFound(f"there is no collection {request.name!r}", ErrorDetails(field="name")) from None
        return cluster_pb2.DropCollectionResponse()

    async def SetAlias(self, request: cluster_pb2.SetAliasRequest, context: Context) -> cluster_pb2.SetAliasResponse:
        """Lets an alias stand for a collection."""
        async with self._calls.call("SetAlias", context):
            check_collection_name(request.alias, "alias")
            _require("collection", request.collection)
            expected = request.if_collection if request.HasField("if_collection") else None
            await self._maps.set_alias(request.alias, request.collection, expected)
        return cluster_pb2.SetAliasResponse()

    async def RemoveAlias(self, request: cluster_pb2.RemoveAliasRequest, context: Context) -> cluster_pb2.RemoveAliasResponse:
        """Removes an alias."""
        async with self._calls.call("RemoveAlias", context):
            _require("alias", request.alias)
            return cluster_pb2.RemoveAliasResponse(collection=await self._maps.remove_alias(request.alias))

    async def SplitShards(self, request: cluster_pb2.SplitShardsRequest, context: Context) -> cluster_pb2.SplitShardsResponse:
        """Has shards cut in two."""
        async with self._calls.call("SplitShards", context):
            if request.all == bool(request.shards):
                raise InvalidArgument("name shards, or say all", ErrorDetails(field="shards"))
            wanted = await self._maps.request_splits(None if request.all else sorted(set(request.shards)))
            splits = [
                cluster_pb2.ShardSplit(shard=shard, split=convert.split_to_proto(split))
                for shard, split in sorted(wanted.items())
            ]
            return cluster_pb2.SplitShardsResponse(splits=splits)

    async def GetStatus(self, request: cluster_pb2.GetStatusRequest, context: Context) -> cluster_pb2.GetStatusResponse:
        """Asks every leaf at once for its state."""
        async with self._calls.call("GetStatus", context):
            cluster_map = await self._newest_map()
            deadline = min(self._calls.leg_deadline(context), self._clock.monotonic() + STATUS_TIMEOUT_S)
            leaves = [leaf for _, leaf in sorted(cluster_map.leaves.items())]
            replies, workers = await asyncio.gather(
                asyncio.gather(*(self._status_of(leaf, deadline) for leaf in leaves)), self._siblings.statuses()
            )
            own = next(worker.tail for worker in workers if worker.worker == self._siblings.name)
            return cluster_pb2.GetStatusResponse(
                map=convert.cluster_map_to_proto(cluster_map),
                leaves=[
                    convert.leaf_status_to_proto(leaf, reply, error)
                    for leaf, (reply, error) in zip(leaves, replies, strict=True)
                ],
                tail=None if own is None else convert.tail_status_to_proto(own),
                workers=map(worker_status_to_proto, workers),
            )

    async def GetWorkerStatus(
        self, request: cluster_pb2.GetWorkerStatusRequest, context: Context
    ) -> cluster_pb2.GetWorkerStatusResponse:
        """Says how this process is."""
        async with self._calls.call("GetWorkerStatus", context):
            return cluster_pb2.GetWorkerStatusResponse(worker=worker_status_to_proto(self._siblings.own_status()))

    async def InjectFault(self, request: cluster_pb2.InjectFaultRequest, context: Context) -> cluster_pb2.InjectFaultResponse:
        """Has leaves misbehave for a while."""
        async with self._calls.call("InjectFault", context):
            fault = fault_from_proto(request.fault)
            injected = await self._faults.inject(await self._newest_map(), list(request.leaves), fault)
            faults = [leaf_fault_to_proto(each.leaf, each.fault) for each in injected]
            return cluster_pb2.InjectFaultResponse(faults=faults)

    async def ClearFaults(self, request: cluster_pb2.ClearFaultsRequest, context: Context) -> cluster_pb2.ClearFaultsResponse:
        """Ends faults before their time."""
        async with self._calls.call("ClearFaults", context):
            if len(request.ids) > IDS_MAX:
                text = f"at most {IDS_MAX} ids at once, not {len(request.ids)}"
                raise InvalidArgument(text, ErrorDetails(field="ids", limit=IDS_MAX))
            reports = await self._faults.clear(await self._newest_map(), list(request.leaves), list(request.ids))
            return cluster_pb2.ClearFaultsResponse(cleared=reports.cleared, silent=reports.silent)

    async def ListFaults(self, request: cluster_pb2.ListFaultsRequest, context: Context) -> cluster_pb2.ListFaultsResponse:
        """Lists the faults in force."""
        async with self._calls.call("ListFaults", context):
            reports = await self._faults.list(await self._newest_map())
            faults = [leaf_fault_to_proto(each.leaf, each.fault) for each in reports.faults]
            return cluster_pb2.ListFaultsResponse(faults=faults, silent=reports.silent)

    async def ListSlowReads(
        self, request: cluster_pb2.ListSlowReadsRequest, context: Context
    ) -> cluster_pb2.ListSlowReadsResponse:
        """Returns the slowest of the late reads."""
        async with self._calls.call("ListSlowReads", context):
            if request.method not in ("", *METHODS):
                known = ", ".join(METHODS)
                raise InvalidArgument(f"method is one of {known}, not {request.method!r}", ErrorDetails(field="method"))
            limit = request.limit or SLOW_READS_LIMIT
            own = self._slow.slowest(limit, self._clock.monotonic(), request.method)
            if request.reset:
                self._slow.clear()
            reads, silent = [slow_read_to_proto(read, self._siblings.name) for read in own], list[str]()
            if not request.only_this_worker:
                others, silent = await self._siblings.slow_reads(request)
                reads = sorted((*reads, *others), key=lambda read: -read.timing.total_us)[:limit]
            return cluster_pb2.ListSlowReadsResponse(reads=reads, silent=silent)

    async def _newest_map(self) -> ClusterMap:
        """The map read anew, or the one that is known where that takes long.

        The watch brings a leaf's address a moment after the leaf serves: right after a start it would count as down.
        """
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(MAP_TIMEOUT_S):
                await self._maps.refresh()
        return known_map(self._maps)

    async def DrainLeaf(self, request: cluster_pb2.DrainLeafRequest, context: Context) -> cluster_pb2.DrainLeafResponse:
        """Has a leaf emptied, or takes that back."""
        async with self._calls.call("DrainLeaf", context):
            _require("leaf", request.leaf)
            leaf = await self._maps.set_draining(request.leaf, not request.undo)
            return cluster_pb2.DrainLeafResponse(leaf=convert.leaf_to_proto(leaf))

    async def RemoveLeaf(self, request: cluster_pb2.RemoveLeafRequest, context: Context) -> cluster_pb2.RemoveLeafResponse:
        """Takes a leaf out of the cluster."""
        async with self._calls.call("RemoveLeaf", context):
            _require("leaf", request.leaf)
            removal = await self._maps.remove_leaf(request.leaf, request.force)
            return cluster_pb2.RemoveLeafResponse(is_done=removal.is_done, shards=removal.shards)

    async def MoveShard(self, request: cluster_pb2.MoveShardRequest, context: Context) -> cluster_pb2.MoveShardResponse:
        """Says where a replica, or the primary, of a shard is wanted."""
        async with self._calls.call("MoveShard", context):
            move = request.WhichOneof("move")
            if move == "replica":
                source, target = request.replica.from_leaf, request.replica.to_leaf
                _require("replica.from_leaf", source)
                _require("replica.to_leaf", target)
                shard = await self._maps.move_replica(request.shard, source, target)
            elif move == "primary":
                _require("primary", request.primary)
                shard = await self._maps.move_primary(request.shard, request.primary)
            else:
                raise InvalidArgument("say what to move: a replica, or the primary", ErrorDetails(field="move"))
            return cluster_pb2.MoveShardResponse(shard=convert.shard_to_proto(shard))

    async def _status_of(self, leaf: Leaf, deadline: float) -> tuple[LeafStatusReply | None, str]:
        """The leaf's report, or why there is none."""
        if not leaf.address:
            return None, "it has never been up"
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock.monotonic())):
                answer = await self._leaves.status(leaf.id, LeafStatusRequest(), deadline)
        except KvShardError as error:
            return None, error.message
        except TimeoutError:
            return None, "it did not answer in time"
        return answer.reply, ""


def _require(field: str, value: str) -> None:
    if not value:
        raise InvalidArgument(f"{field} must not be empty", ErrorDetails(field=field))
