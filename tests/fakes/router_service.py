"""A router without a cluster: the public services over a dict, on a real port, for tests of the client and the CLI.

It runs in threads of its own (grpc's synchronous server), so that it also serves code that brings its own event loop.
"""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import msgspec
from fakes.router_lanes import FakeLanes, FrameContext

from kvshard.clustermap import ClusterMap, Collection, Leaf, Replica, SchemaChange, ShardConfig, WantedSplit
from kvshard.coordination import schema_changes
from kvshard.errors import (
    AliasNotFound,
    ChangeConflict,
    CollectionExists,
    CollectionNotFound,
    ErrorDetails,
    InvalidArgument,
    InvalidToken,
    KvShardError,
    MalformedQuery,
    VersionConflict,
    record_of,
)
from kvshard.fault_model import ActiveFaultRecord
from kvshard.faults import check_fault
from kvshard.hedge_settings import hedging_fields, merged
from kvshard.model import (
    CatchUpRecord,
    CollectionCountRecord,
    LeafStatusReply,
    ReplicaStatusRecord,
    SplitRecord,
)
from kvshard.rpc.channel import SERVER_OPTIONS
from kvshard.rpc.convert import (
    aliases_to_proto,
    cluster_map_to_proto,
    collection_to_proto,
    hedging_from_proto,
    leaf_status_to_proto,
    leaf_to_proto,
    schema_from_proto,
    shard_to_proto,
    split_to_proto,
    tail_status_to_proto,
)
from kvshard.rpc.fault_convert import fault_from_proto, leaf_fault_to_proto
from kvshard.rpc.status import DETAILS_KEY, failure_of, status_of
from kvshard.rpc.worker_convert import worker_status_to_proto
from kvshard.schema import validate_document
from kvshard.tail.status import TailStatus
from kvshard.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    kv_pb2,
    kv_pb2_grpc,
    lane_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
    types_pb2,
)
from kvshard.workers import WorkerStatus

CODES = {code.value[0]: code for code in grpc.StatusCode}
WHOLE = types_pb2.Coverage(complete=True, documents_considered=7, documents_total=7, fraction=1.0, legs=2, legs_ok=2)


class FakeRouter:
    """fail(method, error) makes the next call of a method fail; hold() lets calls of a method wait until release().

    requests: every request that came in, by method. dead_keys: keys that fail on their own, with the error. watermarks: what a
    write that asks for them gets. state: what stale reads say they saw. tail: what it does against slow leaves. workers: the
    processes that it says it has; silent_workers: those that its slow log lacks. leaves, shards: its map. on_status: what
    happens before the next answers to GetStatus. has_lanes: else it is a router of an older version; frames: what came by
    lanes; messages: the ids in each message of a lane.
    """

    def __init__(self, scan_chunk: int = 3, port: int = 0, *, has_lanes: bool = False) -> None:
        self.collections = {"default": Collection("default", 1)}
        self.aliases: dict[str, str] = {}
        self.misfits: dict[int, dict[str, int]] = {}
        self.items: dict[str, dict[bytes, tuple[bytes, int, int]]] = defaultdict(dict)
        self.version = 0
        self.scan_chunk = scan_chunk
        self.requests: dict[str, list] = defaultdict(list)
        self.dead_keys: dict[bytes, KvShardError] = {}
        self.down_leaves: set[str] = set()
        half = 1 << 15
        self.leaves = {name: Leaf(name, f"127.0.0.1:{port}", "z1") for name, port in (("leaf-1", 7801), ("leaf-2", 7802))}
        self.shards = {
            0: ShardConfig(0, 0, half - 1, 1, "leaf-1", (Replica("leaf-1", "a"),), (), ("leaf-1",)),
            1: ShardConfig(1, half, 2 * half - 1, 1, "leaf-2", (Replica("leaf-2", "b"),), (), ("leaf-2",)),
        }
        self.catching_up: dict[int, list[CatchUpRecord]] = {}
        self.splitting: dict[int, SplitRecord] = {}
        self.faults: list[tuple[str, ActiveFaultRecord]] = []
        self.on_status: list[Callable[[], None]] = []
        self.coverage = WHOLE
        self.watermarks = b""
        self.state = types_pb2.ReadState()
        self.tail: TailStatus | None = None
        self.workers: list[WorkerStatus] = []
        self.silent_workers: list[str] = []
        self._failures: dict[str, deque] = defaultdict(deque)
        self._gates: dict[str, threading.Event] = {}
        self._lock = threading.RLock()
        self.frames: list[object] = []
        self.messages: list[list[int]] = []
        self._server = grpc.server(ThreadPoolExecutor(32), options=[*SERVER_OPTIONS, ("grpc.so_reuseport", 0)])
        kv_pb2_grpc.add_KVServicer_to_server(_KV(self), self._server)
        search_pb2_grpc.add_SearchServicer_to_server(_Search(self), self._server)
        cluster_pb2_grpc.add_ClusterServicer_to_server(_Cluster(self), self._server)
        if has_lanes:
            lane_pb2_grpc.add_LanesServicer_to_server(FakeLanes(self, _KV(self)), self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{self.port}"

    def __enter__(self) -> "FakeRouter":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        for gate in self._gates.values():
            gate.set()
        self._server.stop(0).wait()

    def __repr__(self) -> str:
        counts = {method: len(seen) for method, seen in self.requests.items()}
        return f"FakeRouter({self.address}, requests={counts}, items={ {n: len(i) for n, i in self.items.items()} })"

    def fail(self, method: str, error: KvShardError | grpc.StatusCode, *, times: int = 1, after: int = 0) -> None:
        """Let calls of a method fail: with a kvshard error, or as gRPC itself fails. after: let so many succeed first."""
        self._failures[method].extend([None] * after + [error] * times)

    def recover(self) -> None:
        """Forget the failures that were still to come."""
        self._failures.clear()

    def hold(self, method: str) -> None:
        self._gates[method] = threading.Event()

    def release(self, method: str) -> None:
        self._gates.pop(method).set()

    def put(self, key: bytes, value: bytes, collection: str = "default") -> int:
        self.version += 1
        self.items[collection][key] = (value, self.version, 0)
        return self.version

    def state_for(self, request) -> types_pb2.ReadState | None:
        return self.state if request.options.consistency == types_pb2.CONSISTENCY_STALE else None

    def enter(self, method: str, request, context) -> None:
        self.requests[method].append(request)
        gate = self._gates.get(method)
        while gate is not None and not gate.wait(0.02):
            if not context.is_active():
                break
        if self._failures[method] and (error := self._failures[method].popleft()) is not None:
            self.abort(context, error)

    def abort(self, context, error) -> None:
        if isinstance(context, FrameContext):
            context.fail(error)
        if isinstance(error, grpc.StatusCode):
            context.abort(error, "as gRPC itself would say it")
        trailers = ((DETAILS_KEY, status_of(error).SerializeToString()),)
        context.set_trailing_metadata(trailers)
        context.abort(CODES[error.grpc_code], error.message)

    def collection(self, name: str) -> Collection:
        try:
            return self.collections[self.aliases.get(name, name or "default")]
        except KeyError:
            raise CollectionNotFound(f"there is no collection {name!r}") from None

    def live(self, collection: str) -> dict[bytes, tuple[bytes, int, int]]:
        now = time.time() * 1000
        return {key: row for key, row in self.items[collection or "default"].items() if not row[2] or row[2] > now}

    def begin_change(self, held: Collection, schema: dict[str, str]) -> Collection:
        if held.change is not None:
            raise ChangeConflict(f"the schema of {held.name} is being changed already")
        version = held.versions + 1
        self.collections[held.name] = replace(held, change=SchemaChange(schema, version), versions=version)
        return self.collections[held.name]

    def finish_change(self, name: str) -> None:
        """Every index is built; there were three documents whose new values did not fit."""
        held = self.collections[name]
        self.misfits[held.id] = dict.fromkeys(held.change.schema.keys() - held.schema.keys() - {"year"}, 3)
        self.collections[name] = held.changed()

    def write(self, name: str, key: bytes, value: bytes | None, ttl_ms: int, condition) -> tuple[int, bool]:
        with self._lock:
            collection = self.collection(name)
            if key in self.dead_keys:
                raise self.dead_keys[key]
            present = self.items[collection.name].get(key)
            if present and present[2] and present[2] <= time.time() * 1000:
                present = None
            version = present[1] if present else 0
            wanted = condition.WhichOneof("condition") if condition is not None else None
            if (wanted == "if_version" and condition.if_version != version) or (wanted == "if_absent" and present):
                raise VersionConflict(f"the key has version {version}", ErrorDetails(current_version=version))
            if value is None:
                self.items[collection.name].pop(key, None)
                return (self.version if present else 0), present is not None
            if collection.schema:
                validate_document(collection.schema, value, msgspec.json.decode)
            self.version += 1
            expires = int(time.time() * 1000) + ttl_ms if ttl_ms else 0
            self.items[collection.name][key] = (value, self.version, expires)
            return self.version, present is not None

    def map(self) -> ClusterMap:
        return ClusterMap(9, 0, dict(self.leaves), dict(self.shards), dict(self.collections))


class _Service:
    def __init__(self, router: FakeRouter) -> None:
        self._router = router

    def _run(self, method, request, context, work):
        self._router.enter(method, request, context)
        try:
            return work()
        except KvShardError as error:
            return self._router.abort(context, error)


class _KV(_Service, kv_pb2_grpc.KVServicer):
    def Get(self, request, context):
        def work():
            row = self._router.live(self._router.collection(request.collection).name).get(request.key)
            if request.key in self._router.dead_keys:
                raise self._router.dead_keys[request.key]
            item = None
            if row:
                item = types_pb2.Item(key=request.key, value=row[0], version=row[1], expires_at_ms=row[2])
            return kv_pb2.GetResponse(item=item, timing=_timing(request), state=self._router.state_for(request))

        return self._run("Get", request, context, work)

    def Put(self, request, context):
        def work():
            condition = request.condition if request.HasField("condition") else None
            version, _ = self._router.write(request.collection, request.key, request.value, request.ttl_ms, condition)
            watermarks = self._router.watermarks if request.request_id.wants_watermarks else b""
            return kv_pb2.PutResponse(version=version, watermarks=watermarks)

        return self._run("Put", request, context, work)

    def Delete(self, request, context):
        def work():
            condition = request.condition if request.HasField("condition") else None
            _, existed = self._router.write(request.collection, request.key, None, 0, condition)
            return kv_pb2.DeleteResponse(existed=existed)

        return self._run("Delete", request, context, work)

    def BatchGet(self, request, context):
        def work():
            live = self._router.live(self._router.collection(request.collection).name)
            rows = [live.get(key, (b"", 0, 0)) for key in request.keys]
            failures = [
                types_pb2.KeyFailure(index=index, failure=failure_of(record_of(self._router.dead_keys[key])))
                for index, key in enumerate(request.keys)
                if key in self._router.dead_keys
            ]
            return kv_pb2.BatchGetResponse(
                values=[row[0] for row in rows],
                versions=[row[1] for row in rows],
                expires_at_ms=[row[2] for row in rows] if any(row[2] for row in rows) else None,
                failures=failures,
                coverage=self._router.coverage,
                timing=_timing(request),
                states=[state] if (state := self._router.state_for(request)) else None,
            )

        return self._run("BatchGet", request, context, work)

    def BatchWrite(self, request, context):
        def work():
            self._router.collection(request.collection)
            response = kv_pb2.BatchWriteResponse()
            for index, key in enumerate(request.keys):
                value = None if request.deletes and request.deletes[index] else request.values[index]
                ttl = request.ttl_ms[index] if request.ttl_ms else 0
                condition = request.conditions[index] if request.conditions else None
                try:
                    version, existed = self._router.write(request.collection, key, value, ttl, condition)
                except KvShardError as error:
                    version, existed = 0, False
                    response.failures.add(index=index, failure=failure_of(record_of(error)))
                response.versions.append(version)
                response.existed.append(existed)
            return response

        return self._run("BatchWrite", request, context, work)

    def Scan(self, request, context):
        router = self._router
        router.enter("Scan", request, context)
        try:
            live = router.live(router.collection(request.collection).name)
        except KvShardError as error:
            router.abort(context, error)
        token_end = repr((request.prefix, request.start, request.end)).encode()
        if request.token and not request.token.endswith(token_end):
            router.abort(context, InvalidToken("the token belongs to another scan", ErrorDetails(field="token")))
        after = request.token.removesuffix(token_end)
        keys = sorted(
            key
            for key in live
            if key.startswith(request.prefix)
            and key >= request.start
            and (not request.end or key < request.end)
            and key > after
        )
        end = min(len(keys), request.limit or len(keys))
        for first in range(0, end, router.scan_chunk) or [0]:
            chunk = keys[first : min(first + router.scan_chunk, end)]
            last = first + router.scan_chunk >= end
            yield kv_pb2.ScanResponse(
                keys=chunk,
                values=[] if request.keys_only else [live[key][0] for key in chunk],
                versions=[live[key][1] for key in chunk],
                expires_at_ms=[live[key][2] for key in chunk] if any(live[key][2] for key in chunk) else None,
                token=chunk[-1] + token_end if chunk and chunk[-1] != keys[-1] else b"",
                coverage=router.coverage if last else None,
                states=[state] if last and (state := router.state_for(request)) else None,
                timing=_timing(request) if last else None,
            )
            if not last:
                router.enter("Scan.chunk", chunk, context)


def _timing(request):
    if not request.options.explain_timing:
        return None
    return TIMING


def hedged_timing():
    """A leg whose first attempt, at leaf-1, was overtaken by its hedge at leaf-2."""
    first = types_pb2.AttemptTiming(leaf="leaf-1", kind="first", began_us=0, ended_us=800, outcome="cancelled")
    hedge = types_pb2.AttemptTiming(leaf="leaf-2", kind="hedge", began_us=300, ended_us=800, outcome="won")
    leg = types_pb2.LegTiming(
        shard=1,
        leaf="leaf-2",
        attempts=2,
        total_us=800,
        queue_us=20,
        service_us=300,
        network_us=180,
        tries=[first, hedge],
        refused=["budget"],
    )
    return types_pb2.Timing(legs=[leg], total_us=900, merge_us=10, straggler_shard=1, before_us=200)


TIMING = hedged_timing()


class _Search(_Service, search_pb2_grpc.SearchServicer):
    """Finds documents that hold every word of the query anywhere in their JSON; the score is the number of occurrences."""

    def Search(self, request, context):
        return self._run("Search", request, context, lambda: self._search(request))

    def _search(self, request):
        collection = self._router.collection(request.collection)
        if not collection.schema:
            raise InvalidArgument("the collection has no schema", ErrorDetails(field="collection"))
        if (position := request.query.find("(")) >= 0 and ")" not in request.query:
            raise MalformedQuery("a ) is missing", ErrorDetails(field="query", position=position))
        words = [word.lower() for word in (request.query, *request.filters) if word not in ("", "*")]
        found = []
        for key, (value, version, _) in sorted(self._router.live(collection.name).items()):
            text = value.decode().lower()
            if all(word in text for word in words):
                found.append((sum(text.count(word) for word in words), key, value, version))
        found.sort(key=lambda row: (-row[0], row[1]))
        first = int(request.token or b"0")
        page = found[first : first + request.limit]
        response = search_pb2.SearchResponse(total=len(found), coverage=self._router.coverage, timing=_timing(request))
        for score, key, value, version in page:
            hit = response.hits.add(key=key, score=score, version=version, shard=len(key) % 2)
            hit.document = b"" if request.keys_only else value
            self._highlight(hit, msgspec.json.decode(value), request)
        for name in request.facets:
            counts = defaultdict(int)
            for row in found:
                counts[msgspec.json.decode(row[2])[name]] += 1
            facet = response.facets.add(field=name)
            for value, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[: request.facet_limit or 10]:
                facet.values.add(value=value, count=count)
        if first + request.limit < len(found):
            response.next = str(first + request.limit).encode()
        return response

    def _highlight(self, hit, document, request):
        for name in request.highlight:
            text = str(document.get(name, ""))
            start = text.lower().find(request.query.lower())
            if request.query and start >= 0:
                hit.highlights.add(field=name, fragment=text, starts=[start], ends=[start + len(request.query)])


class _Cluster(_Service, cluster_pb2_grpc.ClusterServicer):
    def GetMap(self, request, context):
        def work():
            return cluster_pb2.GetMapResponse(map=cluster_map_to_proto(self._router.map()))

        return self._run("GetMap", request, context, work)

    def CreateCollection(self, request, context):
        def work():
            schema = schema_from_proto(request.fields)
            present = self._router.collections.get(request.name)
            if present is not None and dict(present.schema) != schema:
                raise CollectionExists(f"collection {request.name!r} exists with another schema")
            hedging = hedging_from_proto(request.hedging)
            made = present or Collection(request.name, len(self._router.collections) + 1, schema, hedging)
            self._router.collections[request.name] = made
            return cluster_pb2.CreateCollectionResponse(collection=collection_to_proto(made))

        return self._run("CreateCollection", request, context, work)

    def ReindexCollection(self, request, context):
        def work():
            held = self._router.collection(request.name)
            if request.cancel:
                made = self._router.collections[held.name] = replace(held, change=None)
            else:
                made = self._router.begin_change(held, schema_changes.with_types(held, schema_from_proto(request.fields)))
            return cluster_pb2.ReindexCollectionResponse(collection=collection_to_proto(made))

        return self._run("ReindexCollection", request, context, work)

    def UpdateCollection(self, request, context):
        def work():
            held = self._router.collection(request.name)
            if list(request.update_mask.paths) == ["fields"]:
                wanted = schema_changes.with_fields(held, schema_from_proto(request.fields))
                made = held if wanted == dict(held.schema) else self._router.begin_change(held, wanted)
                return cluster_pb2.UpdateCollectionResponse(collection=collection_to_proto(made))
            names = hedging_fields(request.update_mask.paths)
            made = replace(held, hedging=merged(held.hedging, hedging_from_proto(request.hedging), names))
            self._router.collections[request.name] = made
            return cluster_pb2.UpdateCollectionResponse(collection=collection_to_proto(made))

        return self._run("UpdateCollection", request, context, work)

    def ListCollections(self, request, context):
        def work():
            rows = [collection_to_proto(row) for _, row in sorted(self._router.collections.items())]
            return cluster_pb2.ListCollectionsResponse(collections=rows, aliases=aliases_to_proto(self._router.aliases))

        return self._run("ListCollections", request, context, work)

    def SetAlias(self, request, context):
        def work():
            held = self._router.aliases.get(request.alias, "")
            if request.HasField("if_collection") and held not in (request.if_collection, request.collection):
                raise ChangeConflict(f"alias {request.alias!r} stands for {held!r}")
            self._router.aliases[request.alias] = self._router.collection(request.collection).name
            return cluster_pb2.SetAliasResponse()

        return self._run("SetAlias", request, context, work)

    def RemoveAlias(self, request, context):
        def work():
            if request.alias not in self._router.aliases:
                raise AliasNotFound(f"there is no alias {request.alias!r}")
            return cluster_pb2.RemoveAliasResponse(collection=self._router.aliases.pop(request.alias))

        return self._run("RemoveAlias", request, context, work)

    def DropCollection(self, request, context):
        def work():
            self._router.collection(request.name)
            del self._router.collections[request.name]
            self._router.items.pop(request.name, None)
            return cluster_pb2.DropCollectionResponse()

        return self._run("DropCollection", request, context, work)

    def GetStatus(self, request, context):
        def work():
            if self._router.on_status:
                self._router.on_status.pop(0)()
            cluster_map = self._router.map()
            counts = [
                CollectionCountRecord(
                    row.id,
                    len(rows := self._router.live(row.name)),
                    sum(len(r[0]) for r in rows.values()),
                    misfits=self._router.misfits.get(row.id, {}),
                )
                for row in cluster_map.collections.values()
            ]
            leaves = []
            for leaf in cluster_map.leaves.values():
                if leaf.id in self._router.down_leaves:
                    leaves.append(leaf_status_to_proto(leaf, None, "cannot be reached"))
                    continue
                replicas = [
                    ReplicaStatusRecord(
                        shard.id,
                        1,
                        "primary",
                        5,
                        5,
                        counts if shard.id == 0 else [],
                        catching_up=self._router.catching_up.get(shard.id, []),
                        split=self._router.splitting.get(shard.id),
                    )
                    for shard in cluster_map.shards.values()
                    if shard.primary == leaf.id
                ]
                reply = LeafStatusReply(leaf.id, replicas, 4242, 61.0, 70 << 20, 5 << 20, "0.1.0")
                leaves.append(leaf_status_to_proto(leaf, reply))
            return cluster_pb2.GetStatusResponse(
                map=cluster_map_to_proto(cluster_map),
                leaves=leaves,
                tail=None if self._router.tail is None else tail_status_to_proto(self._router.tail),
                workers=map(worker_status_to_proto, self._router.workers),
            )

        return self._run("GetStatus", request, context, work)

    def InjectFault(self, request, context):
        def work():
            fault = fault_from_proto(request.fault)
            check_fault(fault)
            fault = replace(fault, id=f"{fault.kind}-{len(self._router.faults)}", seed=fault.seed or 4711)
            added = [(leaf, ActiveFaultRecord(fault, fault.duration_s, 0)) for leaf in request.leaves or self._router.leaves]
            self._router.faults += added
            return cluster_pb2.InjectFaultResponse(faults=[leaf_fault_to_proto(*each) for each in added])

        return self._run("InjectFault", request, context, work)

    def ClearFaults(self, request, context):
        def work():
            gone = [
                (leaf, active)
                for leaf, active in self._router.faults
                if (not request.leaves or leaf in request.leaves) and (not request.ids or active.fault.id in request.ids)
            ]
            self._router.faults = [each for each in self._router.faults if each not in gone]
            return cluster_pb2.ClearFaultsResponse(cleared=len(gone), silent=sorted(self._router.down_leaves))

        return self._run("ClearFaults", request, context, work)

    def ListFaults(self, request, context):
        def work():
            faults = [leaf_fault_to_proto(*each) for each in self._router.faults]
            return cluster_pb2.ListFaultsResponse(faults=faults, silent=sorted(self._router.down_leaves))

        return self._run("ListFaults", request, context, work)

    def DrainLeaf(self, request, context):
        def work():
            marked = replace(self._router.leaves[request.leaf], is_draining=not request.undo)
            self._router.leaves[request.leaf] = marked
            return cluster_pb2.DrainLeafResponse(leaf=leaf_to_proto(marked))

        return self._run("DrainLeaf", request, context, work)

    def RemoveLeaf(self, request, context):
        return self._run(
            "RemoveLeaf", request, context, lambda: cluster_pb2.RemoveLeafResponse(is_done=not request.force, shards=[1])
        )

    def MoveShard(self, request, context):
        def work():
            shard = self._router.shards[request.shard]
            wanted = (request.replica.to_leaf,) if request.HasField("replica") else (request.primary,)
            self._router.shards[request.shard] = moved = replace(shard, desired=wanted)
            return cluster_pb2.MoveShardResponse(shard=shard_to_proto(moved))

        return self._run("MoveShard", request, context, work)

    def SplitShards(self, request, context):
        def work():
            router = self._router
            chosen = sorted(router.shards) if request.all else list(request.shards)
            next_id = max(router.shards) + 1
            wanted = {shard: WantedSplit(next_id + n, router.shards[shard].middle_slot) for n, shard in enumerate(chosen)}
            for shard, split in wanted.items():
                router.shards[shard] = replace(router.shards[shard], split=split)
            splits = [cluster_pb2.ShardSplit(shard=shard, split=split_to_proto(each)) for shard, each in wanted.items()]
            return cluster_pb2.SplitShardsResponse(splits=splits)

        return self._run("SplitShards", request, context, work)

    def ListSlowReads(self, request, context):
        def work():
            slow = cluster_pb2.SlowRead(
                at_ms=1_700_000_000_123,
                method="Search",
                collection="docs",
                detail='title:"tail [latency]"',
                code="DEADLINE_EXCEEDED",
                timing=TIMING,
                worker=self._router.workers[0].worker if self._router.workers else "",
            )
            silent = self._router.silent_workers
            return cluster_pb2.ListSlowReadsResponse(reads=[slow] * min(2, request.limit), silent=silent)

        return self._run("ListSlowReads", request, context, work)

    def WatchMap(self, request, context):
        yield cluster_pb2.WatchMapResponse(map=cluster_map_to_proto(self._router.map()))
