"""What locust's users ask, over synchronous gRPC, which runs on gevent; and the data that they ask for."""

import itertools
import json
import os
import random
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import grpc

from kvshard.cli import pydocs
from kvshard.rpc.channel import CHANNEL_OPTIONS
from kvshard.rpc.convert import cluster_map_from_proto, schema_to_proto
from kvshard.rpc.status import error_from_rpc
from kvshard.schema import parse_schema
from kvshard.v1 import cluster_pb2, cluster_pb2_grpc, kv_pb2, kv_pb2_grpc, search_pb2, search_pb2_grpc, types_pb2
from loadtests.workloads import COLLECTION, LOAD_BATCH_KEYS, VALUE_BYTES, keys_by_shard, queries

KEYS_PER_SHARD = 500
DOCUMENTS = 2_000
SETUP_TIMEOUT_S = 60.0
QUERY_SEED = 1
"""Every worker draws the same queries from the same documents."""

ResponseT = TypeVar("ResponseT")


class Reads:
    """One connection to a router, shared by the users of a process. Each call raises KvShardError when it fails."""

    def __init__(self, address: str, *, deadline_s: float, hedge: str = "auto", replica_choice: str = "adaptive") -> None:
        self.deadline_s = deadline_s
        self.keys: tuple[tuple[str, ...], ...] = ()
        self.queries: tuple[str, ...] = ()
        self._options = types_pb2.ReadOptions(hedge=hedge, replica_choice=replica_choice)
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        # The stubs' types know either kind of channel; this one is synchronous, its calls block a greenlet alone.
        self._kv: Any = kv_pb2_grpc.KVStub(self._channel)
        self._search: Any = search_pb2_grpc.SearchStub(self._channel)
        self._cluster: Any = cluster_pb2_grpc.ClusterStub(self._channel)
        self._numbers = itertools.count(int.from_bytes(os.urandom(6), "big"))
        self._value = os.urandom(VALUE_BYTES)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def learn(self) -> None:
        """Find out what there is to ask for: the keys and queries follow from the cluster map and from this Python."""
        response = _asked(lambda: self._cluster.GetMap(cluster_pb2.GetMapRequest(), timeout=SETUP_TIMEOUT_S))
        self.keys = keys_by_shard(cluster_map_from_proto(response.map), KEYS_PER_SHARD)
        texts = [str(document["doc"]) for _, document in pydocs.documents(DOCUMENTS)]
        self.queries = queries(texts, random.Random(QUERY_SEED))

    def load(self) -> None:
        """Store the keys and the documents; does no harm when they are there."""
        flat = [key.encode() for part in self.keys for key in part]
        self._write("default", flat, [self._value] * len(flat))
        fields = schema_to_proto(parse_schema(pydocs.SCHEMA))
        create = cluster_pb2.CreateCollectionRequest(name=COLLECTION, fields=fields)
        _asked(lambda: self._cluster.CreateCollection(create, timeout=SETUP_TIMEOUT_S))
        found = list(pydocs.documents(DOCUMENTS))
        self._write(COLLECTION, [key.encode() for key, _ in found], [json.dumps(document).encode() for _, document in found])
        refresh = search_pb2.SearchRequest(collection=COLLECTION, query="*", limit=1, refresh=True)
        _asked(lambda: self._search.Search(refresh, timeout=SETUP_TIMEOUT_S))

    def _write(self, collection: str, keys: list[bytes], values: list[bytes]) -> None:
        for first in range(0, len(keys), LOAD_BATCH_KEYS):
            piece = slice(first, first + LOAD_BATCH_KEYS)
            request = kv_pb2.BatchWriteRequest(collection=collection, keys=keys[piece], values=values[piece])
            _asked(partial(self._kv.BatchWrite, request, timeout=SETUP_TIMEOUT_S))

    def point_read(self, rng: random.Random) -> None:
        """Read any key."""
        self._get(rng.choice(rng.choice(self.keys)))

    def hot_key(self, rng: random.Random) -> None:
        """Read the one key that everybody reads."""
        self._get(self.keys[0][0])

    def _get(self, key: str) -> None:
        request = kv_pb2.GetRequest(collection="default", key=key.encode(), options=self._options)
        _asked(lambda: self._kv.Get(request, timeout=self.deadline_s))

    def batch(self, rng: random.Random) -> None:
        """Read a key of every shard."""
        keys = [rng.choice(part).encode() for part in self.keys]
        request = kv_pb2.BatchGetRequest(collection="default", keys=keys, options=self._options)
        _asked(lambda: self._kv.BatchGet(request, timeout=self.deadline_s))

    def search(self, rng: random.Random) -> None:
        """Search all shards for two words."""
        query = rng.choice(self.queries)
        request = search_pb2.SearchRequest(collection=COLLECTION, query=query, limit=10, options=self._options)
        _asked(lambda: self._search.Search(request, timeout=self.deadline_s))

    def write(self, rng: random.Random) -> None:
        """Write a key of its own, durable on all replicas."""
        key = f"lt:write:{next(self._numbers)}".encode()
        request = kv_pb2.PutRequest(collection="default", key=key, value=self._value)
        _asked(lambda: self._kv.Put(request, timeout=self.deadline_s))


def _asked(call: Callable[[], ResponseT]) -> ResponseT:
    """The answer. Raises KvShardError."""
    try:
        return call()
    except grpc.RpcError as error:
        raise error_from_rpc(error) from None  # type: ignore[arg-type]  # The synchronous kind has the same methods.
