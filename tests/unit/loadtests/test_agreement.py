import pytest

from loadtests.agreement import is_known, off_by
from loadtests.statistics import Estimate

KNOWN = Estimate(10.0, 9.0, 12.0, 5_000)
KNEE = Estimate(10.0, 8.0, 35.0, 5_000)


def test_who_knows_his_value_within_a_quarter_can_judge():
    assert is_known(KNOWN)
    assert is_known(Estimate(10.0, 7.5, 12.5, 1))
    assert not is_known(KNEE)
    assert not is_known(Estimate(10.0, 7.0, 11.0, 1))


@pytest.mark.parametrize(("predicted", "off"), [(10.0, 0.0), (12.0, 0.2), (9.0, 0.1), (20.0, 1.0), (5.0, 0.5)])
def test_a_known_value_is_compared_with_itself_not_with_its_interval(predicted, off):
    assert off_by(predicted, KNOWN) == pytest.approx(off)


@pytest.mark.parametrize(("predicted", "off"), [(8.0, None), (20.0, None), (35.0, None), (70.0, 1.0), (6.0, 0.25)])
def test_an_unknown_value_judges_only_what_lies_outside(predicted, off):
    assert off_by(predicted, KNEE) == (None if off is None else pytest.approx(off))
