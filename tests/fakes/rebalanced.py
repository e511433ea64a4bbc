"""A cluster of shards that go where they are wanted at once: the primaries' part of moving, without logs and messages."""

from dataclasses import replace

from kvshard.clustermap import DEFAULT_COLLECTION, ClusterMap, Leaf, Replica, ShardConfig
from kvshard.coordination.mapwriter import BootstrapPlan, plan_shards
from kvshard.rebalancing import CHANGING_MAX, RECEIVING_MAX, Plan, Rebalancer, forgettable, is_changing
from kvshard.rebalancing import Situation as Look

HEAL_AFTER = 30.0


class Shards:
    """Every leaf in `up` answers. `look` lets the balancer decide, `work` the primaries do one step each."""

    def __init__(self, leaves: tuple[Leaf, ...], shards: int, replicas: int) -> None:
        configs = plan_shards(BootstrapPlan(leaves, shards, replicas))
        by_leaf = {leaf.id: leaf for leaf in leaves}
        self.map = ClusterMap(
            1, 0, by_leaf, {each.id: each for each in configs}, {"default": DEFAULT_COLLECTION}, replicas=replicas
        )
        self.up = set(by_leaf)
        self.now = 0.0
        self.rebalancer = Rebalancer(HEAL_AFTER)
        self.copies = 0
        self.handovers = 0

    def __repr__(self) -> str:
        shards = [(each.id, each.desired, [member.leaf for member in each.in_sync]) for each in self.map.shards.values()]
        return f"Shards(up={sorted(self.up)}, {shards})"

    def put_leaf(self, leaf: Leaf) -> None:
        self._install(leaves={**self.map.leaves, leaf.id: leaf})

    def put_shard(self, config: ShardConfig) -> None:
        self._install(shards={**self.map.shards, config.id: config})

    def _install(self, **changes: object) -> None:
        self.map = replace(self.map, version=self.map.version + 1, **changes)  # type: ignore[arg-type]

    def holding(self, leaf: str) -> set[int]:
        return {shard.id for shard in self.map.shards.values() if any(each.leaf == leaf for each in shard.in_sync)}

    def living(self, shard: int) -> set[str]:
        return {each.leaf for each in self.map.shards[shard].in_sync if each.leaf in self.up}

    def look(self) -> Plan:
        """The balancer decides, and what it decides is written. Checks the throttle and what a plan may name."""
        plan = self.rebalancer.decide(self.map, self.up, self.now)
        before = self._changing()
        for shard, desired in plan.desired.items():
            self._check(desired)
            self.put_shard(replace(self.map.shards[shard], desired=desired))
        assert len(self._changing()) <= max(CHANGING_MAX, len(before)), "too many shards under change"
        for leaf in forgettable(self.map):
            self._install(leaves={name: each for name, each in self.map.leaves.items() if name != leaf})
            self.up.discard(leaf)
        return plan

    def _check(self, desired: tuple[str, ...]) -> None:
        assert 1 <= len(desired) == len(set(desired)) <= self.map.replicas
        keepers = [leaf.id for leaf in self.map.leaves.values() if leaf.may_hold and leaf.id in self.up]
        assert len(desired) >= min(self.map.replicas, len(keepers))
        assert all(self.map.leaves[leaf].may_hold for leaf in desired)

    def _changing(self) -> set[int]:
        return {shard.id for shard in self.map.shards.values() if is_changing(Look(self.map, frozenset(self.up)), shard)}

    def receiving(self) -> dict[str, int]:
        count = dict.fromkeys(self.map.leaves, 0)
        for shard in self.map.shards.values():
            for leaf in shard.desired:
                count[leaf] += leaf in self.up and leaf not in self.living(shard.id) and bool(self.living(shard.id))
        return count

    def work(self) -> None:
        """One step of every primary that lives, in the order of `leaf/replication/membership.py`."""
        for config in list(self.map.shards.values()):
            living = tuple(each for each in config.in_sync if each.leaf in self.up)
            if not living:
                continue
            primary = config.primary if config.primary in self.up else living[0].leaf
            wanted = [leaf for leaf in config.desired if leaf in self.up and leaf not in self.living(config.id)]
            if wanted:
                living += (Replica(wanted[0], "i"),)
                self.copies += 1
            elif config.desired and config.desired[0] != primary and config.desired[0] in self.living(config.id):
                primary = config.desired[0]
                self.handovers += 1
            elif set(config.desired) <= self.living(config.id):
                living = tuple(each for each in living if each.leaf in config.desired)
            self.put_shard(replace(config, epoch=config.epoch + 1, primary=primary, in_sync=living))

    def settle(self, rounds_max: int = 400) -> int:
        """Let balancer and primaries work until nothing changes. Returns the rounds that took."""
        for done in range(rounds_max):
            before = self.map
            self.look()
            assert max(self.receiving().values()) <= RECEIVING_MAX or self.copies == 0 or self.is_returning, repr(self)
            self.work()
            same = {s.id: (s.primary, s.in_sync, s.desired) for s in before.shards.values()}
            if same == {s.id: (s.primary, s.in_sync, s.desired) for s in self.map.shards.values()}:
                assert not self.rebalancer.decide(self.map, self.up, self.now).desired
                return done
        raise AssertionError(f"not settled after {rounds_max} rounds: {self!r}")

    is_returning = False
    """A leaf has come back whose places were kept: it catches up with all of its shards at a time."""
