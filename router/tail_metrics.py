"""The live tail as metrics, read when they are scraped: an event costs what counting it in plain Python costs.

May live here: which figure has which metric's name. The scraper is a thread of its own, so everything is read by copies.
"""

from collections.abc import Iterator, Mapping

from kvshard.rpc.lane_session import LateAnswers
from kvshard.tail.histogram import LogHistogram
from kvshard.tail.tail_counters import TailCounters
from kvshard.telemetry import ScrapedFamily
from router.amplification import MIN_SAMPLES, Amplification

MEAN_MIN_SAMPLES = 30
"""Reads of the hold-out from which on their mean is shown; one in a hundred is held out, so fifty reads a second suffice."""


def amplification_families(amplification: Amplification, now: float) -> Iterator[ScrapedFamily]:
    """Gathered answers and legs over the last minute."""
    tails, legs = amplification.gathered(now), amplification.legs(now)
    by = ("method", "fan_out")
    yield ScrapedFamily(
        "kvshard_router_amplification_p99",
        "p99 of gathered answers over p99 of their legs, over the last minute, by fan-out class; absent below 100 samples.",
        by,
        [((each.method, each.fan_out), value) for each in tails if (value := each.amplification_p99) is not None],
    )
    yield ScrapedFamily(
        "kvshard_router_gathered_p99_seconds",
        "99th percentile of gathered answers over the last minute; absent below 100 of them.",
        by,
        [((each.method, each.fan_out), value) for each in tails if (value := each.gathered_p99) is not None],
    )
    yield ScrapedFamily(
        "kvshard_router_gathered_window_reads",
        "Gathered answers of the last minute: the n of their percentile.",
        by,
        [((each.method, each.fan_out), float(each.reads)) for each in tails if each.reads],
    )
    yield ScrapedFamily(
        "kvshard_router_leg_p99_seconds",
        "99th percentile of legs over the last minute, with all defences in force; absent below 100 of them.",
        ("method",),
        [((each.method,), value) for each in legs if (value := each.p99) is not None],
    )


def hedging_families(counters: TailCounters) -> Iterator[ScrapedFamily]:
    """What became of hedges since the start, and what they save by the hold-out of the last minute."""
    for name, help_, value in (
        ("first_attempts", "First attempts of legs of reads: what the hedge budget is a part of.", counters.first_attempts),
        ("hedges_sent", "Hedges sent.", counters.hedges_sent),
        ("hedges_won", "Hedges whose answer was used.", counters.hedges_won),
        ("hedges_wasted", "Hedges whose answer was not used.", counters.hedges_wasted),
        ("failovers", "Attempts at another replica after one had failed.", counters.failovers),
    ):
        yield ScrapedFamily(f"kvshard_router_{name}_total", help_, (), [((), float(value))], is_counter=True)
    yield ScrapedFamily(
        "kvshard_router_hedges_refused_total",
        "Hedges that were due and not sent, by reason.",
        ("reason",),
        [((reason.value,), float(count)) for reason, count in counters.refused.items()],
        is_counter=True,
    )
    yield ScrapedFamily(
        "kvshard_router_hold_out_reads_total",
        "Reads that might be hedged, by arm: held_out ones are not for half a second or more, which shows what hedging saves.",
        ("arm",),
        [(("held_out",), float(counters.held_out_requests)), (("hedged",), float(counters.hedgeable_requests))],
        is_counter=True,
    )
    yield from _hold_out_families(counters)


def wasted_families(late: LateAnswers) -> Iterator[ScrapedFamily]:
    """Answers that came to requests which had been taken back."""
    for name, help_, value in (
        ("late_answers", "Answers to requests that had been taken back.", float(late.count)),
        ("wasted_leaf_seconds", "Work of leaves on answers to requests that had been taken back.", late.service_s),
    ):
        yield ScrapedFamily(f"kvshard_router_{name}_total", help_, (), [((), value)], is_counter=True)


def lane_families(lanes: Mapping[str, int]) -> Iterator[ScrapedFamily]:
    """Lanes to leaves by what they run over."""
    help_ = "Open lanes to leaves, by what they run over: plain connections, or gRPC streams where those do not get through."
    yield ScrapedFamily(
        "kvshard_router_lanes", help_, ("transport",), [((name,), float(count)) for name, count in lanes.items()]
    )


def _hold_out_families(counters: TailCounters) -> Iterator[ScrapedFamily]:
    held_out, hedged = counters.held_out.snapshot(), counters.hedgeable.snapshot()
    rows, saved = [], []
    for figure in ("mean", "p99"):
        without, with_hedges = _figure(held_out, figure), _figure(hedged, figure)
        rows += [((arm, figure), value) for arm, value in (("held_out", without), ("hedged", with_hedges)) if value is not None]
        if without is not None and with_hedges is not None:
            saved.append(((figure,), without - with_hedges))
    yield ScrapedFamily(
        "kvshard_router_hold_out_latency_seconds",
        "Latency of gathered reads over the last minute, by arm of the hold-out; absent while there are too few of them.",
        ("arm", "figure"),
        rows,
    )
    yield ScrapedFamily(
        "kvshard_router_hedging_saved_seconds",
        "What hedging saves a read, by the hold-out of the last minute: its figure less that of the other reads.",
        ("figure",),
        saved,
    )


def _figure(histogram: LogHistogram, figure: str) -> float | None:
    if figure == "mean":
        return histogram.mean if histogram.count >= MEAN_MIN_SAMPLES else None
    return histogram.quantile(0.99) if histogram.count >= MIN_SAMPLES else None
