"""Every timing of replication, derived from one knob: the failure timeout T.

Clock rates of two leaves differ by less than a tenth. The inequalities that safety rests on, each checked here:

    evict_after  * 0.9/1.1 > read_lease      a secondary's read lease has ended before it is evicted
    grace        * 0.9/1.1 > primary_lease   the old primary's lease has ended before anybody takes over

And one that writes going on rests on: a primary that hears too few others leaves them the time to take over.

    solitude     * 0.9/1.1 > grace + 2 * stagger

Pure: imports only the standard library and other pure files.
"""

from dataclasses import dataclass
from typing import Final

from kvshard.limits import FAILURE_TIMEOUT_S

RATE_SPREAD: Final = 1.1 / 0.9
"""The most by which one leaf's clock may run faster than another's."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Lengths in seconds. Make one with `of`.

    tick: how often the driver sends Tick. stagger: further wait of each rank before it takes over. resend_after: an unanswered
    prepare or chunk is sent again. coordinator_retry: pause before the coordinator is asked again.
    handover_limit, handover_pause: writes wait so long for a planned handover; so long until the next is tried. first_contact:
    so long a primary that has just started does not put out replicas that it never heard: leaves start one after the other.
    joining_limit: a learner that is no further behind than this is waited for, no longer than this, before it is taken in.
    solitude: so long a primary that hears too few others keeps still before it puts them out.
    """

    failure_timeout: float
    tick: float
    beacon_interval: float
    read_lease: float
    evict_after: float
    primary_lease: float
    grace: float
    stagger: float
    resend_after: float
    coordinator_retry: float
    join_interval: float
    handover_limit: float
    handover_pause: float
    first_contact: float
    joining_limit: float
    solitude: float

    def __post_init__(self) -> None:
        assert self.read_lease * RATE_SPREAD < self.evict_after
        assert self.primary_lease * RATE_SPREAD < self.grace
        assert (self.grace + 2 * self.stagger) * RATE_SPREAD < self.solitude

    @classmethod
    def of(cls, failure_timeout: float = FAILURE_TIMEOUT_S) -> "Timings":
        """The timings for a failure timeout."""
        return cls(
            failure_timeout,
            tick=failure_timeout / 20,
            beacon_interval=failure_timeout / 10,
            read_lease=0.45 * failure_timeout,
            evict_after=0.6 * failure_timeout,
            primary_lease=0.8 * failure_timeout,
            grace=failure_timeout,
            stagger=0.25 * failure_timeout,
            resend_after=failure_timeout / 10,
            coordinator_retry=0.2 * failure_timeout,
            join_interval=0.5 * failure_timeout,
            handover_limit=0.5 * failure_timeout,
            handover_pause=5 * failure_timeout,
            first_contact=4 * failure_timeout,
            joining_limit=0.3 * failure_timeout,
            solitude=2 * failure_timeout,
        )
