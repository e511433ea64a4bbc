"""Leased keys: taken, kept, lost and given up, through lost answers and ended leases."""

import pytest
from fakes.clock import ManualClock
from fakes.coordinator import MemoryCoordinator

from kvshard.coordination.base import Compare, CoordinatorUnavailable
from kvshard.coordination.leases import BALANCER_KEY, RENEWALS_PER_TTL, LeasedKey, alive_key, read_alive

TTL_S = 5.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def coordinator(clock: ManualClock) -> MemoryCoordinator:
    return MemoryCoordinator(clock=clock)


def office(coordinator: MemoryCoordinator, clock: ManualClock, who: str) -> LeasedKey:
    return LeasedKey(coordinator, BALANCER_KEY, who.encode(), TTL_S, clock, is_exclusive=True)


async def test_one_holds_it_until_its_lease_ends(coordinator: MemoryCoordinator, clock: ManualClock) -> None:
    first, second = office(coordinator, clock, "a"), office(coordinator.handle(), clock, "b")
    assert await first.renew()
    assert not await second.renew()
    assert (first.is_held, second.is_held) == (True, False)
    for _ in range(10):
        clock.advance(first.interval_s)
        assert await first.renew()
        assert not await second.renew()
    clock.advance(TTL_S + 0.1)
    assert not first.is_held, "it stops to act before anybody else may begin"
    assert await second.renew()
    assert not await first.renew()
    assert (first.is_held, second.is_held) == (False, True)


async def test_given_up_it_is_free_at_once(coordinator: MemoryCoordinator, clock: ManualClock) -> None:
    first, second = office(coordinator, clock, "a"), office(coordinator, clock, "b")
    await first.renew()
    await first.release()
    assert not first.is_held
    assert await second.renew()
    await first.release()
    assert second.is_held


async def test_the_lease_counts_from_when_it_was_asked_for(coordinator: MemoryCoordinator, clock: ManualClock) -> None:
    key = office(coordinator, clock, "a")
    original = coordinator.keep_alive

    async def slow(lease: int) -> None:
        await original(lease)
        clock.advance(TTL_S - 1)

    await key.renew()
    coordinator.keep_alive = slow  # type: ignore[method-assign]
    await key.renew()
    clock.advance(1.0)
    assert not key.is_held


async def test_an_own_write_whose_answer_was_lost_is_known_again(coordinator: MemoryCoordinator, clock: ManualClock) -> None:
    key = office(coordinator, clock, "a")
    coordinator.lose_answers = 1
    with pytest.raises(CoordinatorUnavailable):
        await key.renew()
    assert not key.is_held
    assert await key.renew()
    assert (await coordinator.txn([key.guard()], [])).has_succeeded
    assert len(coordinator.store.leases) == 1


async def test_an_earlier_life_of_a_leaf_is_replaced_and_does_not_take_the_key_with_it(
    coordinator: MemoryCoordinator, clock: ManualClock
) -> None:
    before = LeasedKey(coordinator, alive_key("leaf-1"), b"1", TTL_S, clock, is_exclusive=False)
    await before.renew()
    clock.advance(TTL_S - 1)
    now = LeasedKey(coordinator, alive_key("leaf-1"), b"2", TTL_S, clock, is_exclusive=False)
    await now.renew()
    clock.advance(2)
    assert await read_alive(coordinator) == {"leaf-1"}
    await now.release()
    assert await read_alive(coordinator) == frozenset()


async def test_a_refused_renewal_leaves_what_is_held_as_it_is(coordinator: MemoryCoordinator, clock: ManualClock) -> None:
    key = office(coordinator, clock, "a")
    await key.renew()
    coordinator.refuse = RENEWALS_PER_TTL - 1
    for _ in range(RENEWALS_PER_TTL - 1):
        clock.advance(key.interval_s)
        with pytest.raises(CoordinatorUnavailable):
            await key.renew()
        assert key.is_held
    assert await key.renew()
    assert (await coordinator.txn([Compare(BALANCER_KEY, 1)], [])).has_succeeded, "never lost, so never written again"
