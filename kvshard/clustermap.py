"""The cluster map: which leaf holds which shard of which token range, and which collections exist.

A map is immutable and has a version; a newer one replaces it whole. Servers never change a map: they write to the coordinator
(`kvshard/coordination/mapstore.py`) and install what the watch brings.

Pure apart from the token hash (`kvshard/hashing.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

TOKEN_SLOTS = 1 << 16
"""Shard boundaries lie on multiples of 2^64 / TOKEN_SLOTS, so that a table of this size finds a token's shard in O(1)."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf. address: host:port, empty while it has never been up."""

    id: str
    address: str = ""
    zone: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica: the leaf, and the random identity of its data (empty until the leaf has created it)."""

    leaf: str
    incarnation: str = ""


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """Where a shard lives. Its token range is [first_slot, last_slot] in token slots, both inclusive.

    epoch: version of the replica set, only grows. desired: where the balancer wants it to live.
    """

    id: int
    first_slot: int
    last_slot: int
    epoch: int
    primary: str
    in_sync: tuple[Replica, ...]
    learners: tuple[Replica, ...] = ()
    desired: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection. schema maps a field's name to its type ("text", "keyword", "integer", "float", "boolean", "date").

    Values of a collection with an empty schema are plain bytes.
    """

    name: str
    id: int
    schema: Mapping[str, str] = field(default_factory=dict)


DEFAULT_COLLECTION = Collection("default", 1)
"""Always exists."""
