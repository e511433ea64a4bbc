import json
import random
from math import log2

import pytest

from leaf.segments import (
    MERGE_AT,
    MERGED_MAX_BYTES,
    MERGED_MAX_DOCUMENTS,
    Segment,
    fillers_wanted,
    parse_segments,
    smallest_class,
)


def of(*documents, deleted=0, size_bytes=1_000):
    return [Segment(each, deleted, size_bytes) for each in documents]


@pytest.mark.parametrize(
    ("segments", "wanted"),
    [
        ([], 0),
        (of(500), 0),
        (of(3, 2), 6),
        (of(10_000, 9_000, 1), 5),
        (of(16_817, 12_000, 5), 5),  # 1.68 times the least: one class
        (of(16_818, 12_000, 5), 0),  # the larger ones are of another class
        (of(16_818, 12_000, 5, 6), 6),
        (of(16_818, 5), 0),
        (of(40_000, 30_000, 700, 600), 6),
        (of(*[100] * 7), 1),
        (of(*[100] * 8), 0),  # tantivy does it by itself
        (of(*[100] * 11), 0),
        (of(90, deleted=10), 0),
        (of(89, deleted=11), 7),
        (of(20_000, deleted=10_000), 0),  # of another class
        (of(16_000, 16_000, 16_000, 2_001), 0),  # more than a merge may have
        (of(16_000, 16_000, 16_000, 2_000), 4),
        (of(10, 10, size_bytes=MERGED_MAX_BYTES // 2), 6),
        (of(10, 10, size_bytes=MERGED_MAX_BYTES // 2 + 1), 0),
    ],
)
def test_how_many_more_it_takes(segments, wanted):
    assert fillers_wanted(segments) == wanted
    assert fillers_wanted(segments[::-1]) == wanted


def test_as_many_as_are_wanted_make_as_many_as_are_merged():
    rng = random.Random(6)
    tried = 0
    while tried < 300:
        segments = of(*(rng.choice([1, 50, 9_999, 12_000, 16_000, 17_000, 40_000]) for _ in range(rng.randint(1, 10))))
        wanted = fillers_wanted(segments)
        if wanted:
            tried += 1
            filled = [*segments, *of(*[1] * wanted)]
            assert len(smallest_class(filled)) == MERGE_AT
            assert fillers_wanted(filled) == 0
            sizes = [max(each.documents, 10_000) for each in smallest_class(filled)]
            assert log2(max(sizes) / min(sizes)) <= 0.75
            assert sum(each.documents for each in smallest_class(segments)) <= MERGED_MAX_DOCUMENTS


def test_what_tantivy_tells():
    told = [
        {"segment_id": "11a3ecd5-0655", "max_doc": 30, "deletes": None},
        {"segment_id": "22", "max_doc": 9, "deletes": {"num_deleted_docs": 4, "opstamp": 77}},
    ]
    found = parse_segments(json.dumps({"segments": told}).encode(), {"11a3ecd50655": 512, "meta": 7})
    assert found == [Segment(30, 0, 512), Segment(5, 4, 0)]


@pytest.mark.parametrize(
    "meta", [b"", b"[]", b"{}", b'{"segments": [1]}', b'{"segments": [{"max_doc": null, "deletes": null, "segment_id": ""}]}']
)
def test_what_is_not_as_known_is_an_error(meta):
    with pytest.raises(ValueError):
        parse_segments(meta, {})
