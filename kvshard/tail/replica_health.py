"""Which leaves gave trouble a moment ago: they are asked last for a while.

Only a stopgap against what is plainly dead or stuck; it knows no load and no latency.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Mapping

from kvshard.errors import KvShardError, NotReady, StaleEpoch, Unavailable

MEMORY_S = 1.0
"""How long a leaf is asked last. Then it gets requests again, of which each costs its caller a failover if it is still dead."""

LEAVES_MAX = 1_024
"""Leaves remembered; more than have trouble at once in the largest cluster."""


class RecentTrouble:
    """Leaves that could not be reached, or did not answer, within the last MEMORY_S. At most LEAVES_MAX of them."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"RecentTrouble({self._until})"

    @property
    def is_empty(self) -> bool:
        """True when nothing is remembered, as is usual."""
        return not self._until

    def note(self, leaf: str, now: float) -> None:
        """The leaf gave trouble."""
        self._until.pop(leaf, None)
        self._until[leaf] = now + MEMORY_S
        if len(self._until) > LEAVES_MAX:
            del self._until[next(iter(self._until))]

    def leaves(self, now: float) -> Mapping[str, float]:
        """The leaves to be asked last."""
        until = self._until
        while until:
            leaf = next(iter(until))
            if until[leaf] > now:
                break
            del until[leaf]
        return until


def is_unreachable(error: KvShardError) -> bool:
    """Whether the error means that the leaf could not be reached. What a leaf says itself about a shard names that shard."""
    return isinstance(error, Unavailable) and not isinstance(error, (StaleEpoch, NotReady)) and not error.details.shards
