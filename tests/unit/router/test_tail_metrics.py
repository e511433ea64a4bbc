"""What became of hedges, as metrics."""

import pytest

from kvshard.tail.defences import TailCounters
from kvshard.tail.hedging import Refusal
from kvshard.telemetry import ScrapedFamily
from router.amplification import MIN_SAMPLES
from router.tail_metrics import MEAN_MIN_SAMPLES, hedging_families


def families(counters: TailCounters) -> dict[str, ScrapedFamily]:
    return {family.name.removeprefix("kvshard_router_"): family for family in hedging_families(counters)}


def test_counters_keep_their_names() -> None:
    counters = TailCounters(first_attempts=900, hedges_sent=9, hedges_won=5, hedges_wasted=3, failovers=2)
    counters.refused[Refusal.STORM] = 7
    found = families(counters)
    flat = {name: family.rows[0][1] for name, family in found.items() if family.is_counter and not family.labels}
    assert flat == {
        "first_attempts_total": 900,
        "hedges_sent_total": 9,
        "hedges_won_total": 5,
        "hedges_wasted_total": 3,
        "failovers_total": 2,
    }
    refused = dict(found["hedges_refused_total"].rows)
    assert refused.pop(("storm",)) == 7
    assert set(refused) == {(reason.value,) for reason in Refusal} - {("storm",)}
    assert not any(refused.values())


@pytest.mark.parametrize(
    ("held_out", "figures"), [(MEAN_MIN_SAMPLES - 1, []), (MEAN_MIN_SAMPLES, ["mean"]), (MIN_SAMPLES, ["mean", "p99"])]
)
def test_what_hedging_saves_is_shown_when_enough_was_held_out(held_out: int, figures: list[str]) -> None:
    counters = TailCounters(held_out_requests=held_out, hedgeable_requests=5000)
    counters.held_out.record_all([0.050] * held_out, 1000.0)
    counters.hedgeable.record_all([0.010] * 5000, 1000.0)
    found = families(counters)
    assert dict(found["hold_out_reads_total"].rows) == {("held_out",): held_out, ("hedged",): 5000}
    saved = dict(found["hedging_saved_seconds"].rows)
    assert list(saved) == [(figure,) for figure in figures]
    assert list(saved.values()) == pytest.approx([0.040] * len(figures), rel=0.01)
    assert (("held_out", "mean") in dict(found["hold_out_latency_seconds"].rows)) == bool(figures)
