"""The live tail as metrics, read when they are scraped: an event costs what counting it in plain Python costs.

May live here: which figure has which metric's name. The scraper is a thread of its own, so everything is read by copies.
"""

from collections.abc import Iterator

from kvshard.telemetry import ScrapedFamily
from router.amplification import Amplification


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
