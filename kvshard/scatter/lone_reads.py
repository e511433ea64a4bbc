"""Reads of one key that need no task: sent at once, and answered from where their leaf's answer comes in.

Who asks for one key and waits, waits for all that is done on the way. Nearly every such read is of a collection that the map at
hand knows, and ends with the first answer of a leaf. A task for it, with six coroutines inside of each other and two passes of
the event loop, took as long as the rest of a router's part. What is not so, or turns out otherwise, is left to `key_frames`,
which reads any frame.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from kvshard.clustermap import ClusterMap, Collection
from kvshard.errors import Internal, InvalidArgument, KvShardError, error_of
from kvshard.lane_messages import KeysRead, KeysReadReply
from kvshard.limits import KEY_MAX_BYTES
from kvshard.model import ShardReadReply
from kvshard.rpc.key_convert import policy_of_encoded
from kvshard.rpc.leaf_client import LeafClient, TakeBack
from kvshard.scatter.kv import read_of_key
from kvshard.scatter.ledger import ReadTimes
from kvshard.scatter.leg import How
from kvshard.scatter.leg_result import LegResult
from kvshard.scatter.moved import is_moved
from kvshard.scatter.routes import MapSource, resolve_known
from kvshard.scatter.scatter import Scatter


class LoneRead(NamedTuple):
    """A read that can begin at once."""

    cluster_map: ClusterMap
    collection: Collection
    key: bytes
    how: How


Told: TypeAlias = Callable[[KeysReadReply | KvShardError | None], None]
"""Is told what became of a read: its answer, or its error; None: it has to be read in the other way."""


class LoneReads:
    """Begins them."""

    def __init__(self, maps: MapSource, leaves: LeafClient, scatter: Scatter) -> None:
        self._maps = maps
        self._leaves = leaves
        self._scatter = scatter

    def __repr__(self) -> str:
        return f"LoneReads({self._scatter!r})"

    def find(self, request: KeysRead) -> LoneRead | None:
        """The read of this frame, where it is such a one. None: `KeyFrames.read` does it, or says why it cannot be done."""
        if len(request.keys) != 1 or not request.is_each_alone or not 0 < len(request.keys[0]) <= KEY_MAX_BYTES:
            return None
        try:
            policy = policy_of_encoded(request.options)
        except InvalidArgument:
            return None
        known = resolve_known(self._maps, request.collection)
        if known is None or policy.is_stale or policy.is_timing_wanted:
            return None
        cluster_map, collection = known
        return LoneRead(cluster_map, collection, request.keys[0], self._scatter.how_to_read(policy, collection))

    def begin(self, read: LoneRead, deadline: float, times: ReadTimes, told: Told) -> TakeBack:
        """Send it. told: not before this returns, and not at all once it is taken back. times: the account of the read."""
        cluster_map, collection, key, how = read
        request = read_of_key(cluster_map, collection, key, is_stale=False)

        def ended(leg: LegResult[ShardReadReply]) -> None:
            times.add((leg,), leg.ended_at)
            told(_outcome(leg))

        return self._scatter.begin("Get", self._leaves.read, request, deadline, how, self._leaves.start, ended)


def _outcome(leg: LegResult[ShardReadReply]) -> KeysReadReply | KvShardError | None:
    if leg.answer is None:
        return leg.error or Internal("the leg has neither an answer nor an error")
    reply = leg.answer.reply
    if reply.errors:
        return None if is_moved(reply.errors[0]) else error_of(reply.errors[0])
    if len(reply.values) != 1 or len(reply.versions) != 1:
        return Internal(f"a leaf answered {len(reply.values)} values for one key")
    return KeysReadReply(reply.values, reply.versions, reply.expires_at_ms)
