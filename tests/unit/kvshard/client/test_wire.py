"""From messages to what the client hands back: what is not obvious in it."""

import pytest

from kvshard.client.results import Coverage
from kvshard.client.wire import add_coverage

WHOLE = Coverage(True, 200, 200, 1.0, 8, 8)
SMALL = Coverage(True, 40, 40, 1.0, 2, 2)
PART = Coverage(False, 150, 200, 0.75, 8, 6)


@pytest.mark.parametrize(("first", "second"), [(WHOLE, PART), (PART, WHOLE), (PART, SMALL)])
def test_of_a_batch_that_was_cut_the_less_covered_part_counts(first: Coverage, second: Coverage) -> None:
    both = add_coverage(first, second)
    assert not both.complete
    assert (both.documents_considered, both.documents_total, both.fraction) == (150, 200, 0.75)
    assert (both.legs, both.legs_ok) == (first.legs + second.legs, first.legs_ok + second.legs_ok)


def test_of_two_whole_parts_the_larger_view_counts() -> None:
    for parts in ((WHOLE, SMALL), (SMALL, WHOLE)):
        both = add_coverage(*parts)
        assert (both.complete, both.documents_considered, both.documents_total) == (True, 200, 200)
