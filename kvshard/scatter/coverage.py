"""How much of what had to be asked did answer: counting, the last known sizes of silent shards, and the verdict.

A gathered answer counts its legs: legs = legs_ok + len(failed), always. Documents are counted so that the fraction is never
overstated: a silent shard counts with its last known size, or the mean of the others where none is known, and never with
less than one document, so that an incomplete answer is never a whole one.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kvshard.errors import ErrorDetails, ErrorRecord, Unavailable

KNOWN_COUNTS_MAX = 65_536
"""(collection, shard) pairs whose size is remembered: 16 collections over the largest map, about 8 MB."""

SHARDS_NAMED_MAX = 16
"""Shards spelled out in an error's text; the details name them all."""


@dataclass(frozen=True, slots=True)
class FailedLeg:
    """A shard that did not answer, why, and the leaves that were asked in the order of asking."""

    shard: int
    error: ErrorRecord
    replicas_tried: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much answered. Invariant: legs == legs_ok + len(failed).

    is_complete: every shard answered, on this page and on the ones it continues. fraction: considered / total, 1 when a
    complete answer has no documents to consider.
    """

    is_complete: bool
    documents_considered: int
    documents_total: int
    legs: int
    legs_ok: int
    failed: tuple[FailedLeg, ...] = ()

    @property
    def fraction(self) -> float:
        """Part of the documents that the answer took into account, between 0 and 1."""
        return self.documents_considered / self.documents_total if self.documents_total else 1.0

    def check_invariants(self) -> None:
        """Raise AssertionError when the counts contradict each other."""
        assert self.legs == self.legs_ok + len(self.failed), self
        assert 0 <= self.documents_considered <= self.documents_total, self
        assert not self.failed or (not self.is_complete and self.fraction < 1.0), self


def coverage_of(
    answered: Mapping[int, int],
    failed: Sequence[FailedLeg],
    last_known: Callable[[int], int | None],
    is_continuing_incomplete: bool = False,
) -> Coverage:
    """The coverage of legs that answered (shard -> its documents) and of those that failed.

    is_continuing_incomplete: the page continues one that lacked shards, so the whole is incomplete whatever answers now.
    """
    considered, count = sum(answered.values()), len(answered)
    if not failed:
        return Coverage(not is_continuing_incomplete, considered, considered, count, count)
    mean = -(-considered // len(answered)) if answered else 1
    total = considered
    for leg in failed:
        known = last_known(leg.shard)
        total += max(1, mean if known is None else known)
    return Coverage(
        is_complete=not failed and not is_continuing_incomplete,
        documents_considered=considered,
        documents_total=total,
        legs=len(answered) + len(failed),
        legs_ok=len(answered),
        failed=tuple(sorted(failed, key=lambda leg: leg.shard)),
    )


def shortfall(coverage: Coverage, min_coverage: float) -> Unavailable | None:
    """The error of an answer that covers too little, or None when it covers enough.

    Failed legs of one kind keep that kind's text, so that "unavailable" and "too slow" stay apart for the reader.
    """
    if not coverage.failed or coverage.fraction >= min_coverage:
        return None
    shards = tuple(leg.shard for leg in coverage.failed)
    tried = tuple(dict.fromkeys(leaf for leg in coverage.failed for leaf in leg.replicas_tried))
    causes = sorted({f"{leg.error.reason}: {leg.error.message}" for leg in coverage.failed})
    more = f" and {len(causes) - 1} more causes" if len(causes) > 1 else ""
    retry_after = max((leg.error.details.retry_after_ms or 0 for leg in coverage.failed), default=0)
    return Unavailable(
        f"{len(shards)} of {coverage.legs} shards did not answer ({name_shards(shards)}); {causes[0]}{more}",
        ErrorDetails(shards=shards, replicas_tried=tried, retry_after_ms=retry_after or None),
    )


def name_shards(shards: Sequence[int]) -> str:
    """The shards as text, cut after SHARDS_NAMED_MAX."""
    named = ", ".join(str(shard) for shard in shards[:SHARDS_NAMED_MAX])
    return named if len(shards) <= SHARDS_NAMED_MAX else f"{named}, ..."


@dataclass(slots=True)
class KnownCounts:
    """Last known number of documents per (collection, shard), so that a silent shard is not counted as empty.

    At most max_pairs are kept; the least recently learned goes first.
    """

    max_pairs: int = KNOWN_COUNTS_MAX
    _counts: dict[tuple[int, int], int] = field(default_factory=dict)

    def learn(self, collection_id: int, shard: int, documents: int) -> None:
        """Remember what a shard said."""
        self.learn_all(collection_id, {shard: documents})

    def learn_all(self, collection_id: int, documents: Mapping[int, int]) -> None:
        """The same for several shards."""
        counts = self._counts
        for shard, count in documents.items():
            pair = (collection_id, shard)
            counts.pop(pair, None)  # What is learned anew goes to the end.
            counts[pair] = count
        while len(counts) > self.max_pairs:
            del counts[next(iter(counts))]

    def of(self, collection_id: int) -> Callable[[int], int | None]:
        """Looks up the shards of one collection; None where nothing is known."""
        counts = self._counts
        return lambda shard: counts.get((collection_id, shard))

    def __len__(self) -> int:
        return len(self._counts)
