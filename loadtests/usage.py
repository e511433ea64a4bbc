"""Processor time that was used, as data: of a block, and of several.

Pure: imports only the standard library.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

OTHERS_MAX = 0.10
"""Of the machine, by processes that do not belong to a run: above it their stragglers are mixed with ours."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Parts of all cores together, 0 to 1. client_core: the load client's part of the one core that it can use.

    seconds: over how long. cluster_s, leaves_s: processor seconds of the cluster, and of its leaves, in it.
    """

    seconds: float
    leaves: float
    router: float
    client: float
    others: float
    client_core: float
    cluster_s: float
    leaves_s: float

    @property
    def own(self) -> float:
        """The cluster and the client."""
        return self.leaves + self.router + self.client

    def as_record(self) -> dict[str, float]:
        """Plain data for JSON."""
        return asdict(self)


def mean(usages: Sequence[Usage]) -> Usage:
    """Of several blocks, each as long as it was. Raises ValueError for none."""
    if not usages:
        raise ValueError("no blocks")
    seconds = sum(each.seconds for each in usages)
    names = ("leaves", "router", "client", "others", "client_core")
    parts = {name: sum(getattr(each, name) * each.seconds for each in usages) / seconds for name in names}
    cluster_s, leaves_s = (sum(getattr(each, name) for each in usages) for name in ("cluster_s", "leaves_s"))
    return Usage(seconds=seconds, cluster_s=cluster_s, leaves_s=leaves_s, **parts)
