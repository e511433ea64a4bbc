"""The nearest vectors of an index, compared with looking at all documents."""

from math import fsum, sqrt
from pathlib import Path
from random import Random

import msgspec
import pytest
from tantivy import Query

from kvshard.query import MatchAll, prepare
from kvshard.vectors import COSINE, DOT, L2, METRICS, vector_bytes, vector_of
from leaf.text_index import TextIndex
from leaf.vector_rows import VectorRows

DIM = 5


def schema(metric: str) -> dict[str, str]:
    return {"at": f"vector({DIM},{metric})", "tag": "keyword"}


def score(metric: str, one: list[float], other: list[float]) -> float:
    product = fsum(x * y for x, y in zip(one, other, strict=True))
    if metric == DOT:
        return product
    if metric == L2:
        return 1 / (1 + fsum((x - y) ** 2 for x, y in zip(one, other, strict=True)))
    return (1 + product / sqrt(fsum(x * x for x in one)) / sqrt(fsum(x * x for x in other))) / 2


class Corpus:
    """An index and what is in it."""

    def __init__(self, path: Path, metric: str) -> None:
        self.metric = metric
        self.index = TextIndex.create(path, schema(metric), lambda key: 0)
        self.documents: dict[bytes, tuple[list[float], str]] = {}
        self.seqno = 0

    def put(self, changes: dict[bytes, tuple[list[float], str] | None]) -> None:
        """Documents with (vector, tag), or None: deleted."""
        encoded: dict[bytes, tuple[bytes, int] | None] = {}
        for key, change in changes.items():
            if change is None:
                del self.documents[key]
                encoded[key] = None
            else:
                vector = vector_of(vector_bytes(change[0]))
                self.documents[key] = (vector, change[1])
                encoded[key] = (msgspec.json.encode({"at": vector, "tag": change[1]}), 0)
        self.index.write(encoded)
        self.seqno += 1
        self.index.commit(self.seqno)

    def nearest(self, vector: list[float], limit: int, tag: str = "") -> tuple[list[tuple[bytes, float]], int]:
        filters = [prepare(f"tag:{tag}", self.index.schema)] if tag else []
        among = self.index.compiler.compile(MatchAll(), filters, None)
        found, total = self.index.vectors["at"].nearest(self.index.searcher(), among, vector, limit, lambda: None)
        return [tuple(each) for each in found], total

    def expected(self, vector: list[float], limit: int, tag: str = "") -> list[tuple[bytes, float]]:
        given = vector_of(vector_bytes(vector))
        scored = [(key, score(self.metric, at, given)) for key, (at, its) in self.documents.items() if tag in ("", its)]
        return sorted(scored, key=lambda each: (-each[1], each[0]))[:limit]


def some(rng: Random) -> list[float]:
    return [rng.gauss(0, 1) for _ in range(DIM)]


@pytest.mark.parametrize("metric", METRICS)
def test_the_nearest_as_by_looking_at_all(tmp_path: Path, metric: str) -> None:
    rng = Random(7)
    corpus = Corpus(tmp_path / "index", metric)
    for round_ in range(4):
        changes = {f"{rng.randrange(400)}".encode(): (some(rng), rng.choice("ab")) for _ in range(150)}
        gone = dict.fromkeys(rng.sample(sorted(corpus.documents), len(corpus.documents) // 3))
        corpus.put({**gone, **changes})
        for limit, tag in ((1, ""), (10, ""), (10, "a"), (1_000, "b")):
            vector = some(rng)
            found, total = corpus.nearest(vector, limit, tag)
            wanted = corpus.expected(vector, limit, tag)
            assert [key for key, _ in found] == [key for key, _ in wanted], (metric, round_, limit, tag)
            assert [each for _, each in found] == pytest.approx([each for _, each in wanted])
            assert total == len(corpus.expected(vector, 10_000, tag))


def test_equal_ones_by_key_and_alike_at_every_replica(tmp_path: Path) -> None:
    rng = Random(3)
    vectors = [some(rng) for _ in range(20)]
    one, other = Corpus(tmp_path / "one", COSINE), Corpus(tmp_path / "other", COSINE)
    keys = [f"{n:03}".encode() for n in range(60)]
    one.put({key: (vectors[at % 20], "a") for at, key in enumerate(keys)})
    mixed = sorted(range(60), key=lambda _: rng.random())
    for first in range(0, 60, 15):
        other.put({keys[at]: (vectors[at % 20], "a") for at in mixed[first : first + 15]})
    for vector in vectors:
        assert one.nearest(vector, 9) == other.nearest(vector, 9)
        assert [key for key, _ in one.nearest(vector, 3)[0]] == sorted(key for key, _ in one.nearest(vector, 3)[0])


def test_rows_that_are_dead_are_dropped(tmp_path: Path) -> None:
    rng = Random(5)
    corpus = Corpus(tmp_path / "index", DOT)
    for _ in range(20):
        corpus.put({f"{n}".encode(): (some(rng), "a") for n in range(60)})
        assert corpus.nearest(some(rng), 3)[1] == 60
    rows = corpus.index.vectors["at"]
    assert int(repr(rows).split()[1]) <= 2 * 60 + 256 + 60
    vector = some(rng)
    assert [key for key, _ in corpus.nearest(vector, 5)[0]] == [key for key, _ in corpus.expected(vector, 5)]


def test_nothing_has_a_vector(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path / "index", L2)
    corpus.index.write({b"a": (b'{"tag": "a"}', 0)})
    corpus.index.commit(1)
    assert corpus.nearest([1.0] * DIM, 3) == ([], 0)


def test_a_search_that_is_not_wanted_any_more_ends(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path / "index", L2)
    corpus.put({b"a": ([1.0] * DIM, "a")})

    def check() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        rows: VectorRows = corpus.index.vectors["at"]
        rows.nearest(corpus.index.searcher(), Query.all_query(), [1.0] * DIM, 1, check)
