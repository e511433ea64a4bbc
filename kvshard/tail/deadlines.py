"""How much of a caller's deadline each step may spend.

Pure: imports only the standard library.
"""

RESERVE_S = 0.005
"""What the router keeps at least for merging and answering: a full page of hits merges in about 2 ms."""

RESERVE_FRACTION = 0.1
"""What it keeps of a long deadline, where an answer may be large."""

RESERVE_MOST = 0.5
"""It never keeps more than this part: with a very short deadline, an answer that may come late beats none at all."""


def leg_deadline(now: float, deadline: float) -> float:
    """When a leg must have ended so that the router can still answer by `deadline`.

    The router keeps max(5 ms, 10 %) of what is left, but never more than half.
    """
    left = max(0.0, deadline - now)
    reserve = min(max(RESERVE_S, RESERVE_FRACTION * left), RESERVE_MOST * left)
    return now + left - reserve
