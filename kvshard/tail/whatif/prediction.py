"""`predict`: one run of the model, and what it says.

Pure: imports only the standard library and other pure files.
"""

from dataclasses import dataclass

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.tail.histogram import LogHistogram
from kvshard.tail.whatif.latency import Latency
from kvshard.tail.whatif.model import Model
from kvshard.tail.whatif.order_statistics import leg_tail
from kvshard.tail.whatif.scenario import Arm, Scenario, Setting

REQUESTS_MAX = 10_000_000
"""Of one run: hours of one core. More is a slip of the keyboard."""


SAMPLES_BEYOND = 10
"""Measured values beyond a quantile that make it a measurement: their number varies by about a third."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one scenario and one arm. Latencies in seconds; failures count as the deadline.

    gathered: answers as the caller sees them. legs: as they ended. first_attempts: how long first attempts take when nobody
    cancels them. hedges: requests to leaves beyond the first of each leg. wasted: attempts that a leaf had begun when they were
    cancelled. refused: hedges that were not sent, by reason. samples: measured values behind the latency; None: it was given.
    """

    scenario: str
    arm: str
    setting: Setting
    gathered: LogHistogram
    legs: LogHistogram
    first_attempts: LogHistogram
    requests: int
    failures: int
    firsts: int
    hedges: int
    wasted: int
    refused: dict[str, int]
    samples: int | None

    @property
    def p50(self) -> float:
        """Median of the gathered answers."""
        return self.gathered.quantile(0.5) or 0.0

    @property
    def p99(self) -> float:
        """Their 99th percentile."""
        return self.gathered.quantile(0.99) or 0.0

    @property
    def p999(self) -> float:
        """Their 99.9th percentile."""
        return self.gathered.quantile(0.999) or 0.0

    @property
    def amplification(self) -> float:
        """p99 of the gathered answer / p99 of a first attempt by itself, which nobody hedges."""
        return self.p99 / (self.first_attempts.quantile(0.99) or self.p99 or 1.0)

    @property
    def extra_fraction(self) -> float:
        """Extra requests to leaves / first attempts."""
        return self.hedges / self.firsts if self.firsts else 0.0

    @property
    def wasted_fraction(self) -> float:
        """The part of all attempts that a leaf had begun and whose answer nobody wanted any more."""
        return self.wasted / (self.firsts + self.hedges) if self.firsts else 0.0

    def is_beyond_the_samples(self, fraction: float) -> bool:
        """Whether this gathered quantile rests on fewer than SAMPLES_BEYOND of the measured values: then it is a guess."""
        if self.samples is None:
            return False
        return self.samples * leg_tail(fraction, self.setting.fan_out) < SAMPLES_BEYOND

    def as_record(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "scenario": self.scenario,
            "arm": self.arm,
            "fan_out": self.setting.fan_out,
            "replicas": self.setting.replicas,
            "leaves": self.setting.leaves,
            "rate": self.setting.rate,
            "requests": self.requests,
            "failures": self.failures,
            "p50_s": self.p50,
            "p90_s": self.gathered.quantile(0.9),
            "p99_s": self.p99,
            "p999_s": self.p999,
            "first_attempt_p99_s": self.first_attempts.quantile(0.99),
            "amplification": self.amplification,
            "first_attempts": self.firsts,
            "hedges": self.hedges,
            "extra_fraction": self.extra_fraction,
            "wasted_fraction": self.wasted_fraction,
            "refused": self.refused,
            "measured_samples": self.samples,
        }


def predict(
    latency: Latency, scenario: Scenario, arm: Arm, setting: Setting, requests: int = 20_000, seed: int = 1
) -> Prediction:
    """Run the model. Raises InvalidArgument with the field that makes no sense."""
    if not 1 <= requests <= REQUESTS_MAX:
        message = f"a run has between 1 and {REQUESTS_MAX:,} requests, not {requests:,}"
        raise InvalidArgument(message, ErrorDetails(field="requests", limit=REQUESTS_MAX))
    tally = Model(latency, scenario, arm, setting, requests, seed).run()
    return Prediction(
        scenario=scenario.name,
        arm=arm.name,
        setting=setting,
        gathered=tally.gathered,
        legs=tally.legs,
        first_attempts=tally.first_attempts,
        requests=tally.requests,
        failures=tally.failures,
        firsts=tally.firsts,
        hedges=tally.hedges,
        wasted=tally.wasted,
        refused={reason: count for reason, count in sorted(tally.refused.items()) if count},
        samples=latency.samples,
    )
