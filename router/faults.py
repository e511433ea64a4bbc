"""Faults over the whole cluster: one order to many leaves at once, and what becomes of it.

A leaf keeps its faults itself, in memory, and ends them itself; the router only carries orders. An injection is done at all of
the leaves that were named, or is taken back: half of a fault would falsify what is measured under it.
"""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog

from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap
from kvshard.errors import ErrorDetails, KvShardError, LeafNotFound, Unavailable
from kvshard.fault_model import ActiveFaultRecord, FaultOrder, FaultRecord, FaultReport
from kvshard.faults import check_fault
from kvshard.rpc.leaf_client import LeafClient

ORDER_TIMEOUT_S = 1.0
"""A leaf carries an order out in memory; this is as long as a lane takes at most to find out that nobody is there."""

IDS_MAX = 1_000
"""Ids in one order to clear: all the faults that 64 leaves can have."""

_SEED_BITS = 32
"""Of a seed that the router chooses: short enough to be typed again."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault that the leaves now have."""

    leaf: str
    fault: ActiveFaultRecord


@dataclass(frozen=True, slots=True)
class Reports:
    """What the leaves said, by leaf, and the leaves that said nothing."""

    by_leaf: dict[str, FaultReport]
    silent: list[str]

    @property
    def faults(self) -> list[Injected]:
        """All faults, by leaf and age."""
        return [Injected(leaf, fault) for leaf, report in self.by_leaf.items() for fault in report.faults]

    @property
    def cleared(self) -> int:
        """Faults that were ended, each counted at every leaf that had it."""
        return sum(report.cleared for report in self.by_leaf.values())


class FaultOrders:
    """Carries orders to the leaves of a map."""

    def __init__(self, leaves: LeafClient, clock: Clock) -> None:
        self._leaves = leaves
        self._clock = clock

    async def inject(self, cluster_map: ClusterMap, leaves: Sequence[str], fault: FaultRecord) -> list[Injected]:
        """Give leaves (none named: all) a fault, under an id, and a seed if it has none. Returns it as it is in force.

        Raises InvalidArgument, LeafNotFound, FailedPrecondition when a leaf takes no faults, ResourceExhausted when one has too
        many, Unavailable when one does not answer; then no leaf keeps it, as far as they can be reached.
        """
        check_fault(fault)
        seed = fault.seed or 1 + secrets.randbits(_SEED_BITS)
        fault = replace(fault, id=f"{fault.kind}-{secrets.token_hex(4)}", seed=seed)
        wanted = _wanted(cluster_map, leaves)
        outcomes = await self._order(wanted, FaultOrder(inject=fault))
        failed = {leaf: outcome for leaf, outcome in outcomes.items() if isinstance(outcome, KvShardError)}
        if failed:
            # Those that did not answer are asked too: they may have carried it out.
            await self._order(wanted, FaultOrder(clear=True, ids=[fault.id]))
            leaf, error = min(failed.items(), key=lambda item: (item[1].is_retryable, item[0]))
            raise type(error)(f"leaf {leaf}: {error.message}", replace(error.details, replicas_tried=tuple(sorted(failed))))
        found = [each for each in _reports(outcomes).faults if each.fault.fault.id == fault.id]
        _log.warning("fault injected", fault=fault, leaves=wanted)
        return found

    async def clear(self, cluster_map: ClusterMap, leaves: Sequence[str], ids: Sequence[str]) -> Reports:
        """End faults (none named: all) at leaves (none named: all). Raises LeafNotFound."""
        return _reports(await self._order(_wanted(cluster_map, leaves), FaultOrder(clear=True, ids=list(ids))))

    async def list(self, cluster_map: ClusterMap) -> Reports:
        """All faults in force."""
        return _reports(await self._order(_wanted(cluster_map, ()), FaultOrder()))

    async def _order(self, leaves: Sequence[str], order: FaultOrder) -> dict[str, FaultReport | KvShardError]:
        deadline = self._clock.monotonic() + ORDER_TIMEOUT_S
        outcomes = await asyncio.gather(*(self._outcome(leaf, order, deadline) for leaf in leaves))
        return dict(zip(leaves, outcomes, strict=True))

    async def _outcome(self, leaf: str, order: FaultOrder, deadline: float) -> FaultReport | KvShardError:
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock.monotonic())):
                return await self._leaves.order_faults(leaf, order, deadline)
        except TimeoutError:
            return Unavailable("it did not answer in time")
        except KvShardError as error:
            return error


def _wanted(cluster_map: ClusterMap, leaves: Sequence[str]) -> list[str]:
    """The leaves that an order is for; those that were removed get none unless they are named."""
    for leaf in leaves:
        if leaf not in cluster_map.leaves:
            raise LeafNotFound(f"there is no leaf {leaf!r}", ErrorDetails(field="leaves"))
    present = (leaf.id for leaf in cluster_map.leaves.values() if not leaf.is_removed)
    return sorted(set(leaves or present))


def _reports(outcomes: dict[str, FaultReport | KvShardError]) -> Reports:
    by_leaf = {leaf: outcome for leaf, outcome in outcomes.items() if isinstance(outcome, FaultReport)}
    return Reports(by_leaf, [leaf for leaf in outcomes if leaf not in by_leaf])
