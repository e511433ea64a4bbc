"""Asks the gate of one leg for a hedge, and asks again when it refuses: what spoke against it may pass.

Each time it waits twice as long, but for a router that is late itself: its answers may be here already, unread, and the later
it is, the more of them.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Sequence

from kvshard.tail.hedging import Refusal
from kvshard.tail.leg_events import Candidate, HedgeGate

DOUBLINGS_MAX = 6
"""Of the wait after refusals: with a delay of 5 ms the gate is asked three times a second in the end."""

ASK_PAUSE_S = 0.001
"""Before the gate is asked again, at least. A caller may name a delay of nothing, and a router that is late shall read the
answers that are there: asking at once again and again would keep the event loop busy with nothing else."""


class Hedger:
    """One leg. refused: why hedges were not sent."""

    __slots__ = ("_postponed", "gate", "refused")

    def __init__(self, gate: HedgeGate) -> None:
        self.gate = gate
        self.refused: set[Refusal] = set()
        self._postponed = 0

    def __repr__(self) -> str:
        return f"Hedger(postponed={self._postponed}, refused={sorted(reason.value for reason in self.refused)})"

    def ask(
        self, spares: Sequence[Candidate], waiting: Sequence[Candidate], late_by_s: float, now: float, deadline: float
    ) -> Candidate | float | None:
        """Whom to ask now, which then counts as sent; or when to ask the gate again; None: not before the deadline.

        The arguments: see `HedgeGate.admit`.
        """
        chosen = self.gate.admit(spares, waiting, late_by_s, now, deadline)
        if isinstance(chosen, Candidate):
            return chosen
        self.refused.add(chosen)
        wait = self.gate.again_s(chosen, now, deadline)
        if wait is None:
            return None
        if chosen is Refusal.LATE_ROUTER:
            wait = max(ASK_PAUSE_S, late_by_s, wait)
        else:
            wait = max(ASK_PAUSE_S, wait) * 2.0 ** min(self._postponed, DOUBLINGS_MAX)
            self._postponed += 1
        return now + wait if now + wait < deadline else None
