"""Five, ten, twenty, forty users, half a minute each."""

from loadtests.arrivals import Steps
from loadtests.shapes.shaped import Shaped


class StepsShape(Shaped):
    """Five, ten, twenty, forty users, half a minute each."""

    users_over_time = Steps((5, 10, 20, 40), 30.0)
