"""A scan merged from chunks equals a sort, in whatever order they come and however short memory is; a dying shard loses its own
keys only; every key of a range begins with what the range is said to share."""

from hypothesis import given
from hypothesis import strategies as st

from kvshard.model import ShardScanReply
from kvshard.scatter.requests import KeyRange
from kvshard.scatter.scan_chunks import common_prefix
from kvshard.scatter.scan_merge import ScanMerge

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
    enough=st.integers(1, 9),
    start=st.binary(max_size=2),
    limit=st.none() | st.integers(1, 80),
    arrivals=st.randoms(use_true_random=False),
)
def test_a_merged_scan_equals_a_sort(placed, chunk_rows, page_rows, enough, start, limit, arrivals) -> None:
    shards = {shard: sorted(key for key, home in placed.items() if home == shard) for shard in range(4)}
    merge = ScanMerge(shards, start)
    outstanding: list[tuple[int, bytes]] = []
    seen: list[bytes] = []
    left = limit
    while not merge.is_done and left != 0:
        merge.advance(enough if left is None else max(enough, left))
        is_short = arrivals.random() < 0.3
        outstanding.extend(due[:2] for due in merge.wanted(left, is_memory_short=is_short))
        if merge.ready_rows and (not outstanding or arrivals.random() < 0.5):
            rows = merge.take(page_rows if left is None else min(left, page_rows), 1_000)
            assert 1 <= len(rows.keys) <= page_rows
            seen.extend(rows.keys)
            left = None if left is None else left - len(rows.keys)
        else:
            assert outstanding or merge.is_done, f"stuck: {merge!r}"
            if outstanding:
                shard, position = outstanding.pop(arrivals.randrange(len(outstanding)))
                merge.add(shard, scan_chunk(shards[shard], position, chunk_rows))
            assert all(len(c.rows) <= 2 * chunk_rows for c in merge._cursors.values())
    assert seen == sorted(key for key in placed if key >= start)[:limit]


@given(
    placed=st.dictionaries(KEYS, st.integers(0, 3), max_size=60),
    dead=st.integers(0, 3),
    answers_before=st.integers(0, 3),
    arrivals=st.randoms(use_true_random=False),
)
def test_a_dying_shard_loses_only_its_keys(placed, dead, answers_before, arrivals) -> None:
    shards = {shard: sorted(key for key, home in placed.items() if home == shard) for shard in range(4)}
    merge = ScanMerge(shards, b"")
    outstanding: list[tuple[int, bytes]] = []
    seen: list[bytes] = []
    while not merge.is_done:
        merge.advance(1)
        outstanding.extend(due[:2] for due in merge.wanted())
        seen.extend(merge.take(5, 1_000).keys)
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


@given(start=st.binary(max_size=4), end=st.none() | st.binary(max_size=4), key=st.binary(max_size=5))
def test_every_key_of_a_range_begins_with_what_it_shares(start: bytes, end: bytes | None, key: bytes) -> None:
    if start <= key and (end is None or key < end):
        assert key.startswith(common_prefix(KeyRange(start, end)))
