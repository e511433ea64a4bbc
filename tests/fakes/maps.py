"""A map store without a coordinator: the test sets the map, and sees what a leaf wrote."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from kvshard.clustermap import (
    DEFAULT_COLLECTION,
    ClusterMap,
    Collection,
    Leaf,
    Replica,
    ShardConfig,
    WantedSplit,
    equal_ranges,
)
from kvshard.coordination.replica_sets import CasOutcome, CasResult
from kvshard.errors import FailedPrecondition
from kvshard.splitting import divided


def one_leaf_map(leaf: str = "leaf-1", shards: int = 2, collections: Sequence[Collection] = ()) -> ClusterMap:
    """A map with all shards on one leaf that has not created their data yet."""
    configs = {
        number: ShardConfig(number, first, last, 1, leaf, (Replica(leaf),), desired=(leaf,))
        for number, (first, last) in enumerate(equal_ranges(shards))
    }
    named = {each.name: each for each in (DEFAULT_COLLECTION, *collections)}
    return ClusterMap(1, 0, {leaf: Leaf(leaf, "127.0.0.1:1")}, configs, named)


class FakeMaps:
    """Implements leaf.hosting.Maps. `refuse` is raised by the next calls that write, once for each of its elements."""

    def __init__(self, cluster_map: ClusterMap) -> None:
        self.current = cluster_map
        self.hidden: ClusterMap | None = None
        self.refuse: list[Exception] = []
        self.refreshes = 0
        self._callbacks: list[Callable[[ClusterMap], None]] = []

    def __repr__(self) -> str:
        return f"FakeMaps(version={self.current.version}, refreshes={self.refreshes})"

    def install(self, **changes: object) -> None:
        """A newer map, with some of its parts changed, that every follower sees."""
        self._install(replace(self.current, version=self.current.version + 1, **changes))  # type: ignore[arg-type]

    def hide(self, **changes: object) -> None:
        """A newer map that is seen only by a refresh."""
        self.hidden = replace(self.current, version=self.current.version + 1, **changes)  # type: ignore[arg-type]

    def _install(self, cluster_map: ClusterMap) -> None:
        self.current = cluster_map
        for callback in list(self._callbacks):
            callback(cluster_map)

    async def refresh(self) -> ClusterMap:
        self.refreshes += 1
        if self.hidden is not None:
            hidden, self.hidden = self.hidden, None
            self._install(hidden)
        return self.current

    def subscribe(self, callback: Callable[[ClusterMap], None], /) -> Callable[[], None]:
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def change_shard(self, shard: int, **changes: object) -> None:
        """A newer map with one shard changed."""
        self.install(shards={**self.current.shards, shard: replace(self.current.shards[shard], **changes)})  # type: ignore[arg-type]

    async def claim_incarnations(self, leaf: str, incarnations: dict[int, str]) -> dict[int, ShardConfig]:
        self._raise_refusal()
        for shard, incarnation in incarnations.items():
            config = self.current.shards[shard]
            held = next(replica.incarnation for replica in config.in_sync if replica.leaf == leaf)
            if held not in ("", incarnation):
                raise FailedPrecondition(f"shard {shard} has the data {held}")
            members = tuple(replace(each, incarnation=incarnation) if each.leaf == leaf else each for each in config.in_sync)
            self.change_shard(shard, in_sync=members)
        return {shard: self.current.shards[shard] for shard in incarnations}

    async def compare_and_set(self, config: ShardConfig, expected_epoch: int) -> CasResult:
        self._raise_refusal()
        held = self.current.shards[config.id]
        if held.epoch != expected_epoch:
            return CasResult(CasOutcome.FAILED, held)
        self.install(shards={**self.current.shards, config.id: held.succeeded_by(config)})
        return CasResult(CasOutcome.SUCCEEDED, self.current.shards[config.id])

    async def finish_split(self, shard: int, epoch: int, wanted: WantedSplit, members: frozenset[str]) -> CasResult:
        self._raise_refusal()
        held = self.current.shards[shard]
        if held.split != wanted or held.epoch != epoch:
            done = CasOutcome.SUCCEEDED if wanted.child in self.current.shards else CasOutcome.FAILED
            return CasResult(done, held)
        parent, child = divided(held, members)
        self.install(shards={**self.current.shards, shard: parent, child.id: child})
        return CasResult(CasOutcome.SUCCEEDED, parent)

    def wish_split(self, shard: int = 0) -> WantedSplit:
        """A newer map in which a shard is to be split in the middle."""
        wanted = WantedSplit(max(self.current.shards) + 1, self.current.shards[shard].middle_slot)
        self.change_shard(shard, split=wanted)
        return wanted

    async def read_shard(self, shard: int) -> ShardConfig:
        self._raise_refusal()
        return self.current.shards[shard]

    def _raise_refusal(self) -> None:
        if self.refuse:
            raise self.refuse.pop(0)
