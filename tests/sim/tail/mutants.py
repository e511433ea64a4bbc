"""Planted bugs: each replaces one small piece of what keeps the tail short. The simulation must catch every one."""

import contextlib
from collections.abc import Iterator
from math import inf
from typing import Any

from sim.hunting import Caught, hunt_all, hunt_one
from sim.planting import Plant, replace, replacing
from sim.tail.simulation import run

from kvshard.tail import defences, replica_health
from kvshard.tail.attempts import AttemptMachine
from kvshard.tail.budget import HedgeBudget
from kvshard.tail.defences import LegHedges
from kvshard.tail.leaf_health import Leaf, LeafState
from kvshard.tail.leg_events import AttemptKind, Cancel
from kvshard.tail.replica_health import ReplicaHealth


def _write_hedged(stack: contextlib.ExitStack) -> None:
    original = AttemptMachine._on_timer

    def on_timer(self: AttemptMachine, now: float) -> Any:
        if not self.config.is_idempotent and self.outstanding and len(self.outstanding) < 2:
            (asked,) = self.outstanding.values()
            return self._send(now, asked, AttemptKind.HEDGE)
        return original(self, now)

    replace(stack, AttemptMachine, "_on_timer", on_timer)


def _loser_not_cancelled(stack: contextlib.ExitStack) -> None:
    original = AttemptMachine._end

    def end(self: AttemptMachine, outcome: Any, now: float) -> Any:
        return [action for action in original(self, outcome, now) if not isinstance(action, Cancel)]

    replace(stack, AttemptMachine, "_end", end)


def _budget_charged_late(stack: contextlib.ExitStack) -> None:
    """Every second hedge is free."""
    original, calls = HedgeBudget.try_take, [0]

    def try_take(self: HedgeBudget, now: float, is_urgent: bool = True) -> bool:
        calls[0] += 1
        return calls[0] % 2 == 0 or original(self, now, is_urgent)

    replace(stack, HedgeBudget, "try_take", try_take)


def _expired_token_used(stack: contextlib.ExitStack) -> None:
    """First attempts earn for good, and hedges are forgotten."""

    def slice_of(self: HedgeBudget, now: float) -> list[int]:
        while len(self._slices) > 1:
            self._extra -= self._slices.popleft()[2]
        if not self._slices:
            self._slices.append([0, 0, 0])
        self._saved += 0.5
        return self._slices[-1]

    replace(stack, HedgeBudget, "_slice", slice_of)
    replace(stack, HedgeBudget, "_is_partly_out", lambda self, now: False)


def _window_missing(stack: contextlib.ExitStack) -> None:
    """Only the bucket is asked, which fills faster than the window allows."""

    def try_take(self: HedgeBudget, now: float, is_urgent: bool = True) -> bool:
        slice = self._slice(now)
        if self._saved < 1.0:
            return False
        self._saved -= 0.5
        self._extra += 1
        slice[2] += 1
        return True

    replace(stack, HedgeBudget, "try_take", try_take)


def _attempt_not_ended(stack: contextlib.ExitStack) -> None:
    original = ReplicaHealth.failed

    def failed(self: ReplicaHealth, attempt: Any, error: Any, now: float) -> bool:
        if error.reason == "NOT_READY":
            return False
        return original(self, attempt, error, now)

    replace(stack, ReplicaHealth, "failed", failed)


def _hedge_to_any_state(stack: contextlib.ExitStack) -> None:
    replace(stack, defences, "LeafState", _AnyState)


class _AnyState:
    """All states but pushback pass."""

    PUSHBACK = LeafState.PUSHBACK
    STALLED = inf


def _attempts_unbounded(stack: contextlib.ExitStack) -> None:
    replace(stack, AttemptMachine, "check_invariants", lambda self: None)

    def may_send(self: AttemptMachine, now: float) -> bool:
        return now < self.deadline and not self._has_stale_map and bool(self._untried)

    replace(stack, AttemptMachine, "_may_send", may_send)


def _never_on_deadline(stack: contextlib.ExitStack) -> None:
    replace(stack, AttemptMachine, "_on_deadline", lambda self, now: [])


def _silence_never_heard(stack: contextlib.ExitStack) -> None:
    original = ReplicaHealth.cancelled
    replace(stack, ReplicaHealth, "cancelled", lambda self, attempt, now: original(self, attempt, now) and False)


def _impatient(stack: contextlib.ExitStack) -> None:
    original = LegHedges.wait_s

    def wait_s(self: LegHedges, now: float, deadline: float) -> float | None:
        wait = original(self, now, deadline)
        return None if wait is None else wait / 2

    replace(stack, LegHedges, "wait_s", wait_s)


MUTANTS: dict[str, Plant] = {
    "budget not charged": replacing(HedgeBudget, "try_take", lambda self, now, is_urgent=True: True),
    "every second hedge is free": _budget_charged_late,
    "expired token used": _expired_token_used,
    "no window in the budget": _window_missing,
    "write hedged": _write_hedged,
    "loser not cancelled": _loser_not_cancelled,
    "late router hedges": replacing(defences, "LATE_TIMER_S", inf),
    "stalled leaf chosen": replacing(Leaf, "is_stalled", lambda self, now: self.is_silent),
    "silent leaf chosen": replacing(ReplicaHealth, "_rank", lambda self, leaf, now: 0),
    "silent leaf never pinged": _silence_never_heard,
    "storm gate missing": replacing(defences, "STORM_LEGS", 1_000),
    "hold-out hedged": replacing(defences, "held_out_delay", lambda delay: delay),
    "hedged before the delay": _impatient,
    "hedge to a stalled leaf": _hedge_to_any_state,
    "hedge to a leaf that sheds": replacing(
        Leaf, "state", lambda self, now: LeafState.STALLED if self.is_stalled(now) else LeafState.OK
    ),
    "an attempt that ends with an error is not ended": _attempt_not_ended,
    "hedges of a call that was given up are forgotten": replacing(LegHedges, "given_up", lambda self: None),
    "hedges are not counted when they end": replacing(LegHedges, "ended", lambda self, tries: None),
    "more than one in three on probation": replacing(replica_health, "PROBATION_SHARE", 1.0),
    "a leaf on probation is never probed": replacing(replica_health, "PROBE_INTERVAL_S", inf),
    "more attempts than allowed": _attempts_unbounded,
    "the deadline is not kept": _never_on_deadline,
}

CLASSIC = (
    "budget not charged",
    "expired token used",
    "write hedged",
    "loser not cancelled",
    "late router hedges",
    "stalled leaf chosen",
    "storm gate missing",
)
"""The mistakes that the gates exist to prevent. None may be taken off."""


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """The bug is there within. What the machine checks of itself is not asked then: the oracle has to see it."""
    with contextlib.ExitStack() as stack:
        replace(stack, AttemptMachine, "check_invariants", lambda self: None)
        MUTANTS[name](stack)
        yield


def hunt(name: str, seeds: int, first: int = 0) -> Caught:
    """Run seeds with the bug until one catches it."""
    return hunt_one(name, planted, run, seeds, first)


def report(seeds: int, only: str, jobs: int) -> int:
    """Hunt them all and print a table; 1 when one survives."""
    return hunt_all([name for name in MUTANTS if only in name], hunt, seeds, bool(only), jobs)
