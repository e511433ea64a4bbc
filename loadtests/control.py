"""The control arm: this process asks the leaves itself, one leg a request, and somebody else's library hedges.

hedge-python learns the latency per key and sends a second request after a quantile of it, within a budget of its own. Its
transports and its gRPC interceptor would send that second request to the very leaf that is slow; here it may ask another
replica, by its scheduler, which is the best that can be done with it. kvshard's own arm is the router's code, in this process
as well: both have the same way to the leaves.
"""

import random
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from hedge import HedgeConfig
from hedge.transport._base import HedgeScheduler
from prometheus_client import CollectorRegistry

from kvshard.clock import Clock, SystemClock
from kvshard.clustermap import DEFAULT_COLLECTION, ClusterMap
from kvshard.errors import KvShardError
from kvshard.model import ShardRead, ShardReadReply
from kvshard.rpc.lane_client import LaneLeafClient
from kvshard.rpc.leaf_client import Answer
from kvshard.scatter.leg import How
from kvshard.scatter.scatter import Scatter
from kvshard.tail.hedging import ReplicaChoice, parse_policy
from kvshard.telemetry import RouterMetrics
from loadtests.arrivals import Arrival
from loadtests.one_map import OneMap
from loadtests.scenarios import Arm, Control
from loadtests.workloads import Corpus, ReadCall, WrongAnswer

TUNED_PERCENTILE = 0.99
TUNED_BUDGET_PERCENT = 5.0
"""What a user who has read its manual might set; as it comes it hedges at p90, within 10 %."""


Ask = Callable[[list[str], ShardRead, float], Awaitable[Answer[ShardReadReply]]]
"""Asks for a shard's keys: (replicas in a random order, request, deadline)."""


class DirectCaller:
    """Asks the leaves of one cluster map, which must not change meanwhile. Use it as a context manager.

    rate: requests a second, which hedge-python wants to know for its budget.
    """

    def __init__(self, cluster_map: ClusterMap, corpus: Corpus) -> None:
        self.rate = 100.0
        self._map = cluster_map
        self._corpus = corpus
        self._clock: Clock = SystemClock()
        addresses = {leaf.id: leaf.address for leaf in cluster_map.leaves.values()}
        self._leaves = LaneLeafClient(addresses.get, self._clock)
        self._schedulers: dict[Control, HedgeScheduler] = {}
        self._library_hedges = 0
        self._scatter = Scatter(
            OneMap(cluster_map), self._clock, RouterMetrics(CollectorRegistry()), self._leaves.ping, random.Random(1)
        )

    @property
    def hedges(self) -> int:
        """Second requests sent so far, whoever sent them."""
        return self._library_hedges + self._scatter.defences.counters.hedges_sent

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for scheduler in self._schedulers.values():
            await scheduler.close()
        await self._scatter.close()
        await self._leaves.close()

    def call(self, arm: Arm, deadline_s: float) -> ReadCall:
        """Reads one key of a shard under an arm of the control."""
        ask = self._ask_of(arm)

        async def call(arrival: Arrival) -> None:
            rng = random.Random(arrival.seed)
            index = rng.randrange(len(self._corpus.shards))
            key = rng.choice(self._corpus.keys[index]).encode()
            config = self._map.shards[self._corpus.shards[index]]
            order = [replica.leaf for replica in config.in_sync]
            rng.shuffle(order)
            request = ShardRead(config.id, config.epoch, DEFAULT_COLLECTION.id, [key], cuts=config.cuts)
            answer = await ask(order, request, self._clock.monotonic() + deadline_s)
            if answer.reply.values == [None] or answer.reply.errors:
                raise WrongAnswer(f"a key that was written is not there: {key!r}, {answer.reply.errors}")

        return call

    def _ask_of(self, arm: Arm) -> Ask:
        if arm.control is Control.NOTHING:
            return self._plain
        if arm.control is Control.KVSHARD:
            return self._by_kvshard(arm)
        assert arm.control is not None, "an arm of the control"
        return self._by_library(arm.control)

    def _by_kvshard(self, arm: Arm) -> Ask:
        how = How(ReplicaChoice(arm.replica_choice), hedge=parse_policy(arm.hedge))

        async def ask(_: list[str], request: ShardRead, deadline: float) -> Answer[ShardReadReply]:
            result = await self._scatter.ask("Get", self._leaves.read, request, deadline, how, self._leaves.start)
            if result.answer is None:
                raise result.error or WrongAnswer("a leg without answer and error")
            return result.answer

        return ask

    async def _plain(self, order: list[str], request: ShardRead, deadline: float) -> Answer[ShardReadReply]:
        return await self._leaves.read(order[0], request, deadline)

    def _by_library(self, control: Control) -> Ask:
        scheduler = self._schedulers.get(control)
        if scheduler is None:
            config = HedgeConfig(estimated_rps=self.rate)
            if control is Control.HEDGE_PYTHON_TUNED:
                config = HedgeConfig(estimated_rps=self.rate, percentile=TUNED_PERCENTILE, budget_percent=TUNED_BUDGET_PERCENT)
            scheduler = self._schedulers[control] = HedgeScheduler(config)

        async def one(leaf: str, request: ShardRead, deadline: float, is_hedge: bool) -> Answer[ShardReadReply] | KvShardError:
            try:
                return await self._leaves.read(leaf, request, deadline, is_hedge)
            except KvShardError as error:
                return error  # It leaves the errors of its losers unread; the winner's is raised below.

        async def ask(order: list[str], request: ShardRead, deadline: float) -> Answer[ShardReadReply]:
            def learn(answer: Answer[ShardReadReply] | KvShardError, seconds: float) -> None:
                if isinstance(answer, Answer):
                    scheduler.sketch_for(order[0]).add(seconds)

            async def hedge() -> Answer[ShardReadReply] | KvShardError:
                self._library_hedges += 1
                return await one(order[1 % len(order)], request, deadline, True)

            # Its own latency is learned per host, as its transports do.
            answer: Answer[ShardReadReply] | KvShardError = await scheduler.execute_with_hedge(
                order[0], lambda: one(order[0], request, deadline, False), hedge, learn
            )
            if isinstance(answer, KvShardError):
                raise answer
            return answer

        return ask
