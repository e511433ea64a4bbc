"""Two lanes to one address: a big answer on the one does not hold up the small ones on the other."""

import asyncio
import random

from kvshard.clock import Clock
from kvshard.errors import KvShardError, Unimplemented
from kvshard.rpc.lane import Lane
from kvshard.rpc.lane_session import LateAnswers


class LanePair:
    """`small` and `bulk`: lanes with a connection of their own each, opened on first use. Parameters: as those of `Lane`.

    Which frame goes where is up to the caller; `lane_choice.py` has the rule for leaves.
    """

    def __init__(
        self,
        address: str,
        clock: Clock,
        *,
        peer: str = "",
        rng: random.Random | None = None,
        late: LateAnswers | None = None,
        is_internal: bool = False,
        no_lanes: type[KvShardError] = Unimplemented,
        leaf_mark: str = "",
    ) -> None:
        self.address = address
        rng, late = rng or random.Random(), late or LateAnswers()
        self.small, self.bulk = (
            Lane(
                address,
                clock,
                peer=peer,
                rng=rng,
                late=late,
                is_internal=is_internal,
                no_lanes=no_lanes,
                leaf_mark=leaf_mark,
            )
            for _ in range(2)
        )

    def __repr__(self) -> str:
        return f"LanePair(small={self.small}, bulk={self.bulk})"

    @property
    def outstanding(self) -> int:
        """Requests without an answer."""
        return self.small.outstanding + self.bulk.outstanding

    async def close(self) -> None:
        """Close both connections; outstanding calls fail with Unavailable."""
        await asyncio.gather(self.small.close(), self.bulk.close())
