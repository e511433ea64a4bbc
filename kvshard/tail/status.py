"""What a router does against slow leaves, as its status shows it: plain immutable data.

The fields mirror `TailStatus` of cluster.proto; `kvshard/rpc/convert.py` translates.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LegKindStatus:
    """Latency of one kind of legs ("Search/page"), of first attempts only, in milliseconds.

    samples: first attempts that count. delay_ms: after how long a spare replica is asked too.
    """

    kind: str
    samples: int = 0
    latency_ms_p50: float = 0.0
    latency_ms_p99: float = 0.0
    delay_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class LeafHealthStatus:
    """How a router sees a leaf. state: "ok", "new", "stalled", "probation", "pushback" or "unreachable".

    outstanding: attempts of this router without an answer. in_flight: requests in work there, by its last report. slowness:
    typical latency relative to the other replicas, 1 where it is as they are. first_attempts: how many it got.
    """

    leaf: str
    state: str = "ok"
    outstanding: int = 0
    in_flight: int = 0
    slowness: float = 1.0
    first_attempts: int = 0


@dataclass(frozen=True, slots=True)
class TailStatus:
    """What a router does against slow leaves. `_total`: since it started; the other counts are of its last 10 s.

    policy: for reads of collections that say nothing. budget: hedges allowed, as a part of the first attempts, as it is tuned
    now; budget_max: at most. max_attempts: of a leg. refused_total: hedges that were not sent, by reason.
    """

    policy: str = "auto"
    budget_max: float = 0.0
    budget: float = 0.0
    max_attempts: int = 1
    first_attempts: int = 0
    hedges: int = 0
    hedges_total: int = 0
    hedges_won_total: int = 0
    refused_total: Mapping[str, int] = field(default_factory=dict)
    kinds: tuple[LegKindStatus, ...] = ()
    leaves: tuple[LeafHealthStatus, ...] = ()

    @property
    def extra(self) -> float:
        """Hedges of the last 10 s as a part of the first attempts; 0 when there were none."""
        return self.hedges / self.first_attempts if self.first_attempts else 0.0

    @property
    def won(self) -> float:
        """Hedges whose answer was used, as a part of those sent since the start; 0 when there were none."""
        return self.hedges_won_total / self.hedges_total if self.hedges_total else 0.0
