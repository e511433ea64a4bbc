"""What a direct client does, as it shows itself: plain immutable data.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from kvshard.tail.status import TailStatus


class Detour(Enum):
    """Why a request went through a router.

    starting: the map is not known yet, or no leaf has answered. unreached: no leaf that might answer can be reached from here.
    setback: one of its shards has just failed. refresh: a write that a search is to see at once: the router that does it sees
    to that. token: a scan that a router began. failed: it was tried at the leaves, without success.
    """

    STARTING = "starting"
    UNREACHED = "unreached"
    SETBACK = "setback"
    REFRESH = "refresh"
    TOKEN = "token"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class DirectLeaf:
    """A leaf that holds something. is_reached: requests go to it from here."""

    leaf: str
    address: str
    is_reached: bool


@dataclass(frozen=True, slots=True)
class DirectStatus:
    """What a direct client does. Counts are of requests since it began: a batch, a frame of single operations, a scan's stream.

    map_version: None before the first map. direct: answered by leaves alone. detours: went through a router, by reason.
    setbacks: the shards that are left to a router for the moment. tail: what is done against slow leaves; None before the map.
    """

    map_version: int | None = None
    leaves: tuple[DirectLeaf, ...] = ()
    direct: int = 0
    detours: Mapping[Detour, int] = field(default_factory=dict)
    setbacks: tuple[int, ...] = ()
    tail: TailStatus | None = None

    @property
    def is_direct(self) -> bool:
        """Whether there are leaves that can be asked from here."""
        return any(leaf.is_reached for leaf in self.leaves)

    @property
    def detoured(self) -> int:
        """Requests that went through a router, for whatever reason."""
        return sum(self.detours.values())
