"""Which leaves a client can reach itself, and which shards it had better leave to a router for a while.

That a leaf has an address in the map does not mean that it can be reached from here: it may be the address of another network.
So no request goes to a leaf that has not answered a ping, and one that cannot be reached any more is pinged until it answers:

    untried    named by the map, or moved to another address: pinged at once, then ever less often
    reached    it has answered; whether it is stalled or gone for a moment is `kvshard.tail.replica_health`'s business
    lost       reached once, and out of reach for LOST_S: as untried

A shard of which a request failed although its leaves could be reached (a map that is behind, a failover, a leaf of another
version) is left to a router for a moment that doubles as long as the failures go on: a setback.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import inf

FIRST_PING_PAUSE_S = 0.25
LONGEST_PING_PAUSE_S = 15.0
"""Between two pings of a leaf that does not answer, doubled from the first to the longest: a client in another network, where
none ever will, dials each leaf four times a minute, and one whose network heals goes direct again within that time."""

PINGS_MAX = 8
"""Pings under way at once: a dial that nobody answers takes a second, and a map may name a thousand leaves."""

LOST_S = 5.0
"""A leaf out of reach for longer than a restart takes. Until then it is pinged ten times a second, and found at once."""

FIRST_SETBACK_S = 0.25
LONGEST_SETBACK_S = 8.0
"""How long a shard is left to a router, doubled with each failure that follows: a failover is over after one or two of them,
and one that goes on failing for good costs a request every eight seconds the detour of a failed try."""

FORGIVEN_AFTER = 2.0
"""Of its length: a shard that has worked for so long after a setback begins again with the shortest one."""


@dataclass(slots=True)
class _Ping:
    """When an untried or lost leaf is pinged next. pause_s: before the ping after that one."""

    next_at: float
    pause_s: float = FIRST_PING_PAUSE_S
    is_under_way: bool = False


class Reach:
    """The leaves that hold something, as they can be reached from here.

    Invariant (`check_invariants`): each leaf with an address is reached or pinged, never both; at most PINGS_MAX pings are
    under way. A leaf without an address, which has never been up, is neither.
    """

    def __init__(self) -> None:
        self._addresses: dict[str, str] = {}
        self._reached: set[str] = set()
        self._pings: dict[str, _Ping] = {}
        self._out_since: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Reach(reached={sorted(self._reached)}, pinged={sorted(self._pings)})"

    def install(self, addresses: Mapping[str, str], now: float) -> None:
        """The map names these leaves (with their addresses, empty where there is none) and no others."""
        moved = [leaf for leaf, address in self._addresses.items() if addresses.get(leaf) != address]
        for leaf in moved:
            self._reached.discard(leaf)
            self._pings.pop(leaf, None)
            self._out_since.pop(leaf, None)
        self._addresses = dict(addresses)
        for leaf, address in addresses.items():
            if address and leaf not in self._reached and leaf not in self._pings:
                self._pings[leaf] = _Ping(now)

    @property
    def leaves(self) -> Collection[str]:
        """The leaves that the map names."""
        return self._addresses.keys()

    @property
    def is_whole(self) -> bool:
        """Every leaf of the map has been reached; that there is none counts as not."""
        return 0 < len(self._addresses) == len(self._reached)

    @property
    def has_any(self) -> bool:
        """Some leaf has been reached."""
        return bool(self._reached)

    def has(self, leaf: str) -> bool:
        """Whether the leaf has been reached, and is not lost."""
        return leaf in self._reached

    def due(self, now: float) -> list[tuple[str, str]]:
        """The leaves to ping now, with their addresses, those that wait longest first; each is under way from now on."""
        waiting = [leaf for leaf, ping in self._pings.items() if not ping.is_under_way and ping.next_at <= now]
        waiting.sort(key=lambda leaf: self._pings[leaf].next_at)
        chosen = waiting[: PINGS_MAX - self._under_way]
        for leaf in chosen:
            self._pings[leaf].is_under_way = True
        return [(leaf, self._addresses[leaf]) for leaf in chosen]

    @property
    def next_at(self) -> float:
        """When the next ping is due; infinity: none is before another one has ended."""
        if self._under_way >= PINGS_MAX:
            return inf
        return min((ping.next_at for ping in self._pings.values() if not ping.is_under_way), default=inf)

    @property
    def _under_way(self) -> int:
        return sum(ping.is_under_way for ping in self._pings.values())

    def answered(self, leaf: str, address: str) -> bool:
        """A ping was answered. False when the map has another address by now: then that says nothing."""
        if self._addresses.get(leaf) != address or leaf not in self._pings:
            return False
        del self._pings[leaf]
        self._reached.add(leaf)
        return True

    def silent(self, leaf: str, address: str, now: float, share: float) -> bool:
        """A ping was not answered. share: by chance, 0 to 1, spreads the pings of many clients. False: as in `answered`."""
        ping = self._pings.get(leaf)
        if ping is None or self._addresses.get(leaf) != address:
            return False
        ping.is_under_way = False
        ping.next_at = now + ping.pause_s * (1 - share / 2)
        ping.pause_s = min(LONGEST_PING_PAUSE_S, 2 * ping.pause_s)
        return True

    def look(self, unreachable: Collection[str], now: float) -> None:
        """These of the leaves could not be reached lately; the others could."""
        self._out_since = {leaf: self._out_since.get(leaf, now) for leaf in self._reached if leaf in unreachable}
        for leaf, since in list(self._out_since.items()):
            if now - since >= LOST_S:
                del self._out_since[leaf]
                self._reached.discard(leaf)
                self._pings[leaf] = _Ping(now)

    def check_invariants(self) -> None:
        """Raise AssertionError unless the invariant of the class holds."""
        with_address = {leaf for leaf, address in self._addresses.items() if address}
        assert not self._reached & self._pings.keys(), self
        assert self._reached | self._pings.keys() == with_address, self
        assert self._out_since.keys() <= self._reached, self
        assert self._under_way <= PINGS_MAX, self


@dataclass(slots=True)
class _Setback:
    until: float
    length_s: float


class Setbacks:
    """The shards that are left to a router for a while. At most one entry a shard of the map."""

    def __init__(self) -> None:
        self._shards: dict[int, _Setback] = {}

    def __repr__(self) -> str:
        return f"Setbacks({self._shards})"

    @property
    def is_empty(self) -> bool:
        """Nothing has failed of late."""
        return not self._shards

    def note(self, shards: Iterable[int], now: float) -> None:
        """Requests to these shards have failed. Failures while one is left alone already are of the same cause: no news."""
        for shard in shards:
            held = self._shards.get(shard)
            if held is None:
                self._shards[shard] = _Setback(now + FIRST_SETBACK_S, FIRST_SETBACK_S)
            elif now >= held.until:
                held.length_s = min(LONGEST_SETBACK_S, 2 * held.length_s)
                held.until = now + held.length_s

    def has(self, shard: int, now: float) -> bool:
        """Whether the shard is left to a router now."""
        held = self._shards.get(shard)
        return held is not None and now < held.until

    def now(self, now: float) -> list[int]:
        """The shards that are left to a router now, in order."""
        return sorted(shard for shard, held in self._shards.items() if now < held.until)

    def forgive(self, now: float) -> None:
        """Forget those that were long ago."""
        self._shards = {
            shard: held for shard, held in self._shards.items() if now < held.until + FORGIVEN_AFTER * held.length_s
        }
