"""Coverage: the identity of legs, sizes of silent shards, the verdict."""

import pytest

from kvshard.errors import DeadlineExceeded, ErrorDetails, Unavailable, record_of
from kvshard.scatter.coverage import Coverage, FailedLeg, KnownCounts, coverage_of, name_shards, shortfall


def failed(shard: int, leaf: str = "leaf-1") -> FailedLeg:
    return FailedLeg(shard, record_of(Unavailable("connection refused")), (leaf,))


def unknown(shard: int) -> int | None:
    return None


def test_complete_answer_without_documents_is_whole() -> None:
    coverage = coverage_of({0: 0, 1: 0}, [], unknown)
    assert coverage == Coverage(True, 0, 0, 2, 2)
    assert coverage.fraction == 1.0


def test_no_legs_at_all_is_whole() -> None:
    assert coverage_of({}, [], unknown) == Coverage(True, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("answered", "silent", "known", "considered", "total"),
    [
        ({0: 10, 1: 20}, [2], {2: 70}, 30, 100),  # the last known size
        ({0: 10, 1: 21}, [2], {}, 31, 47),  # the mean of the others, rounded up
        ({0: 10, 1: 20}, [2], {2: 0}, 30, 31),  # never as empty
        ({0: 0}, [1, 2], {}, 0, 2),
        ({}, [0, 1, 2], {}, 0, 3),  # nobody answered and nothing is known
        ({}, [0, 1], {0: 5}, 0, 6),
    ],
)
def test_size_of_silent_shards(
    answered: dict[int, int], silent: list[int], known: dict[int, int], considered: int, total: int
) -> None:
    coverage = coverage_of(answered, [failed(shard) for shard in silent], known.get)
    coverage.check_invariants()
    assert (coverage.documents_considered, coverage.documents_total) == (considered, total)
    assert not coverage.is_complete
    assert coverage.fraction < 1.0


def test_page_after_an_incomplete_page_is_incomplete() -> None:
    coverage = coverage_of({0: 5}, [], unknown, is_continuing_incomplete=True)
    coverage.check_invariants()
    assert not coverage.is_complete
    assert coverage.legs == coverage.legs_ok == 1


def test_shortfall_names_shards_and_replicas() -> None:
    coverage = coverage_of({0: 10}, [failed(3, "leaf-2"), failed(1, "leaf-1")], unknown)
    error = shortfall(coverage, 1.0)
    assert error is not None
    assert error.details.shards == (1, 3)
    assert error.details.replicas_tried == ("leaf-1", "leaf-2")
    assert error.message == "2 of 3 shards did not answer (1, 3); UNAVAILABLE: connection refused"


def test_shortfall_tells_of_several_causes_and_the_longest_wait() -> None:
    slow = FailedLeg(4, record_of(DeadlineExceeded("too slow", ErrorDetails(retry_after_ms=50))), ())
    error = shortfall(coverage_of({}, [failed(1), slow], unknown), 1.0)
    assert error is not None
    assert "DEADLINE_EXCEEDED: too slow and 1 more causes" in error.message
    assert error.details.retry_after_ms == 50


@pytest.mark.parametrize(("min_coverage", "falls_short"), [(0.0, False), (0.5, False), (0.51, True), (1.0, True)])
def test_min_coverage(min_coverage: float, falls_short: bool) -> None:
    coverage = coverage_of({0: 10}, [failed(1)], {1: 10}.get)
    assert (shortfall(coverage, min_coverage) is not None) is falls_short


def test_min_coverage_zero_accepts_no_answer_at_all() -> None:
    assert shortfall(coverage_of({}, [failed(1)], unknown), 0.0) is None


def test_name_shards_is_cut() -> None:
    assert name_shards(range(3)) == "0, 1, 2"
    assert name_shards(range(100)).endswith("15, ...")


def test_known_counts_are_bounded_and_forget_the_oldest() -> None:
    known = KnownCounts(max_pairs=2)
    known.learn(1, 0, 10)
    known.learn(1, 1, 11)
    known.learn(1, 0, 12)
    known.learn(2, 0, 13)
    assert len(known) == 2
    assert (known.of(1)(0), known.of(1)(1), known.of(2)(0)) == (12, None, 13)


def test_what_was_learned_least_recently_is_forgotten_first() -> None:
    known = KnownCounts(max_pairs=3)
    known.learn_all(1, {0: 10, 1: 11, 2: 12})
    known.learn(1, 0, 13)
    known.learn_all(2, {0: 20})
    assert [known.of(1)(shard) for shard in range(3)] == [13, None, 12]
    assert known.of(2)(0) == 20
    assert len(known) == 3
