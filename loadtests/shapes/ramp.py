"""From one user to forty in two minutes."""

from loadtests.arrivals import Ramp
from loadtests.shapes.shaped import Shaped


class RampShape(Shaped):
    """From one user to forty in two minutes."""

    users_over_time = Ramp(1, 40, 120.0)
