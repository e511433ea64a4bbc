"""Merging equals sorting the whole; coverage keeps its identity; facet counts stay within their stated error."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kvshard.errors import Unavailable, record_of
from kvshard.model import ShardHit, ShardScanReply, ShardSearchReply
from kvshard.scatter.coverage import FailedLeg, coverage_of, shortfall
from kvshard.scatter.merge import ScanMerge, merge_facet, merge_hits
from kvshard.scatter.tokens import SearchPosition, TokenCodec, fingerprint

KEYS = st.binary(min_size=1, max_size=3)


def scan_chunk(keys: list[bytes], start: bytes, limit: int) -> ShardScanReply:
    """What a shard with these sorted keys answers."""
    rest = [key for key in keys if key >= start]
    part = rest[:limit]
    has_more = len(rest) > limit
    resume = part[-1] + b"\0" if has_more and part else start
    return ShardScanReply(part, [b""] * len(part), [1] * len(part), [], has_more, resume if has_more else b"")


@given(
    placed=st.dictionaries(KEYS, st.integers(0, 3), max_size=60),
    chunk_rows=st.integers(1, 5),
    page_rows=st.integers(1, 7),
    start=st.binary(max_size=2),
    arrivals=st.randoms(use_true_random=False),
)
def test_scan_merge_equals_sort(placed, chunk_rows, page_rows, start, arrivals) -> None:
    shards = {shard: sorted(key for key, home in placed.items() if home == shard) for shard in range(4)}
    merge = ScanMerge(shards, start, chunk_rows)
    outstanding: list[tuple[int, bytes]] = []
    seen: list[bytes] = []
    while not merge.is_done:
        outstanding.extend(merge.wanted())
        if merge.ready_rows and (not outstanding or arrivals.random() < 0.5):
            rows = merge.take(page_rows, 1_000)
            assert 1 <= len(rows) <= page_rows
            seen.extend(row[0] for row in rows)
        else:
            assert outstanding, f"stuck: {merge!r}"
            shard, position = outstanding.pop(arrivals.randrange(len(outstanding)))
            merge.add(shard, scan_chunk(shards[shard], position, chunk_rows))
            assert all(len(c.rows) - c.position <= 2 * chunk_rows for c in merge._cursors.values())
    assert seen == sorted(key for key in placed if key >= start)


@given(
    placed=st.dictionaries(KEYS, st.integers(0, 3), max_size=60),
    dead=st.integers(0, 3),
    answers_before=st.integers(0, 3),
    arrivals=st.randoms(use_true_random=False),
)
def test_scan_merge_with_a_dying_shard_loses_only_its_keys(placed, dead, answers_before, arrivals) -> None:
    shards = {shard: sorted(key for key, home in placed.items() if home == shard) for shard in range(4)}
    merge = ScanMerge(shards, b"", 3)
    outstanding: list[tuple[int, bytes]] = []
    seen: list[bytes] = []
    while not merge.is_done:
        outstanding.extend(merge.wanted())
        seen.extend(row[0] for row in merge.take(5, 1_000))
        if outstanding:
            shard, position = outstanding.pop(arrivals.randrange(len(outstanding)))
            if shard == dead and answers_before == 0:
                merge.fail(shard)
            else:
                answers_before -= shard == dead
                merge.add(shard, scan_chunk(shards[shard], position, 3))
    assert seen == sorted(seen)
    assert len(set(seen)) == len(seen)
    alive = {key for key, home in placed.items() if home != dead}
    assert alive <= set(seen) <= set(placed)


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
