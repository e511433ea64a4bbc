"""The places of a router's workers, and what several of them do as one."""

import pytest

from kvshard.errors import InvalidArgument
from kvshard.tail.status import LeafHealthStatus, LegKindStatus, TailStatus
from kvshard.workers import WORKERS_MAX, WorkerPlace, WorkerStatus, added_up, check_workers, worker_name

THREE = ("127.0.0.1:4001", "127.0.0.1:4002", "127.0.0.1:4003")


def test_who_is_alone_has_no_place_of_its_own():
    place = WorkerPlace(metrics_port=9100).checked()
    assert (place.name, place.names, place.is_shared, place.address, place.siblings) == ("router", ("router",), False, None, {})


def test_a_worker_knows_itself_and_the_others():
    place = WorkerPlace(2, THREE).checked()
    assert (place.name, place.is_shared, place.address) == ("router-2", True, "127.0.0.1:4002")
    assert place.names == ("router-1", "router-2", "router-3")
    assert place.siblings == {"router-1": "127.0.0.1:4001", "router-3": "127.0.0.1:4003"}


@pytest.mark.parametrize(
    ("place", "field"),
    [
        (WorkerPlace(0), "worker"),
        (WorkerPlace(2), "worker"),
        (WorkerPlace(4, THREE), "worker"),
        (WorkerPlace(1, ("127.0.0.1:1",) * (WORKERS_MAX + 1)), "worker-addresses"),
    ],
)
def test_places_that_there_are_not(place: WorkerPlace, field: str):
    with pytest.raises(InvalidArgument) as refusal:
        place.checked()
    assert refusal.value.details.field == field


def test_number_of_workers():
    assert [check_workers(count) for count in (1, WORKERS_MAX)] == [1, WORKERS_MAX]
    for count in (0, -1, WORKERS_MAX + 1):
        with pytest.raises(InvalidArgument) as refusal:
            check_workers(count)
        assert (refusal.value.details.field, refusal.value.details.limit) == ("workers", WORKERS_MAX)
    assert [worker_name(1, 1), worker_name(1, 2), worker_name(2, 2)] == ["router", "router-1", "router-2"]


def test_a_worker_with_an_error_is_not_up():
    assert WorkerStatus("router-1").is_up
    assert not WorkerStatus("router-1", error="it did not answer in time").is_up


def tail(budget: float, first_attempts: int, hedges: int, refused: dict[str, int]) -> TailStatus:
    kinds = (LegKindStatus("Get/point", 10, 1.0, 2.0, 3.0),)
    leaves = (LeafHealthStatus("leaf-1"),)
    return TailStatus("auto", 0.1, budget, 3, first_attempts, hedges, 10 * hedges, hedges, refused, kinds, leaves)


def test_one_worker_is_shown_as_it_is():
    alone = tail(0.05, 100, 1, {"budget": 2})
    assert added_up([alone]) is alone
    with pytest.raises(ValueError, match="nothing to add up"):
        added_up([])


def test_counts_of_several_are_added_and_the_budget_is_that_of_all_requests():
    both = added_up([tail(0.10, 300, 3, {"budget": 2, "storm": 1}), tail(0.02, 100, 1, {"budget": 5})])
    assert (both.first_attempts, both.hedges, both.hedges_total, both.hedges_won_total) == (400, 4, 40, 4)
    assert both.budget == pytest.approx((0.10 * 300 + 0.02 * 100) / 400)
    assert (both.budget_max, both.max_attempts, both.policy) == (0.1, 3, "auto")
    assert both.refused_total == {"budget": 7, "storm": 1}
    assert both.extra == pytest.approx(0.01)
    assert (both.kinds, both.leaves) == ((), ()), "quantiles of several processes cannot be added up"


def test_the_budget_of_workers_without_requests():
    assert added_up([tail(0.01, 0, 0, {}), tail(0.05, 0, 0, {})]).budget == 0.05
