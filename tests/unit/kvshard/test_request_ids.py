"""Names of writes: unique, and near enough to each other that a shard's window holds all that are under way."""

from hypothesis import given
from hypothesis import strategies as st

from kvshard.request_ids import SPAN, WriteName, WriteNames


def test_one_at_a_time_is_one_client() -> None:
    names = WriteNames("f")
    for number in range(1, 3 * SPAN):
        name = names.take()
        assert name == WriteName("f-0", number)
        names.give_back(name)


def test_a_stuck_write_is_not_outrun() -> None:
    names = WriteNames("f")
    stuck = names.take()
    clients = set()
    for _ in range(2 * SPAN):
        name = names.take()
        clients.add(name.client)
        assert name.client != stuck.client or name.number - stuck.number < SPAN
        names.give_back(name)
    assert clients == {"f-0", "f-1"}
    names.give_back(stuck)
    assert names.take().client == "f-0"


@given(st.lists(st.integers(-1, 400), max_size=600))
def test_names_are_unique_and_close(steps: list[int]) -> None:
    """-1 begins a write, another number ends one of those under way."""
    names, under_way, seen = WriteNames("f"), [], set()
    for step in steps:
        if step < 0 or not under_way:
            for _ in range(40):
                under_way.append(names.take())
                assert under_way[-1] not in seen
                seen.add(under_way[-1])
        else:
            names.give_back(under_way.pop(step % len(under_way)))
        names.check_invariants()
    assert names.under_way == len(under_way)
