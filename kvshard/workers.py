"""The workers of a router: several processes that listen on one port, and how they look when they are asked.

A client sees one address; the system gives each of its connections to one of the workers, for as long as the connection lives.
A worker is a whole router of its own. So that people still see one router, and a worker can be told from its siblings, each
has a private address besides, and knows those of the others.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.tail.status import TailStatus

WORKERS_MAX = 64
"""Each is a process of some 80 MB that wants a core, and has connections of its own to every leaf; more of them belong on more
machines."""

ROUTER = "router"


def check_workers(count: int) -> int:
    """The number of workers, if there may be so many. Raises InvalidArgument."""
    if not 1 <= count <= WORKERS_MAX:
        details = ErrorDetails(field="workers", limit=WORKERS_MAX)
        raise InvalidArgument(f"--workers must be between 1 and {WORKERS_MAX}, not {count}", details)
    return count


def worker_name(number: int, count: int) -> str:
    """What a worker is called; number: from 1."""
    return ROUTER if count == 1 else f"{ROUTER}-{number}"


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """Which of the workers a process is. number: from 1. addresses: each worker's own host:port, by number; empty: it is alone.

    Invariant: 1 <= number <= max(1, len(addresses)). metrics_port: where it serves its metrics; None: nowhere.
    """

    number: int = 1
    addresses: tuple[str, ...] = ()
    metrics_port: int | None = None

    def checked(self) -> "WorkerPlace":
        """This place, if there can be such a one. Raises InvalidArgument."""
        count = max(1, len(self.addresses))
        if len(self.addresses) > WORKERS_MAX:
            details = ErrorDetails(field="worker-addresses", limit=WORKERS_MAX)
            raise InvalidArgument(f"a router has at most {WORKERS_MAX} workers, not {len(self.addresses)}", details)
        if not 1 <= self.number <= count:
            details = ErrorDetails(field="worker", limit=count)
            raise InvalidArgument(f"--worker must be between 1 and {count}, not {self.number}", details)
        return self

    @property
    def name(self) -> str:
        """What it is called."""
        return worker_name(self.number, max(1, len(self.addresses)))

    @property
    def is_shared(self) -> bool:
        """Whether others listen on the same port."""
        return len(self.addresses) > 1

    @property
    def address(self) -> str | None:
        """Its own address, at which nobody else answers; None when it is alone."""
        return self.addresses[self.number - 1] if self.is_shared else None

    @property
    def names(self) -> tuple[str, ...]:
        """All workers, in their order."""
        count = max(1, len(self.addresses))
        return tuple(worker_name(number, count) for number in range(1, count + 1))

    @property
    def siblings(self) -> dict[str, str]:
        """The addresses of the others, by name, in their order."""
        named = zip(self.names, self.addresses, strict=False)  # Who is alone has a name and no address.
        return {name: address for name, address in named if name != self.name}


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """State of one router process. worker: its name. address: at which it alone is reached; empty where no port is shared.

    error: why it does not answer; then the rest is empty. metrics_port 0: it serves no metrics. calls_total, refused_total:
    since it started. arrival_wait_ms: how long a call waited last before the process looked at it. refused_share: of the calls
    now. tail: what it does against slow leaves.
    """

    worker: str
    address: str = ""
    error: str = ""
    pid: int = 0
    uptime_s: float = 0.0
    resident_bytes: int = 0
    metrics_port: int = 0
    calls_in_flight: int = 0
    calls_total: int = 0
    refused_total: int = 0
    arrival_wait_ms: float = 0.0
    refused_share: float = 0.0
    tail: TailStatus | None = None

    @property
    def is_up(self) -> bool:
        """True when it answered."""
        return not self.error


def added_up(tails: Sequence[TailStatus]) -> TailStatus:
    """What several workers do against slow leaves, as one. Raises ValueError for none of them.

    Counts are added; budget is that of all their requests together. What cannot be added up (quantiles, and how each sees the
    leaves) is left out unless there is only one.
    """
    if not tails:
        raise ValueError("there is nothing to add up")
    if len(tails) == 1:
        return tails[0]
    refused: dict[str, int] = {}
    for tail in tails:
        for reason, count in tail.refused_total.items():
            refused[reason] = refused.get(reason, 0) + count
    first_attempts = sum(tail.first_attempts for tail in tails)
    allowed = sum(tail.budget * tail.first_attempts for tail in tails)
    return TailStatus(
        policy=tails[0].policy,
        budget_max=max(tail.budget_max for tail in tails),
        budget=allowed / first_attempts if first_attempts else max(tail.budget for tail in tails),
        max_attempts=max(tail.max_attempts for tail in tails),
        first_attempts=first_attempts,
        hedges=sum(tail.hedges for tail in tails),
        hedges_total=sum(tail.hedges_total for tail in tails),
        hedges_won_total=sum(tail.hedges_won_total for tail in tails),
        refused_total=dict(sorted(refused.items())),
    )
