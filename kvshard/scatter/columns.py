"""The columns of a batch: cut by shard, and put together again in the order of the request.

A batch has up to 10,000 keys, so what is done per key is done by the interpreter's own loops (`map`, `list`), not by steps of
Python: cutting and joining a column cost about 30 ns a key each. A batch that lies in one shard is handed on as it came.

Pure: imports only the standard library.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TypeVar

ItemT = TypeVar("ItemT")


class Division:
    """How the keys of a batch lie among shards. shard_of: each key's, in order. shards: each once, by its first key."""

    __slots__ = ("shard_of", "shards")

    def __init__(self, shard_of: Sequence[int]) -> None:
        self.shard_of = shard_of
        self.shards = list(dict.fromkeys(shard_of))

    def __repr__(self) -> str:
        return f"Division({len(self.shard_of)} keys, shards {self.shards})"

    def split(self, column: Sequence[ItemT]) -> dict[int, Sequence[ItemT]]:
        """Shard -> its part of a column that is parallel to the keys, in order. One shard has the column itself, uncopied."""
        assert len(column) == len(self.shard_of), "a column is parallel to the keys"
        if len(self.shards) == 1:
            return {self.shards[0]: column}
        parts: dict[int, list[ItemT]] = {shard: [] for shard in self.shards}
        # An empty deque takes what the iterator yields (nothing but None) and forgets it, without a step of Python.
        deque(map(list.append, map(parts.__getitem__, self.shard_of), column), maxlen=0)
        return dict(parts)

    def join(self, parts: Mapping[int, Sequence[ItemT]]) -> list[ItemT]:
        """The column that `split` would cut into these parts. Each has as many items as its shard has keys."""
        assert sum(len(parts[shard]) for shard in self.shards) == len(self.shard_of), "parts are parallel to the shards' keys"
        if len(self.shards) == 1:
            return list(parts[self.shards[0]])
        following = {shard: iter(parts[shard]) for shard in self.shards}
        joined = list(map(next, map(following.__getitem__, self.shard_of)))
        # An iterator that ends too early would end the whole column without a word.
        assert len(joined) == len(self.shard_of), "a part is shorter than its shard's keys"
        return joined


def pick(column: Sequence[ItemT], places: Sequence[int]) -> list[ItemT]:
    """The items of a column at these places."""
    return list(map(column.__getitem__, places))
