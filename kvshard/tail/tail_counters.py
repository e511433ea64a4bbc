"""What has happened to the reads of a router since it started, for its metrics and its status.

Pure: imports only the standard library and other pure files.
"""

from dataclasses import dataclass, field

from kvshard.tail.hedging import Refusal
from kvshard.tail.histogram import SlidingHistogram

RECENT_SLICE_S = 5.0
RECENT_SLICES = 12
"""Latency of gathered requests is kept for a minute: enough for a hold-out of some requests even under light load."""


@dataclass(slots=True)
class TailCounters:
    """What has happened since the start. hedges_sent = hedges_won + hedges_wasted + those under way.

    missed: hedges for which there was no budget. late_writes are counted under Refusal.NOT_IDEMPOTENT.
    held_out, hedgeable: latency of the requests that were held out, and of their like that were not, in seconds.
    """

    requests: int = 0
    first_attempts: int = 0
    hedges_sent: int = 0
    hedges_won: int = 0
    hedges_wasted: int = 0
    failovers: int = 0
    held_out_requests: int = 0
    hedgeable_requests: int = 0
    refused: dict[Refusal, int] = field(default_factory=lambda: dict.fromkeys(Refusal, 0))
    held_out: SlidingHistogram = field(default_factory=lambda: SlidingHistogram(RECENT_SLICE_S, RECENT_SLICES))
    hedgeable: SlidingHistogram = field(default_factory=lambda: SlidingHistogram(RECENT_SLICE_S, RECENT_SLICES))
