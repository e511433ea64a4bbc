"""A gate that lets every hedge pass, or refuses as it is told."""

from collections.abc import Sequence

from kvshard.tail.hedging import Refusal
from kvshard.tail.leg_events import Candidate


class OpenGate:
    """Hedges after `delay` seconds at the first spare candidate. refusals: what to answer first, one a time."""

    def __init__(self, delay: float | None, *refusals: Refusal, may_fail_over: bool = True) -> None:
        self.delay = delay
        self.refusals = list(refusals)
        self.is_failing_over = may_fail_over
        self.asked: list[tuple[list[str], list[str], float]] = []

    def wait_s(self, now: float, deadline: float) -> float | None:
        return self.delay

    def admit(
        self, spares: Sequence[Candidate], waiting: Sequence[Candidate], late_by_s: float, now: float, deadline: float
    ) -> Candidate | Refusal:
        self.asked.append(([each.leaf for each in spares], [each.leaf for each in waiting], late_by_s))
        return self.refusals.pop(0) if self.refusals else spares[0]

    def again_s(self, refusal: Refusal, now: float, deadline: float) -> float | None:
        return self.delay

    def may_fail_over(self, now: float) -> bool:
        return self.is_failing_over
