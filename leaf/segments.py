"""The segments of an index, and what it takes to have tantivy merge the small ones (pure).

tantivy merges by itself, after a commit, and only where MERGE_AT segments are of one size class; a search pays for each of
those that are left. Its Python binding has neither a call that merges nor a setting for it. But a segment of one document
counts like any other, so an index with three small segments that gets five more of one document each has all eight merged
into one. `fillers_wanted` says how many more it takes.

The rule and the numbers of the size classes are tantivy's (its LogMergePolicy). Should another version have others, segments
are left as they are, or merged too early; nothing rests on it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import Final

MERGE_AT: Final = 8
"""Segments of one size class that tantivy merges."""

CLASS_LEAST_DOCUMENTS: Final = 10_000
CLASS_LOG_WIDTH: Final = 0.75
"""The smallest class: all segments of up to so many documents, and those of up to 2 ** 0.75 (1.68) times as many."""

MERGED_MAX_DOCUMENTS: Final = 50_000
MERGED_MAX_BYTES: Final = 20_000_000
"""Of one merge: about a second of one core, at 60,000 short texts or 20 MB a second. Larger ones cost more than the searches
they make cheaper, since the more documents a segment has, the less it matters that it is one more."""

DELETED_SHARE: Final = 0.1
"""Of deleted documents in a lone segment, from which on it is worth a merge: searches pass over each of them, and while there
is any, the documents of a term have to be counted one by one."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment. documents: live ones."""

    documents: int
    deleted: int
    size_bytes: int


def parse_segments(meta: bytes, sizes: Mapping[str, int]) -> list[Segment]:
    """The segments that tantivy's `meta.json` names. sizes: bytes of the files that begin with this name.

    Raises ValueError where it is not as known.
    """
    try:
        return [_segment(each, sizes) for each in json.loads(meta)["segments"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"unknown segments: {error!r}") from error


def _segment(told: Mapping[str, object], sizes: Mapping[str, int]) -> Segment:
    deletes = told["deletes"]
    deleted = int(deletes["num_deleted_docs"]) if isinstance(deletes, Mapping) else 0
    documents = int(str(told["max_doc"])) - deleted
    return Segment(documents, deleted, sizes.get(str(told["segment_id"]).replace("-", ""), 0))


def smallest_class(segments: Sequence[Segment]) -> list[Segment]:
    """Those that are merged together with segments of one document."""
    # As tantivy goes: from the largest on, a class ends with the first one that is smaller than its largest by the width.
    ordered = sorted([*segments, Segment(1, 0, 0)], key=lambda each: each.documents + each.deleted, reverse=True)
    largest, members = float("inf"), list[Segment]()
    for each in ordered:
        size = log2(max(each.documents, CLASS_LEAST_DOCUMENTS))
        if size < largest - CLASS_LOG_WIDTH:
            largest, members = size, []
        members.append(each)
    return members[:-1]


def fillers_wanted(segments: Sequence[Segment]) -> int:
    """Segments of one document to be added, so that the small ones are merged. 0: they are few enough, too large, or so many
    that tantivy merges them anyhow.
    """
    small = smallest_class(segments)
    deleted = sum(each.deleted for each in small)
    documents = sum(each.documents for each in small)
    is_worth_it = len(small) > 1 or deleted > DELETED_SHARE * (documents + deleted)
    is_small = documents <= MERGED_MAX_DOCUMENTS and sum(each.size_bytes for each in small) <= MERGED_MAX_BYTES
    return max(MERGE_AT - len(small), 0) if is_worth_it and is_small else 0
