"""How soon an end of a connection that is gone without a word, or hangs, is given up.

Pure: imports only the standard library and other pure files.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Keepalive:
    """idle_s: seconds of silence after which a sign of life is asked for. timeout_s: how long it is waited for."""

    idle_s: float
    timeout_s: float

    @property
    def total_s(self) -> float:
        """Seconds after which a silent end is given up."""
        return self.idle_s + self.timeout_s


PATIENCE: Final = Keepalive(10.0, 5.0)
"""A peer that vanished without closing (power, network) is noticed after 10 + 5 s. A paused process is only slow until then."""

IMPATIENCE: Final = Keepalive(1.0, 2.0)
"""Between our own processes: replicas that cannot hear each other, and writes that wait on a connection of which the leaf knows
nothing any more, hold up a shard. Whoever is only slow is dialled anew, and nothing is done twice."""
