"""Comparisons one after the other: one that fails is told and fails the run, and the others are measured all the same."""

import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.figures import Figure
from benchmarks.measured import Comparison
from benchmarks.report import show_comparison


@dataclass(slots=True)
class Found:
    """What a run has measured by name, and which comparisons failed and why."""

    comparisons: dict[str, Comparison] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def failed(self) -> list[Figure]:
        """A row for each failure; none of them is ever met."""
        return [Figure(f"{name}: failures", 1, "", 1, 0, note=why) for name, why in self.failures.items()]


async def one_after_the_other(tasks: Mapping[str, Callable[[], Awaitable[Comparison]]]) -> Found:
    """Run them in this order, and print each when it is done."""
    found = Found()
    for name, task in tasks.items():
        try:
            compared = await task()
        except Exception as error:
            traceback.print_exc()
            found.failures[name] = _innermost(error)
        else:
            found.comparisons[name] = compared
            show_comparison(compared)
    return found


def _innermost(error: BaseException) -> str:
    """The first failure of a group of tasks says what happened; the group only that something did."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
