"""The checker against histories whose verdict is known, and against trying every order."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim.linearizability import (
    INFINITY,
    Kind,
    Operation,
    TooHard,
    is_linearizable,
    shortest_bad_prefix,
    step,
)


def put(invoked: float, returned: float, value: object) -> Operation:
    return Operation(Kind.PUT, invoked, returned, value=value)


def get(invoked: float, returned: float, observed: object) -> Operation:
    return Operation(Kind.GET, invoked, returned, observed=observed)


def delete(invoked: float, returned: float) -> Operation:
    return Operation(Kind.DELETE, invoked, returned)


def cas(invoked: float, returned: float, expected: object, value: object) -> Operation:
    return Operation(Kind.CAS, invoked, returned, value=value, expected=expected)


def failed_cas(invoked: float, returned: float, expected: object, observed: object) -> Operation:
    return Operation(Kind.CAS, invoked, returned, value="unused", expected=expected, observed=observed, has_applied=False)


def unknown_cas(invoked: float, expected: object, value: object) -> Operation:
    return Operation(Kind.CAS, invoked, INFINITY, value=value, expected=expected, has_applied=None)


GOOD = {
    "nothing": [],
    "absent at first": [get(0, 1, None)],
    "one after the other": [put(0, 1, "a"), get(2, 3, "a"), delete(4, 5), get(6, 7, None)],
    "a read during a write sees the old": [put(0, 1, "a"), put(2, 6, "b"), get(3, 4, "a")],
    "a read during a write sees the new": [put(0, 1, "a"), put(2, 6, "b"), get(3, 4, "b")],
    "old then new during one write": [put(0, 1, "a"), put(2, 9, "b"), get(3, 4, "a"), get(5, 6, "b")],
    "two writes at once, either order": [put(0, 5, "a"), put(0, 5, "b"), get(6, 7, "a")],
    "an unknown write took effect": [put(0, 1, "a"), put(2, INFINITY, "b"), get(9, 10, "b")],
    "an unknown write never did": [put(0, 1, "a"), put(2, INFINITY, "b"), get(9, 10, "a")],
    "an unknown write took effect late": [put(0, 1, "a"), put(2, INFINITY, "b"), get(3, 4, "a"), get(5, 6, "b")],
    "compare and set": [put(0, 1, "a"), cas(2, 3, "a", "b"), get(4, 5, "b")],
    "of two at once one wins": [put(0, 1, "a"), cas(2, 5, "a", "b"), failed_cas(2, 5, "a", "b")],
    "unknown compare and set": [put(0, 1, "a"), unknown_cas(2, "a", "b"), get(3, 4, "a"), get(5, 6, "b")],
    "an unknown deletion": [put(0, 1, "a"), delete(2, INFINITY), get(3, 4, "a"), get(5, 6, None)],
    "a put after an unknown deletion": [put(0, 1, "a"), delete(2, INFINITY), put(3, 4, "b"), get(5, 6, "b"), get(7, 8, None)],
}

BAD = {
    "never written": [get(0, 1, "a")],
    "stale read": [put(0, 1, "a"), put(2, 3, "b"), get(4, 5, "a")],
    "lost write": [put(0, 1, "a"), get(2, 3, None)],
    "new then old": [put(0, 1, "a"), put(2, 9, "b"), get(3, 4, "b"), get(5, 6, "a")],
    "a deleted value comes back": [put(0, 1, "a"), delete(2, 3), get(4, 5, "a")],
    "read before written": [get(0, 1, "a"), put(2, 3, "a")],
    "two readers disagree on the order": [
        put(0, 1, "a"),
        put(0, 1, "b"),
        get(2, 3, "a"),
        get(4, 5, "b"),
    ],
    "both of two compare and sets win": [put(0, 1, "a"), cas(2, 5, "a", "b"), cas(2, 5, "a", "c")],
    "compare and set on what was overwritten": [put(0, 1, "a"), put(2, 3, "b"), cas(4, 5, "a", "c")],
    "failed though it held": [put(0, 1, "a"), failed_cas(2, 3, "a", "a")],
    "an unknown write takes effect twice": [
        put(0, 1, "a"),
        put(2, INFINITY, "b"),
        get(3, 4, "b"),
        put(5, 6, "c"),
        get(7, 8, "b"),
    ],
    "an unknown write before its invocation": [put(0, 1, "a"), get(2, 3, "b"), put(4, INFINITY, "b")],
    "unknown compare and set without its condition": [put(0, 1, "a"), put(2, 3, "b"), unknown_cas(4, "a", "c"), get(5, 6, "c")],
}


@pytest.mark.parametrize("name", GOOD)
def test_good_histories_pass(name: str) -> None:
    assert is_linearizable(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_bad_histories_are_found(name: str) -> None:
    assert not is_linearizable(BAD[name])


def by_trying_every_order(operations: list[Operation]) -> bool:
    for count in range(len(operations) + 1):
        for chosen in itertools.permutations(operations, count):
            left_out = [each for each in operations if each not in chosen]
            if any(each.is_known for each in left_out):
                continue
            if any(b.returned < a.invoked for a, b in itertools.combinations(chosen, 2)):
                continue
            state = None
            for each in chosen:
                fits, state = step(each, state)
                if not fits:
                    break
            else:
                return True
    return False


VALUES = st.sampled_from([None, 1, 2, 3])


@st.composite
def operations(draw: st.DrawFn, number: int) -> Operation:
    invoked = draw(st.integers(0, 8))
    returned = draw(st.one_of(st.integers(invoked + 1, 12), st.just(INFINITY)))
    kind = draw(st.sampled_from(list(Kind)))
    has_applied: bool | None = True
    if kind is Kind.CAS:
        has_applied = draw(st.booleans()) if returned != INFINITY else None
    observed = draw(VALUES) if kind is Kind.GET or has_applied is False else None
    expected = draw(VALUES) if kind is Kind.CAS else None
    return Operation(kind, invoked, returned, number, expected, observed, has_applied, client=str(number))


@settings(max_examples=250, deadline=None)
@given(st.integers(1, 5).flatmap(lambda count: st.tuples(*(operations(number) for number in range(1, count + 1)))))
def test_agrees_with_trying_every_order(history: tuple[Operation, ...]) -> None:
    assert is_linearizable(history) == by_trying_every_order(list(history))


def test_a_long_history_with_much_at_once_is_quick() -> None:
    history = []
    for number in range(400):
        history.append(put(number * 2, number * 2 + 9, number))
        history.append(get(number * 2 + 10, number * 2 + 11, number))
    assert is_linearizable(history)
    assert not is_linearizable([*history, get(810, 811, 7)])


def test_gives_up_on_what_is_too_hard() -> None:
    writes = [put(0, INFINITY, number) for number in range(18)]
    wrong = [get(100 + at, 100.5 + at, number) for at, number in enumerate((*range(18), 0))]
    with pytest.raises(TooHard):
        is_linearizable([*writes, *wrong], steps_max=100)


def test_the_report_shows_where_it_went_wrong() -> None:
    history = [put(0, 1, "a"), get(2, 3, "a"), put(4, 5, "b"), get(6, 7, "a"), put(8, 9, "c"), get(10, 11, "c")]
    assert shortest_bad_prefix(history)[-1] == history[3]
