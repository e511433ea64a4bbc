"""The arithmetic of a fan-out: what the slowest of many independent legs is like, without a model and without chance.

After J. Dean and L. A. Barroso, "The Tail at Scale", Communications of the ACM 56(2), 2013.

Pure: imports only the standard library and other pure files.
"""

from math import ceil, exp, expm1, lgamma, log, log1p
from statistics import NormalDist

from kvshard.tail.whatif.latency import GivenLatency

_NORMAL = NormalDist()
_HALVINGS = 60
"""Of an interval of a few deviations, until it is narrower than a double resolves."""

_GRID = 200
"""Steps of an integral over the normal scale, 8 deviations to both sides: smooth functions, so more change nothing."""


def share_of_slow_requests(share_of_slow_legs: float, legs: int) -> float:
    """1 - (1 - p)^n: the part of the requests that wait for at least one slow leg."""
    return -expm1(legs * log1p(-share_of_slow_legs))


def leg_tail(request_fraction: float, legs: int) -> float:
    """The part of the legs that may be slower, so that the gathered answer keeps to its quantile: 1 - q^(1/n)."""
    return -expm1(log(request_fraction) / legs)


def gathered_quantile(leaf: GivenLatency, legs: int, fraction: float, awaited: float = 1.0) -> float:
    """The latency that this part of the requests does not exceed, when each waits for `awaited` of its independent legs."""
    wanted = ceil(round(awaited * legs, 9))
    if wanted == legs:
        return leaf.at_deviation(-_NORMAL.inv_cdf(leg_tail(fraction, legs)))
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_least(wanted, legs, middle) < fraction else (low, middle)
    return leaf.quantile(high)


def gathered_quantile_shared(leaf: GivenLatency, legs: float, fraction: float, shared: float) -> float:
    """The latency that this part of the requests does not exceed, when the legs of a request share a part of their slowness.

    shared: the part of the variance (of the logarithm of the latency) that is the request's own, 0 <= shared < 1; the latency
    of a leg taken at random stays the same.
    """
    low, high = -8.0, 16.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if all_below(middle, legs, shared) < fraction else (low, middle)
    return leaf.at_deviation(high)


def part_quantile_shared(leaf: GivenLatency, fraction: float, shared: float, awaited: float) -> float:
    """The same when each request waits for `awaited` < 1 of its legs, of which there are so many that chance evens out."""
    common = shared**0.5 * _NORMAL.inv_cdf(fraction)
    return leaf.at_deviation(common + (1 - shared) ** 0.5 * _NORMAL.inv_cdf(awaited))


def hedged_quantile(leaf: GivenLatency, legs: int, fraction: float, delay_s: float) -> float:
    """The gathered quantile when each leg without an answer after `delay_s` is asked once more, both attempts independent."""
    tail = leg_tail(fraction, legs)
    low, high = 0.0, leaf.at_deviation(-_NORMAL.inv_cdf(tail))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_slower = leaf.share_above(middle) * leaf.share_above(middle - delay_s) > tail
        low, high = (middle, high) if is_slower else (low, middle)
    return high


def most_late_requests(share_of_slow_legs: float, late_part: float) -> float:
    """The largest part of the requests of which `late_part` of the legs can be slow, however the slow ones gather.

    Markov's inequality: it holds whatever the legs have in common.
    """
    return min(1.0, share_of_slow_legs / late_part)


def all_below(deviation: float, legs: float, shared: float) -> float:
    """The part of the requests of which every leg is below this deviation: the mean over what the legs have in common."""
    own = (1 - shared) ** 0.5
    step = 16.0 / _GRID
    total = 0.0
    for index in range(_GRID + 1):
        common = -8.0 + index * step
        late = _NORMAL.cdf((shared**0.5 * common - deviation) / own)
        if late < 1:
            total += _NORMAL.pdf(common) * step * exp(legs * log1p(-late))
    return total


def _at_least(wanted: int, legs: int, chance: float) -> float:
    """How likely at least so many of the legs are in time, if each is with this chance."""
    if chance <= 0 or chance >= 1:
        return float(chance >= 1)
    if wanted == legs:
        return exp(legs * log(chance))
    yes, no = log(chance), log1p(-chance)
    # The fewer terms: those of the legs that may be late.
    late = (_choose(legs, count) + (legs - count) * yes + count * no for count in range(legs - wanted + 1))
    return min(1.0, sum(exp(term) for term in late))


def _choose(total: int, chosen: int) -> float:
    """The logarithm of the binomial coefficient."""
    return lgamma(total + 1) - lgamma(chosen + 1) - lgamma(total - chosen + 1)
