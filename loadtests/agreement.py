"""How far a prediction is off a measurement that is itself uncertain.

A p99 that one request in a hundred's luck decides cannot judge a model: where a hundredth of the requests meet a pause, it lies
anywhere between the slowest that meet none and the longest pause. So:
- a measurement that is known within CLOSE, by its own 95 % interval, judges: a prediction is off by what it differs from the
  measured value;
- another one judges only a prediction outside of its interval, which is off by what it differs from the nearer end. One inside
  is neither right nor wrong: the cell says nothing, counts for nothing, and is named.

Nothing is added to an interval, and a cell that is known well gets no discount for having one.

Pure: imports only the standard library and other pure files.
"""

from loadtests.statistics import Estimate

CLOSE = 0.25
"""The bound of the figure: who does not know his own value within it cannot say whether another one is."""


def is_known(measured: Estimate) -> bool:
    """Whether the interval lies within CLOSE of the value."""
    return measured.low >= (1 - CLOSE) * measured.value and measured.high <= (1 + CLOSE) * measured.value


def off_by(predicted: float, measured: Estimate) -> float | None:
    """By which part of the measured one a prediction is off, at least; None: the measurement cannot say."""
    if is_known(measured):
        return abs(predicted / measured.value - 1)
    if measured.low <= predicted <= measured.high:
        return None
    return abs(predicted / (measured.low if predicted < measured.low else measured.high) - 1)
