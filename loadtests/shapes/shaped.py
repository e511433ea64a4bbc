"""Turns a rate over time (`loadtests.arrivals`) into locust's users over time."""

from typing import ClassVar

from locust import LoadTestShape

from loadtests.arrivals import Shape


class Shaped(LoadTestShape):
    """Users as `users_over_time` says; each sends `--rate` requests a second."""

    abstract = True
    users_over_time: ClassVar[Shape]

    def tick(self) -> tuple[int, float] | None:
        """The users wanted now, and how many may start a second; None at the end."""
        at = self.get_run_time()
        if at >= self.users_over_time.seconds:
            return None
        return max(1, round(self.users_over_time.rate_at(at))), self.users_over_time.peak
