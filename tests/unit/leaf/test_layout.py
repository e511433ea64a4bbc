import pytest

from leaf import layout


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
