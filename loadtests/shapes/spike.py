"""Five users, and eight times as many for a quarter of a minute."""

from loadtests.arrivals import Spike
from loadtests.shapes.shaped import Shaped


class SpikeShape(Shaped):
    """Five users, and eight times as many for a quarter of a minute."""

    users_over_time = Spike(5, 8.0, 90.0, 30.0, 45.0)
