import pytest

from leaf import layout
from leaf.memory_engine import MemoryEngine


def test_rows_sort_by_their_fields() -> None:
    assert layout.log_key(1, 255) < layout.log_key(1, 256) < layout.log_key(2, 0)
    assert layout.value_prefix(1, 2) + b"\xff" * 9 < layout.value_prefix(1, 3)
    assert layout.expiry_key(3, 10, 9, b"z") < layout.expiry_key(3, 11, 1, b"a")


def test_an_expiry_range_holds_what_is_due() -> None:
    begin, end = layout.expiry_range(3, 0, 1000)
    assert begin <= layout.expiry_key(3, 1, 0, b"") < end
    assert begin <= layout.expiry_key(3, 1000, 2**32 - 1, b"\xff" * 1024) < end
    assert layout.expiry_key(3, 1001, 0, b"") >= end
    assert not begin <= layout.expiry_key(2, 5, 0, b"") < end
    later, _ = layout.expiry_range(3, 7, 1000)
    assert layout.expiry_key(3, 6, 2**32 - 1, b"\xff" * 1024) < later <= layout.expiry_key(3, 7, 0, b"")
    assert layout.expiry_of(layout.expiry_key(3, 1000, 7, b"key")) == (1000, 7, b"key")


@pytest.mark.parametrize(("prefix", "end"), [(b"a", b"b"), (b"a\xff", b"b"), (b"v\0\0\0\xff", b"v\0\0\1")])
def test_the_end_of_a_prefix(prefix: bytes, end: bytes) -> None:
    assert layout.end_of(prefix) == end


def test_numbers_come_back() -> None:
    assert layout.header_of(layout.pack_header(2**63, 2**62, 2**23) + b"value") == (2**63, 2**62, 2**23)
    assert layout.seqno_of(layout.log_key(9, 2**40)) == 2**40
    assert layout.collection_of_counts(layout.counts_key(9, 77)) == 77


def test_changes_are_made_in_the_order_in_which_they_were_given() -> None:
    engine = MemoryEngine({b"a": b"", b"b": b"", b"c": b""})
    changes = layout.Changes()
    assert (len(changes), changes.bytes) == (0, 0)
    changes.delete_range(b"a", b"c")
    changes.put(b"b", b"new")
    changes.put(b"d", b"")
    changes.delete(b"d")
    assert (len(changes), changes.bytes) == (4, 8)
    batch = engine.new_batch()
    changes.write_to(batch)
    engine.write(batch)
    assert engine.rows() == {b"b": b"new", b"c": b""}


def test_a_position_of_an_earlier_version_has_no_epoch() -> None:
    assert layout.unpack_position(layout.pack_position(2**40, 7)) == (2**40, 7)
    assert layout.unpack_position(layout.pack_number(5)) == (5, None)


def test_the_rows_of_a_shard_are_between_those_of_its_neighbours() -> None:
    for shard in (0, 255, 2**32 - 2):
        begin, end = layout.log_range(shard, 4)
        assert layout.log_key(shard, 4) < begin == layout.log_key(shard, 5)
        assert layout.log_key(shard, 2**64 - 1) < end <= layout.log_key(shard + 1, 0)
        first, last = layout.shard_range(ord("m"), shard)
        assert first <= layout.meta_key(shard, b"") < layout.meta_key(shard, b"\xff" * 9) < last
    assert sorted(layout.ALL_TAGS) == list(layout.ALL_TAGS)
    assert set(layout.STATE_TAGS) < set(layout.ALL_TAGS)
