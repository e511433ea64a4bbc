import pytest

from kvshard.tail.deadlines import leg_deadline


@pytest.mark.parametrize(
    ("left", "leg"),
    [
        (1.0, 0.9),  # 10 %
        (0.05, 0.045),  # both rules agree here
        (0.02, 0.015),  # 5 ms
        (0.006, 0.003),  # never more than half
        (0.0, 0.0),
        (-1.0, 0.0),  # already past: the leg has no time, and no negative one
    ],
)
def test_the_router_keeps_its_share(left: float, leg: float) -> None:
    assert leg_deadline(100.0, 100.0 + left) == pytest.approx(100.0 + leg)
