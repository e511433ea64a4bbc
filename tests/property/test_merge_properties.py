"""Merging hits equals sorting the whole; coverage keeps its identity; facet counts stay within their stated error."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kvshard.errors import Unavailable, record_of
from kvshard.model import ShardHit, ShardSearchReply
from kvshard.scatter.coverage import FailedLeg, coverage_of, shortfall
from kvshard.scatter.merge import merge_facet, merge_hits
from kvshard.scatter.tokens import SearchPosition, TokenCodec, fingerprint

KEYS = st.binary(min_size=1, max_size=3)


SORT_VALUES = st.one_of(st.none(), st.integers(-3, 3))
DOCUMENTS = st.dictionaries(KEYS, st.tuples(st.integers(0, 3), st.integers(0, 4), SORT_VALUES), max_size=40)


def expected_order(documents, sort: str) -> list[bytes]:
    def by_score(key):
        return -documents[key][1], key

    def by_value(key):
        value = documents[key][2]
        return (1, 0, key) if value is None else (0, -value if sort.startswith("-") else value, key)

    return sorted(documents, key=by_value if sort else by_score)


@given(documents=DOCUMENTS, sort=st.sampled_from(["", "year", "-year"]), limit=st.integers(1, 7))
def test_pages_of_hits_equal_sort(documents, sort: str, limit: int) -> None:
    """Paged to the end, every hit comes once, in the order of the whole."""
    order = expected_order(documents, sort)
    codec, request = TokenCodec("c"), fingerprint([b"q"])
    offsets: dict[int, int] = {}
    seen: list[bytes] = []
    while True:
        replies = {}
        for shard in range(4):
            own = [key for key in order if documents[key][0] == shard]
            ranked = [
                ShardHit(key, float(documents[key][1]), b"", 1, rank, documents[key][2]) for rank, key in enumerate(own, 1)
            ]
            first = offsets.get(shard, 0)
            replies[shard] = ShardSearchReply(ranked[first : first + limit], len(own), len(own))
        page = merge_hits(replies, offsets, sort, limit, 1_000)
        seen.extend(hit.key for _, hit in page.hits)
        if not page.has_more:
            break
        assert len(page.hits) == limit
        offsets = dict(codec.decode_search(codec.encode_search(1, request, SearchPosition(page.offsets)), 1, request).offsets)
    assert seen == order


@given(
    answered=st.dictionaries(st.integers(0, 20), st.integers(0, 50)),
    silent=st.sets(st.integers(0, 20)),
    known=st.dictionaries(st.integers(0, 20), st.integers(0, 50)),
    min_coverage=st.floats(0, 1),
)
def test_coverage_identity(answered, silent, known, min_coverage) -> None:
    failed = [FailedLeg(shard, record_of(Unavailable("down"))) for shard in silent - answered.keys()]
    coverage = coverage_of(answered, failed, known.get)
    coverage.check_invariants()
    assert coverage.legs == coverage.legs_ok + len(coverage.failed)
    assert coverage.is_complete == (not failed)
    assert (coverage.fraction == 1.0) == coverage.is_complete
    error = shortfall(coverage, min_coverage)
    assert (error is not None) == (bool(failed) and coverage.fraction < min_coverage)
    assert error is None or set(error.details.shards) == {leg.shard for leg in failed}


@given(
    shards=st.lists(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9)), min_size=1, max_size=4),
    listed=st.integers(1, 4),
    limit=st.integers(1, 4),
)
def test_facet_counts_are_within_their_error(shards, listed: int, limit: int) -> None:
    replies = []
    for counts in shards:
        best = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        cut = best[listed:]
        error = cut[0][1] if cut else 0
        replies.append(ShardSearchReply([], 0, 0, {"tag": dict(best[:listed])}, {"tag": error}))
    merged = merge_facet("tag", replies, limit)
    true_counts = Counter()
    for counts in shards:
        true_counts.update(counts)
    for value, count in merged.values:
        assert count <= true_counts[value] <= count + merged.error_bound
