"""Merging the chunks of a scan, case by case; that it equals a sort is in tests/property/test_scan_properties.py."""

from kvshard.model import ShardScanReply
from kvshard.scatter.scan_chunks import ROW_COST_BYTES
from kvshard.scatter.scan_merge import NO_ROWS, Due, ScanMerge

ALL = 1 << 30


def chunk(*keys: bytes, resume: bytes | None = None, size: int = 1) -> ShardScanReply:
    """A chunk of these keys; resume given: there is more."""
    return ShardScanReply(
        keys=list(keys),
        values=[b"v" * size] * len(keys),
        versions=[1] * len(keys),
        expires_at_ms=[],
        has_more=resume is not None,
        resume=resume or b"",
    )


def keys_of(merge: ScanMerge) -> list[bytes]:
    merge.advance(ALL)
    return list(merge.take(100, 10_000).keys)


def test_nothing_is_emitted_before_every_shard_delivered() -> None:
    merge = ScanMerge([0, 1], b"")
    assert merge.wanted() == [Due(0, b"", 0), Due(1, b"", 0)]
    assert merge.wanted() == []
    merge.add(0, chunk(b"a", b"c"))
    merge.advance(ALL)
    assert merge.ready_rows == 0
    merge.add(1, chunk(b"b"))
    assert keys_of(merge) == [b"a", b"b", b"c"]
    assert merge.is_done


def test_only_keys_below_the_smallest_unfinished_frontier() -> None:
    merge = ScanMerge([0, 1], b"")
    merge.wanted()
    merge.add(0, chunk(b"a", b"d", b"e", resume=b"e\0"))
    merge.add(1, chunk(b"b", b"c", resume=b"c\0"))
    assert keys_of(merge) == [b"a", b"b", b"c"]
    assert merge.wanted() == [Due(1, b"c\0", 1)]
    merge.add(1, chunk(b"z"))
    assert keys_of(merge) == [b"d", b"e"]
    assert merge.wanted() == [Due(0, b"e\0", 1)]
    merge.add(0, chunk())
    assert keys_of(merge) == [b"z"]
    assert merge.is_done


def test_empty_chunk_with_more_moves_the_frontier() -> None:
    merge = ScanMerge([0, 1], b"")
    merge.wanted()
    merge.add(0, chunk(b"a", b"m"))
    merge.add(1, chunk(resume=b"k"))
    assert keys_of(merge) == [b"a"]
    assert merge.wanted() == [Due(1, b"k", 1)]


def test_resume_that_stands_still_is_moved_on() -> None:
    merge = ScanMerge([0], b"")
    merge.wanted()
    assert merge.add(0, chunk(b"a", b"b", resume=b"a"))[1]
    keys_of(merge)
    assert merge.wanted() == [Due(0, b"b\0", 1)]


def test_a_shard_that_gets_no_further_is_told() -> None:
    merge = ScanMerge([0], b"k")
    merge.wanted()
    assert merge.add(0, chunk(resume=b"")) == (0, False)


def test_failed_shard_keeps_what_it_delivered_and_frees_the_others() -> None:
    merge = ScanMerge([0, 1], b"")
    merge.wanted()
    merge.add(0, chunk(b"a", b"b", resume=b"b\0"))
    merge.add(1, chunk(b"c"))
    assert keys_of(merge) == [b"a", b"b"]
    merge.wanted()
    merge.fail(0)
    assert keys_of(merge) == [b"c"]
    assert merge.is_done


def test_pages_are_bounded_by_rows_and_bytes() -> None:
    merge = ScanMerge([0], b"")
    merge.wanted()
    merge.add(0, chunk(b"a", b"b", b"c", b"d"))
    merge.advance(ALL)
    assert merge.take(1, 1_000).keys == (b"a",)
    assert merge.take(9, 5).keys == (b"b", b"c")
    assert merge.take(9, 1).keys == (b"d",), "one row is given however large it is"
    assert merge.take(9, 1) == NO_ROWS


def test_next_chunk_is_fetched_ahead_while_rows_are_ready() -> None:
    merge = ScanMerge([0], b"")
    merge.wanted()
    merge.add(0, chunk(b"a", b"b", b"c", b"d", resume=b"d\0"))
    merge.advance(1)
    assert merge.ready_rows == 4
    assert merge.wanted() == [Due(0, b"d\0", 1)]
    merge.add(0, chunk(b"e", b"f", b"g", b"h", resume=b"h\0"))
    merge.advance(1)
    assert merge.wanted() == [], "one chunk ahead is enough"
    assert merge.ready_rows == 4


def test_while_memory_is_short_nothing_is_fetched_ahead() -> None:
    merge = ScanMerge([0, 1], b"")
    merge.wanted(is_memory_short=True)
    merge.add(0, chunk(b"a", b"b", resume=b"b\0"))
    merge.add(1, chunk(b"c", b"d", resume=b"d\0"))
    merge.advance(1)
    assert merge.wanted(is_memory_short=True) == []
    merge.take(9, 9)
    merge.advance(1)
    assert merge.wanted(is_memory_short=True) == [Due(0, b"b\0", 1)], "of the other one there are rows"
    assert merge.wanted() == []


def test_a_short_scan_fetches_only_what_it_may_still_want() -> None:
    merge = ScanMerge([0, 1, 2], b"")
    merge.wanted(3)
    merge.add(0, chunk(b"a", b"b", resume=b"b\0"))
    merge.add(1, chunk(b"k", b"l", resume=b"l\0"))
    merge.add(2, chunk(b"x", resume=b"x\0"))
    merge.advance(3)
    assert merge.ready_rows == 2
    assert merge.wanted(3) == [Due(0, b"b\0", 1)], "k may be the third; nothing behind it is wanted"
    merge.add(0, chunk(b"c", b"d", resume=b"d\0"))
    merge.advance(3)
    assert merge.wanted(3) == []
    assert merge.ready_rows == 4


def test_rows_that_become_safe_are_put_behind_the_ready_ones() -> None:
    merge = ScanMerge([0, 1], b"")
    merge.wanted()
    merge.add(0, chunk(b"a", b"c", b"e"))
    merge.add(1, chunk(b"b", resume=b"b\0"))
    merge.advance(10)
    assert merge.ready_rows == 2
    merge.wanted()
    merge.add(1, chunk(b"d"))
    merge.advance(2)
    assert merge.ready_rows == 2, "so many were ready"
    assert keys_of(merge) == [b"a", b"b", b"c", b"d", b"e"]


def test_keys_only_chunks_have_no_values() -> None:
    merge = ScanMerge([0], b"")
    merge.wanted()
    assert merge.add(0, ShardScanReply([b"a"], [], [7], [], has_more=False, resume=b"")) == (1 + ROW_COST_BYTES, True)
    merge.advance(1)
    assert merge.take(9, 9) == ((b"a",), (b"",), (7,), (), 1 + ROW_COST_BYTES)


def test_expiry_is_a_column_only_where_something_expires() -> None:
    merge = ScanMerge([0], b"")
    merge.wanted()
    merge.add(0, ShardScanReply([b"a", b"b", b"c"], [b""] * 3, [1, 2, 3], [0, 5, 0], has_more=False, resume=b""))
    merge.advance(1)
    assert merge.take(2, 9).expires_at_ms == (0, 5)
    assert merge.take(2, 9).expires_at_ms == ()


def test_what_was_added_is_what_is_taken_in_the_end() -> None:
    """Else the memory of scans would be miscounted."""
    merge = ScanMerge([0, 1], b"")
    merge.wanted()
    added = merge.add(0, chunk(b"a", b"c", size=10))[0] + merge.add(1, chunk(b"b", b"d" * 9, size=3))[0]
    assert added == 4 * ROW_COST_BYTES + 2 * 11 + 4 + 12
    assert merge.row_bytes == added // 4
    merge.advance(ALL)
    assert sum(merge.take(3, 12).cost for _ in range(4)) == added
    assert merge.is_done


def test_heirs_of_a_split_go_on_where_the_shard_stood() -> None:
    merge = ScanMerge([0, 1], b"")
    merge.wanted()
    merge.add(0, chunk(b"a", b"b", resume=b"b\0"))
    merge.add(1, chunk())
    merge.advance(1)
    merge.wanted()
    merge.divide(0, [0, 7])
    assert merge.wanted() == [Due(0, b"b\0", 1), Due(7, b"b\0", 0)]
