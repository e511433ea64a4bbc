"""What was read of keys lately, in front of the engine: two generations of dicts, bounded by bytes.

A key that is found, or was just read from the engine, stands in the young generation. When that is full it becomes the old one,
and what the old one still held, not asked for during a whole generation, is dropped. A hit costs two lookups in dicts that
hold nothing but bytes and numbers, so the garbage collector does not look through them either.

The cache never differs from the engine. Its owner (`shard_store.py`) tells every write once it is in the engine, and has a
shard, or a collection of it, forgotten whenever its rows change in another way: a drop, a split, a snapshot, a wipe.

What is dropped is freed in pieces, twice as much as is added: the hundred thousand keys of a generation freed at once held the
event loop for 6 ms at best.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Final, NamedTuple, TypeAlias, cast

from kvshard.model import ABSENT, NEVER

CACHE_BYTES: Final = 64 * 1024 * 1024
"""Of one leaf, by default: 100,000 to 200,000 keys with values of 100 bytes. Of a million keys these took 80 % of the reads
where few are asked for most (zipfian, 0.99; n = 375,000). A leaf of a million keys takes 237 MiB with it."""

ENTRY_BYTES: Final = 200
"""What a key takes besides its own bytes and its value's: their two objects, its version, its places in two dicts."""

SWEEP_FACTOR: Final = 2
"""So many times what is added is freed of what was dropped: gone when the young generation is half full."""

Place: TypeAlias = tuple[int, int]
"""(shard, collection_id)."""


class Found(NamedTuple):
    """Columns parallel to the keys that were looked up; None and ABSENT for those that are not in the cache.

    expiries: index -> expires_at_ms of the keys among them that expire, which may be in the past.
    """

    values: list[bytes | None]
    versions: list[int]
    expiries: dict[int, int]


class _Table:
    """The keys of one collection of one shard in one generation. bytes: what they count; never less than what they take."""

    __slots__ = ("bytes", "expiries", "values", "versions")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.versions: dict[bytes, int] = {}
        self.expiries: dict[bytes, int] = {}
        self.bytes = 0

    def remove(self, key: bytes) -> int:
        """Take a key out, if it is there. Returns what it counted."""
        value = self.values.pop(key, None)
        if value is None:
            return 0
        del self.versions[key]
        if self.expiries:
            self.expiries.pop(key, None)
        size = ENTRY_BYTES + len(key) + len(value)
        self.bytes -= size
        return size

    def shrink(self, size: int) -> int:
        """Free keys that count so much, if there are so many. Returns what was freed."""
        values, versions, freed = self.values, self.versions, 0
        while freed < size and values:
            key, value = values.popitem()
            versions.popitem()
            freed += ENTRY_BYTES + len(key) + len(value)
        if not values:
            freed = self.bytes
            self.expiries.clear()
        self.bytes -= freed
        return freed


class _Generation:
    """Tables by place. bytes: what all of them count."""

    __slots__ = ("bytes", "tables")

    def __init__(self) -> None:
        self.tables: dict[Place, _Table] = {}
        self.bytes = 0


class KeyCache:
    """The cache of one leaf. max_bytes: what all keys in it may count; 0: nothing is kept. Used on the event loop only.

    Invariants: a key is in one generation at most; neither counts more than half of max_bytes, and both together, with what was
    dropped and is not freed yet, no more than max_bytes.

    hits, misses: keys asked for by reads that were in the cache, or not. turns: how often a generation was dropped.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        assert max_bytes >= 0
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0
        self.turns = 0
        self._half = max_bytes // 2
        self._young = _Generation()
        self._old = _Generation()
        self._dropped: list[_Table] = []
        self._dropped_bytes = 0

    def __repr__(self) -> str:
        return (
            f"KeyCache({len(self)} keys, bytes={self.size_bytes}, hits={self.hits}, misses={self.misses}, turns={self.turns})"
        )

    def __len__(self) -> int:
        return sum(len(table.values) for each in (self._young, self._old) for table in list(each.tables.values()))

    @property
    def size_bytes(self) -> int:
        """What the cache counts now, with what is still to be freed."""
        return self._young.bytes + self._old.bytes + self._dropped_bytes

    def has_any(self, shard: int, collection_id: int, keys: Sequence[bytes]) -> bool:
        """Whether one of these keys is in the cache. Much cheaper than a look, and it does not count as use."""
        place = (shard, collection_id)
        tables = [each.tables[place] for each in (self._young, self._old) if place in each.tables]
        return any(not table.values.keys().isdisjoint(keys) for table in tables)

    def find_all(
        self, shard: int, collection_id: int, keys: Sequence[bytes], max_bytes: int = 0
    ) -> tuple[list[bytes | None], list[int]] | None:
        """(values, versions), parallel to the keys, where every one of them was read lately and none there expires; None: look
        them up. The common case of a read, in a third of the time of `look_up`. Those found count as used, and as hits.

        max_bytes: None also where the values have more than that; 0: they may have any.
        """
        table = self._young.tables.get((shard, collection_id))
        if table is None or table.expiries:
            return None
        try:
            values: list[bytes | None] = list(map(table.values.__getitem__, keys))
        except KeyError:
            return None
        if max_bytes and sum(map(len, cast(list[bytes], values))) > max_bytes:
            return None
        self.hits += len(values)
        return values, list(map(table.versions.__getitem__, keys))

    def look_up(self, shard: int, collection_id: int, keys: Sequence[bytes]) -> Found:
        """What the cache has of these keys. Those that are found count as used."""
        young = self._young.tables.get((shard, collection_id))
        if young is None:
            found = Found([None] * len(keys), [ABSENT] * len(keys), {})
        else:
            versions = list(map(young.versions.get, keys, repeat(ABSENT)))
            found = Found(list(map(young.values.get, keys)), versions, {})
            if young.expiries:
                column = map(young.expiries.get, keys, repeat(NEVER))
                found.expiries.update((index, instant) for index, instant in enumerate(column) if instant != NEVER)
        if not all(found.values) and (shard, collection_id) in self._old.tables:  # An empty value is only looked at twice.
            self._promote(shard, collection_id, keys, found)
        return found

    def _promote(self, shard: int, collection_id: int, keys: Sequence[bytes], found: Found) -> None:
        """Fill in what the old generation has, and move it into the young one."""
        old = self._old.tables[shard, collection_id]
        values, versions, expiries = found
        moved: dict[bytes, bytes] = {}
        moved_versions: list[int] = []
        expiring: dict[bytes, int] = {}
        for index, value in enumerate(values):
            key = keys[index]
            if value is not None or key not in old.values:
                continue
            values[index] = moved[key] = old.values[key]
            versions[index] = old.versions[key]
            moved_versions.append(versions[index])
            if key in old.expiries:
                expiries[index] = expiring[key] = old.expiries[key]
            self._old.bytes -= old.remove(key)
        if not moved:
            return
        for index, key in enumerate(keys):
            if values[index] is None and key in moved:  # It was asked for twice.
                values[index], versions[index] = moved[key], versions[keys.index(key)]
                if key in expiring:
                    expiries[index] = expiring[key]
        self.fill(shard, collection_id, list(moved), list(moved.values()), moved_versions, expiring.items())

    def fill(
        self,
        shard: int,
        collection_id: int,
        keys: Sequence[bytes],
        values: Sequence[bytes],
        versions: Sequence[int],
        expiries: Iterable[tuple[bytes, int]] = (),
    ) -> None:
        """Take in what the engine holds now of keys that a look just did not find. expiries: (key, expires_at_ms) of some.

        Not more than fits into a generation: so much will hardly be asked for again.
        """
        size = ENTRY_BYTES * len(keys) + sum(map(len, keys)) + sum(map(len, values))
        if not keys or size > self._half:
            return
        table = self._room_for((shard, collection_id), size)
        table.values.update(zip(keys, values, strict=True))
        table.versions.update(zip(keys, versions, strict=True))
        table.expiries.update(expiries)

    def note_write(
        self,
        shard: int,
        collection_id: int,
        keys: Sequence[bytes],
        values: Sequence[bytes | None],
        version: int,
        expiries: Sequence[int],
        max_value_bytes: int,
    ) -> None:
        """The engine holds these values now, with this version; None: the key is gone. expiries: parallel, or empty.

        Keys that are in the cache are kept up to date; others do not come into it, for what is loaded is seldom read at once.
        Values longer than max_value_bytes are not kept.
        """
        if not self.has_any(shard, collection_id, keys):
            return
        place = (shard, collection_id)
        young, old = self._young.tables.get(place), self._old.tables.get(place)
        in_young = young.values if young is not None else {}
        in_old = old.values if old is not None else {}
        for index in [index for index, key in enumerate(keys) if key in in_young or key in in_old]:
            key, value = keys[index], values[index]
            self._remove(place, key)
            if value is not None and len(value) <= max_value_bytes:
                self._insert(place, key, value, version, expiries[index] if expiries else NEVER)

    def forget_shard(self, shard: int) -> None:
        """Rows of the shard have changed, or are gone."""
        for each in (self._young, self._old):
            for place in [place for place in each.tables if place[0] == shard]:
                self._drop(each, place)

    def forget_collection(self, shard: int, collection_id: int) -> None:
        """The collection's rows in this shard are gone."""
        for each in (self._young, self._old):
            if (shard, collection_id) in each.tables:
                self._drop(each, (shard, collection_id))

    def _insert(self, place: Place, key: bytes, value: bytes, version: int, expires_at_ms: int) -> None:
        """Add a key that is in neither generation."""
        size = ENTRY_BYTES + len(key) + len(value)
        if size > self._half:
            return
        table = self._room_for(place, size)
        table.values[key] = value
        table.versions[key] = version
        if expires_at_ms != NEVER:
            table.expiries[key] = expires_at_ms

    def _remove(self, place: Place, key: bytes) -> None:
        for each in (self._young, self._old):
            table = each.tables.get(place)
            if table is not None:
                each.bytes -= table.remove(key)

    def _room_for(self, place: Place, size: int) -> _Table:
        """The young generation's table of a place, which is about to take so much more. Frees some of what was dropped."""
        if self._young.bytes + size > self._half:
            for each in list(self._old.tables):
                self._drop(self._old, each)
            self._old, self._young = self._young, _Generation()
            self.turns += 1
        if self._dropped:
            self._sweep(SWEEP_FACTOR * size)
        table = self._young.tables.get(place)
        if table is None:
            table = self._young.tables[place] = _Table()
        table.bytes += size
        self._young.bytes += size
        return table

    def _drop(self, generation: _Generation, place: Place) -> None:
        table = generation.tables.pop(place)
        generation.bytes -= table.bytes
        self._dropped.append(table)
        self._dropped_bytes += table.bytes

    def _sweep(self, size: int) -> None:
        while size > 0 and self._dropped:
            table = self._dropped[-1]
            freed = table.shrink(size)
            self._dropped_bytes -= freed
            size -= freed
            if not table.values:
                self._dropped.pop()

    def check_invariants(self) -> None:
        """Raise AssertionError unless the invariants of the class hold."""
        for each in (self._young, self._old):
            assert each.bytes == sum(table.bytes for table in each.tables.values()), repr(self)
            assert each.bytes <= self._half, repr(self)
            for table in each.tables.values():
                assert table.values.keys() == table.versions.keys() >= table.expiries.keys(), repr(self)
                held = sum(ENTRY_BYTES + len(key) + len(value) for key, value in table.values.items())
                assert held <= table.bytes, repr(self)
        for place, table in self._young.tables.items():
            other = self._old.tables.get(place)
            assert other is None or table.values.keys().isdisjoint(other.values), repr(self)
        assert self._dropped_bytes == sum(table.bytes for table in self._dropped), repr(self)
        assert self.size_bytes <= self.max_bytes, repr(self)
