"""The vectors of one field of one index, in memory, and the nearest of them to a given one.

The index is where they live: each document stores its vector, so they follow the log, are rebuilt, merged, forked and dropped
with the documents. A search needs them side by side, so those that the snapshot at hand holds are read once and kept as rows of
a matrix, recognised by the number that stands for key and vector together (`index_fields.vector_id`). Which documents count, a
query of the index decides: what is deleted, expired, filtered out or beyond a split is not among its matches.

All are compared (exact search): 100,000 vectors of 384 components take 20 ms of one core. What a product of matrices yields
depends in its last bits on where a row lies, so those that may be among the nearest are compared anew one by one, with sums
that are rounded once: every replica scores alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import fsum, sqrt
from operator import mul
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple

import tantivy
from tantivy import Occur, Query

from kvshard.vectors import COSINE, L2, VectorType
from leaf.index_fields import KEY, key_bytes, vector_id, vector_stored

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

READ_CHUNK: Final = 512
"""Vectors read between two looks at whether the search is still wanted: some 4 ms."""

ROWS_FIRST: Final = 256
"""Rows of a new matrix; it doubles when it is full."""

KEPT_FACTOR: Final = 2
"""Rows are kept until they are this many times those that count: then the others are dropped."""

TOLERANCE: Final = 1e-5
"""Of a product's size: what 32-bit sums of VECTOR_MAX_DIM products may be off by, and more."""


class Near(NamedTuple):
    """A document near the vector."""

    key: bytes
    score: float


@dataclass(slots=True)
class _Rows:
    """The rows that are held; of: id -> row, keys: by row. Rows are only ever added, behind the others: a search that is at
    work with them does not mind. When the arrays are full, or most rows dead, others take their place.
    """

    of: dict[int, int]
    matrix: "NDArray[np.float32]"
    sizes: "NDArray[np.float32]"
    keys: list[bytes]


class VectorRows:
    """Used by the threads that search one index."""

    def __init__(self, name: str, vector_type: VectorType) -> None:
        self._name = name
        self._type = vector_type
        self._lock = Lock()
        self._rows: _Rows | None = None

    def __repr__(self) -> str:
        return f"VectorRows({self._name}, {0 if self._rows is None else len(self._rows.of)} rows)"

    def nearest(
        self, searcher: tantivy.Searcher, among: Query, vector: Sequence[float], limit: int, check: Callable[[], object]
    ) -> tuple[list[Near], int]:
        """The `limit` nearest of the documents that match, nearest first, equal ones by key; and how many have a vector.

        check: called in between; ends the search by raising.
        """
        having = Query.boolean_query([(Occur.Must, among), (Occur.Must, Query.exists_query(vector_id(self._name)))])
        total: int = searcher.search(having, 1).count  # type: ignore[attr-defined]  # missing in tantivy's stubs
        if not total:
            return [], 0
        check()
        addresses = [address for _, address in searcher.search(having, total, count=False).hits]
        ids = self._ids(searcher, addresses)
        check()
        rows = self._with(searcher, ids, addresses, check)
        check()
        return self._first(rows, [rows.of[each] for each in ids], vector, limit), total

    def _with(
        self, searcher: tantivy.Searcher, ids: list[int], addresses: list[tantivy.DocAddress], check: Callable[[], object]
    ) -> _Rows:
        """Rows that hold all of these."""
        with self._lock:
            rows = self._rows
            if rows is None:
                rows = _empty(self._type.dim)
            missing = [(id, address) for id, address in zip(ids, addresses, strict=True) if id not in rows.of]
            if missing:
                live = None
                if len(rows.of) + len(missing) > KEPT_FACTOR * self._count(searcher) + ROWS_FIRST:
                    live = set(self._all_ids(searcher))
                rows = self._read(searcher, rows, missing, live, check)
            self._rows = rows
            return rows

    def _count(self, searcher: tantivy.Searcher) -> int:
        found: int = searcher.search(Query.exists_query(vector_id(self._name)), 1).count  # type: ignore[attr-defined]
        return found

    def _all_ids(self, searcher: tantivy.Searcher) -> list[int]:
        everything = Query.exists_query(vector_id(self._name))
        hits = searcher.search(everything, max(1, self._count(searcher)), count=False).hits
        return self._ids(searcher, [address for _, address in hits])

    def _ids(self, searcher: tantivy.Searcher, addresses: list[tantivy.DocAddress]) -> list[int]:
        ids: list[int] = searcher.fast_field_values(vector_id(self._name), addresses)  # type: ignore[assignment]  # all have one
        return ids

    def _read(
        self,
        searcher: tantivy.Searcher,
        rows: _Rows,
        missing: list[tuple[int, tantivy.DocAddress]],
        live: set[int] | None,
        check: Callable[[], object],
    ) -> _Rows:
        """Rows with the missing ones behind those that are held; live: of those, only these are kept."""
        import numpy as np

        if live is not None or len(rows.keys) + len(missing) > len(rows.matrix):
            rows = _moved(rows, len(missing), live)
        for at, (id, address) in enumerate(missing):
            if at % READ_CHUNK == 0:
                check()
            if id in rows.of:
                continue
            document = searcher.doc(address)
            row = len(rows.keys)
            stored = rows.matrix[row]
            packed = document.get_first(vector_stored(self._name))
            assert isinstance(packed, bytes), "whoever has a number has a vector"
            stored[:] = np.frombuffer(packed, "<f4")
            rows.sizes[row] = _size(stored.tolist())
            rows.keys.append(key_bytes(str(document.get_first(KEY))))
            rows.of[id] = row
        return rows

    def _first(self, rows: _Rows, among: list[int], vector: Sequence[float], limit: int) -> list[Near]:
        import numpy as np

        query = np.asarray(vector, np.float32)
        size = _size(query.tolist())
        places = np.asarray(among)
        sizes = rows.sizes[places]
        products = (rows.matrix[: len(rows.keys)] @ query)[places]
        slack = TOLERANCE * sizes * size
        if self._type.metric == COSINE:
            near, slack = products / sizes, slack / sizes
        elif self._type.metric == L2:
            near, slack = 2 * products - sizes * sizes, 2 * slack + TOLERANCE * sizes * sizes
        else:
            near = products
        if limit < len(near):
            # Whoever may be as near as the one at the limit, by what both may be off.
            least = np.partition(near - slack, len(near) - limit)[len(near) - limit]
            places = places[near + slack >= least]
        exact = [Near(rows.keys[row], self._score(rows.matrix[row].tolist(), query.tolist())) for row in places.tolist()]
        exact.sort(key=lambda each: (-each.score, each.key))
        return exact[:limit]

    def _score(self, stored: list[float], given: list[float]) -> float:
        if self._type.metric == L2:
            return 1 / (1 + fsum((one - other) * (one - other) for one, other in zip(stored, given, strict=True)))
        product = fsum(map(mul, stored, given))
        if self._type.metric != COSINE:
            return product
        return (1 + product / sqrt(fsum(map(mul, stored, stored)) * fsum(map(mul, given, given)))) / 2


def _size(vector: list[float]) -> float:
    return sqrt(fsum(map(mul, vector, vector)))


def _empty(dim: int) -> _Rows:
    import numpy as np

    return _Rows({}, np.empty((0, dim), np.float32), np.empty(0, np.float32), [])


def _moved(rows: _Rows, more: int, live: set[int] | None) -> _Rows:
    """The same in arrays that have room for so many more; live: only these."""
    import numpy as np

    kept = {id: row for id, row in rows.of.items() if live is None or id in live}
    held = list(kept.values())
    room = max(ROWS_FIRST, 2 * len(held), len(held) + more)
    matrix, sizes = np.empty((room, rows.matrix.shape[1]), np.float32), np.empty(room, np.float32)
    matrix[: len(held)], sizes[: len(held)] = rows.matrix[held], rows.sizes[held]
    return _Rows({id: row for row, id in enumerate(kept)}, matrix, sizes, [rows.keys[row] for row in held])
