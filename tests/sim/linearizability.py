"""Is a history of one register linearizable? The checker of Wing and Gong with Lowe's memoisation.

A register holds a value or nothing (None). Histories may come from the simulator or from a real cluster: the unit of time does
not matter, only which operation returned before which other one was invoked.

    put      sets `value`                        get     `observed` is what it was told (None: absent)
    delete   leaves None                         cas     sets `value` if the register holds `expected`; else it tells `observed`

An operation whose outcome is not known (no answer, connection lost) has `returned=INFINITY`: it may have taken effect at any
time after its invocation, or never. One that surely had no effect does not belong into a history.

Theory: Wing, Gong: Testing and verifying concurrent objects (1993); Lowe: Testing for linearizability (2017). The search picks,
among the operations invoked before the first return that is outstanding, one that fits the state, and goes back when none does.
A pair (set of operations done, state) that failed once is never tried again.
"""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from enum import Enum

INFINITY = math.inf

STEPS_MAX = 2_000_000
"""A history of one key that needs more is not decided: TooHard. Unknown outcomes are what makes a search long."""


class Kind(Enum):
    """What an operation does."""

    GET = "get"
    PUT = "put"
    DELETE = "delete"
    CAS = "cas"


class TooHard(Exception):
    """The search was given up."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of one client. Values are unique among the puts of a key, or the check is weaker than it could be.

    observed: for get, and for cas with has_applied False. has_applied: cas only; None when its outcome is not known.
    """

    kind: Kind
    invoked: float
    returned: float
    value: Hashable = None
    expected: Hashable = None
    observed: Hashable = None
    has_applied: bool | None = True
    client: str = ""

    @property
    def is_known(self) -> bool:
        """It returned."""
        return self.returned != INFINITY


def step(operation: Operation, state: Hashable) -> tuple[bool, Hashable]:
    """Whether the operation may take effect in a state, and the state after it."""
    kind = operation.kind
    if kind is Kind.GET:
        return operation.observed == state, state
    if kind is Kind.PUT:
        return True, operation.value
    if kind is Kind.DELETE:
        return True, None
    if operation.has_applied:
        return state == operation.expected, operation.value
    if operation.has_applied is None:
        return (state == operation.expected), operation.value  # One that fails changes nothing: then it need not happen at all.
    return state == operation.observed and state != operation.expected, state


def relevant(operations: Iterable[Operation]) -> list[Operation]:
    """The operations that bear on the verdict, by invocation.

    Left out: reads without answer, and puts without answer whose value nobody met. Such a put may be thought never to have
    taken effect: in a legal order that contains it, no read stands between it and the next write.
    """
    found = sorted(operations, key=lambda each: each.invoked)
    met = {each.observed for each in found} | {each.expected for each in found if each.kind is Kind.CAS}

    def is_idle(each: Operation) -> bool:
        if each.is_known:
            return False
        return each.kind is Kind.GET or (each.kind in (Kind.PUT, Kind.CAS) and each.value not in met)

    return [each for each in found if not is_idle(each)]


def is_linearizable(operations: Iterable[Operation], initial: Hashable = None, steps_max: int = STEPS_MAX) -> bool:
    """Whether some order explains the history of one key. Raises TooHard after steps_max steps of the search."""
    todo = relevant(operations)
    count = len(todo)
    known = sum(1 << index for index, each in enumerate(todo) if each.is_known)
    failed: set[tuple[int, Hashable]] = set()
    # A frame: operations done, state, candidates not yet tried.
    stack = [(0, initial, _candidates(todo, 0, 0, initial))]
    steps = 0
    while stack:
        done, state, candidates = stack[-1]
        if done & known == known:
            return True
        for index in candidates:
            steps += 1
            fits, after = step(todo[index], state)
            if not fits:
                continue
            further = done | (1 << index)
            if (further, after) not in failed:
                failed.add((further, after))  # Known or about to be: either way it need not be tried again.
                stack.append((further, after, _candidates(todo, further, _first_open(further, count), after)))
                break
        else:
            stack.pop()
        if steps > steps_max:
            raise TooHard(f"{count} operations, {count - known.bit_count()} of unknown outcome, more than {steps_max} steps")
    return False


def _first_open(done: int, count: int) -> int:
    """Index of the first operation not done."""
    return min(((~done) & (done + 1)).bit_length() - 1, count)


def _candidates(todo: list[Operation], done: int, start: int, state: Hashable) -> Iterable[int]:
    """Operations that may come next: not done, and invoked before every other one that is not done has returned.

    Of deletes without answer only the one invoked first: in an order that contains a later one it could stand in its place.
    A read that may come next and fits the state comes next: wherever a legal order has it, it could as well stand here. Without
    that, reads that overlap with each other and with writes multiply the orders to try.
    """
    found = []
    limit = INFINITY
    has_open_delete = False
    for index in range(start, len(todo)):
        if done >> index & 1:
            continue
        operation = todo[index]
        if operation.invoked > limit:
            break
        if operation.kind is Kind.DELETE and not operation.is_known:
            if has_open_delete:
                continue
            has_open_delete = True
        if operation.kind is Kind.GET and operation.observed == state:
            return iter([index])
        found.append((operation.returned, index))
        if operation.returned < limit:
            limit = operation.returned
    # Early returns first: the order in which most histories happened.
    return iter([index for _, index in sorted(found)])


def shortest_bad_prefix(operations: Iterable[Operation], initial: Hashable = None) -> list[Operation]:
    """For the report of a failure: the operations invoked up to the first return at which the history cannot be explained."""
    found = sorted(operations, key=lambda each: each.invoked)
    returns = sorted({each.returned for each in found if each.is_known})
    low, high = 0, len(returns) - 1
    while low < high:
        middle = (low + high) // 2
        if is_linearizable(_until(found, returns[middle]), initial):
            low = middle + 1
        else:
            high = middle
    return _until(found, returns[low]) if returns else []


def _until(operations: list[Operation], end: float) -> list[Operation]:
    """The history as it was known at an instant: what had not returned is of unknown outcome."""
    cut = []
    for each in operations:
        if each.invoked > end:
            continue
        if each.returned <= end:
            cut.append(each)
        elif each.kind is not Kind.GET and each.has_applied is not False:
            is_cas = each.kind is Kind.CAS
            cut.append(
                Operation(
                    each.kind, each.invoked, INFINITY, each.value, each.expected, None, None if is_cas else True, each.client
                )
            )
    return cut
