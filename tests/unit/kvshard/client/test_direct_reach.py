"""Which leaves are pinged when, which shards are left to a router for how long: pure decisions."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from kvshard.client.direct_reach import (
    FIRST_PING_PAUSE_S,
    FIRST_SETBACK_S,
    FORGIVEN_AFTER,
    LONGEST_PING_PAUSE_S,
    LONGEST_SETBACK_S,
    LOST_S,
    PINGS_MAX,
    Reach,
    Setbacks,
)

TWO = {"a": "h:1", "b": "h:2"}


def reached(*leaves: str, addresses: dict[str, str] = TWO) -> Reach:
    """All leaves are named by the map, these have answered."""
    reach = Reach()
    reach.install(addresses, 0.0)
    for leaf in leaves:
        reach.due(0.0)
        assert reach.answered(leaf, addresses[leaf])
    return reach


def test_nothing_is_reached_before_it_has_answered() -> None:
    reach = Reach()
    assert not reach.is_whole
    assert reach.next_at == inf
    reach.install(TWO, 5.0)
    assert not reach.has("a")
    assert not reach.has_any
    assert reach.next_at == 5.0
    assert reach.due(5.0) == [("a", "h:1"), ("b", "h:2")]
    assert reach.due(5.0) == []  # They are under way.
    assert reach.answered("a", "h:1")
    assert (reach.has("a"), reach.has("b"), reach.has_any, reach.is_whole) == (True, False, True, False)
    assert reach.answered("b", "h:2")
    assert reach.is_whole
    assert reach.next_at == inf


def test_a_silent_leaf_is_pinged_ever_less_often() -> None:
    reach = reached("a")
    now, pauses = 0.0, []
    for _ in range(9):
        assert reach.silent("b", "h:2", now, 0.0)
        pauses.append(reach.next_at - now)
        now = reach.next_at
        assert reach.due(now - 0.001) == []
        assert reach.due(now) == [("b", "h:2")]
    assert pauses[:3] == [FIRST_PING_PAUSE_S, 2 * FIRST_PING_PAUSE_S, 4 * FIRST_PING_PAUSE_S]
    assert pauses[-1] == LONGEST_PING_PAUSE_S
    reach.silent("b", "h:2", now, 1.0)
    assert reach.next_at - now == LONGEST_PING_PAUSE_S / 2  # Chance takes off up to half.


def test_few_pings_are_under_way_at_once_and_nobody_is_forgotten() -> None:
    addresses = {f"leaf-{number:02d}": f"h:{number}" for number in range(1, 2 * PINGS_MAX + 1)}
    reach = Reach()
    reach.install(addresses, 0.0)
    first = reach.due(0.0)
    assert len(first) == PINGS_MAX
    assert reach.due(0.0) == []
    assert reach.next_at == inf  # Until one has ended; a look before that would find nothing to do.
    assert reach.answered(*first[0])
    assert reach.next_at == 0.0
    seen = {leaf for leaf, _ in [*first, *reach.due(0.0)]}
    for leaf, address in first[1:]:
        reach.silent(leaf, address, 0.0, 0.5)
    seen |= {leaf for leaf, _ in reach.due(0.0)}
    assert seen == addresses.keys()


def test_a_leaf_that_moved_must_answer_at_its_new_address() -> None:
    reach = reached("a", "b")
    reach.install({"a": "h:9", "b": "h:2"}, 1.0)
    assert not reach.has("a")
    assert reach.has("b")
    assert reach.due(1.0) == [("a", "h:9")]
    assert not reach.answered("a", "h:1")  # A ping from before.
    assert not reach.silent("a", "h:1", 1.0, 0.0)
    assert not reach.has("a")
    assert reach.answered("a", "h:9")


def test_leaves_come_and_go_with_the_map() -> None:
    reach = reached("a", "b")
    reach.install({"b": "h:2"}, 1.0)
    assert list(reach.leaves) == ["b"]
    assert not reach.has("a")
    assert reach.is_whole
    reach.install({"b": "h:2", "c": ""}, 2.0)
    assert not reach.is_whole
    assert reach.due(2.0) == []  # It has never been up: there is nothing to ping.
    reach.install({"b": "h:2", "c": "h:3"}, 3.0)
    assert reach.due(3.0) == [("c", "h:3")]


def test_a_leaf_out_of_reach_for_long_is_lost() -> None:
    reach = reached("a", "b")
    reach.look(["a"], 10.0)
    assert reach.has("a")
    reach.look([], 11.0)  # It was back.
    reach.look(["a"], 12.0)
    reach.look(["a"], 12.0 + LOST_S - 0.1)
    assert reach.has("a")
    reach.look(["a"], 12.0 + LOST_S)
    assert not reach.has("a")
    assert reach.due(12.0 + LOST_S) == [("a", "h:1")]
    assert reach.answered("a", "h:1")
    reach.look([], 30.0)
    assert reach.is_whole


@st.composite
def events(draw: st.DrawFn) -> list[tuple]:
    leaf = st.sampled_from("abcdefghijkl")
    maps = st.dictionaries(leaf, st.sampled_from(["", "h:1", "h:2"]))
    event = st.one_of(
        st.tuples(st.just("install"), maps),
        st.tuples(st.just("due")),
        st.tuples(st.just("answered"), leaf, st.sampled_from(["h:1", "h:2"])),
        st.tuples(st.just("silent"), leaf, st.sampled_from(["h:1", "h:2"])),
        st.tuples(st.just("look"), st.lists(leaf)),
    )
    return draw(st.lists(event, max_size=40))


@given(events())
def test_its_invariant_holds_whatever_happens(happening: list[tuple]) -> None:
    reach, now = Reach(), 0.0
    for kind, *arguments in happening:
        now += 1.7
        if kind == "install":
            reach.install(*arguments, now)
        elif kind == "due":
            reach.due(now)
        elif kind == "answered":
            reach.answered(*arguments)
        elif kind == "silent":
            reach.silent(*arguments, now, 0.5)
        else:
            reach.look(*arguments, now)
        reach.check_invariants()


def test_setbacks_double_while_failures_go_on_and_are_forgiven() -> None:
    setbacks = Setbacks()
    assert setbacks.is_empty
    setbacks.note([3], 0.0)
    setbacks.note([3], 0.1)  # Of the same cause.
    assert setbacks.has(3, FIRST_SETBACK_S - 0.01)
    assert setbacks.now(0.0) == [3]
    assert not setbacks.has(4, 0.0)
    assert not setbacks.has(3, FIRST_SETBACK_S)
    setbacks.note([3], FIRST_SETBACK_S)
    assert setbacks.has(3, 3 * FIRST_SETBACK_S - 0.01)
    assert not setbacks.has(3, 3 * FIRST_SETBACK_S)
    setbacks.forgive(3 * FIRST_SETBACK_S)
    assert not setbacks.is_empty  # If it fails again now, it is the third time.
    setbacks.forgive((3 + 2 * FORGIVEN_AFTER) * FIRST_SETBACK_S)
    assert setbacks.is_empty


def test_setbacks_have_a_longest() -> None:
    setbacks, now = Setbacks(), 0.0
    for _ in range(20):
        setbacks.note([1], now)
        while setbacks.has(1, now):
            now += LONGEST_SETBACK_S / 64
    setbacks.note([1], now)
    assert not setbacks.has(1, now + LONGEST_SETBACK_S)
    assert setbacks.has(1, now + LONGEST_SETBACK_S - 0.01)
