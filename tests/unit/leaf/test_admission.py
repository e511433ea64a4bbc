import pytest

from kvshard.errors import DeadlineExceeded, ResourceExhausted
from leaf.admission import Admission


def test_requests_are_bounded() -> None:
    admission = Admission(max_requests=2, max_bytes=100)
    admission.enter(1, now=0.0, deadline=1.0)
    admission.enter(1, now=0.0, deadline=1.0)
    with pytest.raises(ResourceExhausted) as caught:
        admission.enter(1, now=0.0, deadline=1.0)
    assert caught.value.details.retry_after_ms
    admission.leave(1)
    admission.enter(1, now=0.0, deadline=1.0)
    assert repr(admission) == "Admission(requests=2, bytes=2, refused=1)"


def test_bytes_are_bounded_but_a_single_large_request_gets_in() -> None:
    admission = Admission(max_requests=10, max_bytes=100)
    admission.enter(500, now=0.0, deadline=1.0)
    with pytest.raises(ResourceExhausted):
        admission.enter(1, now=0.0, deadline=1.0)
    admission.leave(500)
    admission.enter(60, now=0.0, deadline=1.0)
    with pytest.raises(ResourceExhausted):
        admission.enter(60, now=0.0, deadline=1.0)


def test_what_came_too_late_is_not_begun() -> None:
    admission = Admission()
    with pytest.raises(DeadlineExceeded):
        admission.enter(1, now=1.0, deadline=1.0)
    assert admission.requests == 0
