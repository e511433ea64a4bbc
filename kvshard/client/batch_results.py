"""Results of batches: columns as they came, from which items are made when somebody looks at them.

Nothing here does anything: no grpc, no asyncio.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar, cast, overload

from kvshard.client.results import Coverage, Item, K, ReadState, Timing, V
from kvshard.errors import KvShardError, ResourceExhausted

ResultT = TypeVar("ResultT")


class ReadColumns(Generic[V]):
    """What was read, in columns parallel to the keys. values: None where a key is absent or failed. versions: 0 likewise.

    expires_at_ms is empty when no key expires. failures: by index, ascending.
    """

    __slots__ = ("expires_at_ms", "failures", "values", "versions")

    def __init__(
        self,
        values: list[V | None],
        versions: list[int],
        expires_at_ms: list[int],
        failures: dict[int, KvShardError],
    ) -> None:
        self.values = values
        self.versions = versions
        self.expires_at_ms = expires_at_ms
        self.failures = failures

    def left_over(self) -> list[int]:
        """The keys for which the answer had no room: they are there to be asked for again, fewer at once."""
        return [
            index
            for index, error in self.failures.items()
            if isinstance(error, ResourceExhausted) and error.details.limit and error.details.retry_after_ms is None
        ]

    def fill(self, places: Sequence[int], more: "ReadColumns[V]") -> None:
        """Put what was left over, and was asked for again, at these places."""
        if more.expires_at_ms and not self.expires_at_ms:
            self.expires_at_ms = [0] * len(self.values)
        for at, place in enumerate(places):
            self.values[place] = more.values[at]
            self.versions[place] = more.versions[at]
            if more.expires_at_ms:
                self.expires_at_ms[place] = more.expires_at_ms[at]
            del self.failures[place]
        self.failures.update((places[at], error) for at, error in more.failures.items())
        self.failures = dict(sorted(self.failures.items()))

    def add(self, more: "ReadColumns[V]") -> None:
        """Put another part behind this one."""
        count, others = len(self.values), len(more.values)
        if self.expires_at_ms or more.expires_at_ms:
            self.expires_at_ms = (self.expires_at_ms or [0] * count) + (more.expires_at_ms or [0] * others)
        self.values += more.values
        self.versions += more.versions
        self.failures.update((count + index, error) for index, error in more.failures.items())


class GetResults(Sequence["Item[K, V] | KvShardError | None"], Generic[K, V]):
    """Results of get_many in the order of the keys: the item, None where the key is absent, or why it could not be read.

    An immutable sequence, equal to any list or tuple of equal entries; a slice of it is a list. An item is made whenever it is
    asked for; `values()` costs none. coverage: how much answered. timing: present when explain_timing was set. states: of a
    stale read, by shard.
    """

    __slots__ = ("_columns", "_decode_key", "_keys", "coverage", "states", "timing")

    def __init__(
        self,
        keys: Sequence[bytes],
        columns: ReadColumns[V],
        decode_key: Callable[[bytes], K],
        coverage: Coverage,
        timing: Timing | None = None,
        states: tuple[ReadState, ...] = (),
    ) -> None:
        self._keys = keys
        self._columns = columns
        self._decode_key = decode_key
        self.coverage = coverage
        self.timing = timing
        self.states = states

    def values(self) -> list[V | None]:
        """The bare values in the order of the keys, None where one is absent. Raises the first failure, if there is one: a
        value that could not be read must not look like one that is not there."""
        self.raise_for_failures()
        return list(self._columns.values)

    def raise_for_failures(self) -> None:
        """Raise the first failure; do nothing when there is none."""
        failures = self._columns.failures
        if failures:
            raise failures[min(failures)]

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> "Item[K, V] | KvShardError | None": ...

    @overload
    def __getitem__(self, index: slice) -> "list[Item[K, V] | KvShardError | None]": ...

    def __getitem__(self, index: int | slice) -> "Item[K, V] | KvShardError | list[Item[K, V] | KvShardError | None] | None":
        if isinstance(index, slice):
            return self._entries(range(*index.indices(len(self._keys))))
        place = range(len(self._keys))[index]
        return self._entries((place,))[0]

    def __iter__(self) -> "Iterator[Item[K, V] | KvShardError | None]":
        return iter(self._entries(range(len(self._keys))))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (GetResults, list, tuple)):
            return NotImplemented
        return len(self) == len(other) and list(self) == list(other)

    def __repr__(self) -> str:
        columns = self._columns
        found = len(columns.versions) - columns.versions.count(0)
        return f"GetResults({len(self)} keys, {found} found, {len(columns.failures)} failed)"

    def _entries(self, places: Iterable[int]) -> "list[Item[K, V] | KvShardError | None]":
        columns, keys, decode = self._columns, self._keys, self._decode_key
        values, versions, expires_at_ms = columns.values, columns.versions, columns.expires_at_ms
        entries: list[Item[K, V] | KvShardError | None] = [
            Item(decode(keys[at]), cast(V, values[at]), versions[at], expires_at_ms[at] if expires_at_ms else 0)
            if versions[at]
            else columns.failures.get(at)
            for at in places
        ]
        return entries


class BatchResults(Mapping[K, ResultT | KvShardError], Generic[K, ResultT]):
    """Results of a batch by key, each a result or the error in its place. Where a key occurred twice, its last result stands.

    outcomes: the results in the order of the request, one an operation.
    """

    __slots__ = ("_by_key", "_decode_key", "_wire_keys", "outcomes")

    def __init__(
        self, keys: Sequence[bytes], outcomes: Sequence[ResultT | KvShardError], decode_key: Callable[[bytes], K]
    ) -> None:
        self._wire_keys = keys
        self._decode_key = decode_key
        self.outcomes = outcomes
        self._by_key: dict[K, ResultT | KvShardError] | None = None

    @property
    def _keys(self) -> Iterator[K]:
        return map(self._decode_key, self._wire_keys)

    def _index(self) -> dict[K, ResultT | KvShardError]:
        if self._by_key is None:
            self._by_key = dict(zip(self._keys, self.outcomes, strict=True))
        return self._by_key

    def __getitem__(self, key: K) -> ResultT | KvShardError:
        return self._index()[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._index())

    def __len__(self) -> int:
        return len(self._index())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.outcomes)} operations, {len(self.failures)} failed)"

    @property
    def ok(self) -> bool:
        """True when every operation took effect."""
        return not any(isinstance(outcome, KvShardError) for outcome in self.outcomes)

    @property
    def failures(self) -> dict[K, KvShardError]:
        """The keys that failed, with the reason."""
        return {
            key: outcome for key, outcome in zip(self._keys, self.outcomes, strict=True) if isinstance(outcome, KvShardError)
        }

    def raise_for_failures(self) -> None:
        """Raise the first failure, in a text that counts them all; do nothing when there is none."""
        failures = self.failures
        if failures:
            key, first = next(iter(failures.items()))
            text = f"{len(failures)} of {len(self.outcomes)} operations failed; the first, {key!r}: {first.message}"
            raise type(first)(text, first.details)


class PutResults(BatchResults[K, int]):
    """Results of put_many: the new version of each key, or the error."""

    __slots__ = ()


class DeleteResults(BatchResults[K, bool]):
    """Results of delete_many: whether each key was there, or the error."""

    __slots__ = ()
