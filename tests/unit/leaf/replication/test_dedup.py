"""The table of requests: what it knows, what it has forgotten, and that it is the same wherever the same was recorded."""

from hypothesis import given
from hypothesis import strategies as st

from leaf.replication.dedup import RESULT_OVERHEAD, DedupTable, Done, Expired
from leaf.replication.messages import RequestId


def test_a_request_is_found_by_client_and_number() -> None:
    table = DedupTable()
    assert table.find(RequestId("a", 1)) is None
    table.record(RequestId("a", 1), 7, b"r")
    assert table.find(RequestId("a", 1)) == Done(7, b"r")
    assert table.find(RequestId("a", 2)) is None
    assert table.find(RequestId("b", 1)) is None


def test_below_the_window_of_a_client_a_request_is_expired_and_not_new() -> None:
    table = DedupTable(window=3)
    for number in range(1, 6):
        table.record(RequestId("a", number), number, b"")
    assert [table.find(RequestId("a", number)) for number in (1, 2)] == [Expired.EXPIRED] * 2
    assert table.find(RequestId("a", 3)) == Done(3, b"")
    assert table.find(RequestId("a", 6)) is None


def test_a_low_number_that_was_in_flight_while_higher_ones_went_by_is_not_kept() -> None:
    table = DedupTable(result_bytes=2 * (RESULT_OVERHEAD + 10))
    for number in (2, 3, 4):
        table.record(RequestId("a", number), number, bytes(10))
    table.record(RequestId("a", 1), 5, b"")
    table.check_invariants()
    assert table.find(RequestId("a", 1)) is Expired.EXPIRED


def test_of_too_many_clients_the_one_that_wrote_least_recently_goes() -> None:
    table = DedupTable(clients=2)
    table.record(RequestId("a", 1), 1, b"")
    table.record(RequestId("b", 1), 2, b"")
    table.record(RequestId("a", 2), 3, b"")
    table.record(RequestId("c", 1), 4, b"")
    assert table.forgotten_through == 2
    assert table.find(RequestId("b", 1, since=1)) is Expired.EXPIRED, "it may have been done"
    assert table.find(RequestId("b", 1, since=2)) is None, "first sent after what was forgotten"
    assert table.find(RequestId("a", 1)) == Done(1, b"")


def test_a_client_that_comes_back_does_not_know_what_it_did_before() -> None:
    table = DedupTable(clients=1)
    table.record(RequestId("a", 1), 1, b"")
    table.record(RequestId("b", 1), 2, b"")
    table.record(RequestId("a", 2, since=2), 3, b"")
    assert table.find(RequestId("a", 1)) is Expired.EXPIRED


def test_results_have_a_bound_in_bytes() -> None:
    each = RESULT_OVERHEAD + 100
    table = DedupTable(result_bytes=4 * each)
    for number in range(1, 4):
        table.record(RequestId("a", number), number, bytes(100))
    table.record(RequestId("b", 1), 4, bytes(100))
    assert table.find(RequestId("a", 1)) == Done(1, bytes(100))
    table.record(RequestId("b", 2), 5, bytes(100))
    assert table.find(RequestId("a", 1)) is Expired.EXPIRED, "the client that wrote least recently went"
    for number in range(3, 8):
        table.record(RequestId("b", number), number + 3, bytes(100))
    table.check_invariants()
    assert table.find(RequestId("b", 3)) is Expired.EXPIRED, "then the oldest results"
    assert table.find(RequestId("b", 7)) == Done(10, bytes(100))


def test_one_huge_result_is_kept() -> None:
    table = DedupTable(result_bytes=10)
    table.record(RequestId("a", 1), 1, bytes(1_000))
    assert table.find(RequestId("a", 1)) == Done(1, bytes(1_000))


WRITES = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 12), st.integers(0, 60)), max_size=60)


@given(WRITES, st.integers(0, 60))
def test_a_table_restored_on_the_way_ends_the_same(writes: list[tuple[str, int, int]], at: int) -> None:
    one, other = (DedupTable(window=4, clients=3, result_bytes=300) for _ in range(2))
    for seqno, (client, number, size) in enumerate(writes, 1):
        if seqno == at:
            copy = DedupTable(window=4, clients=3, result_bytes=300)
            copy.restore(other.records(), other.forgotten_through)
            other = copy
        for table in (one, other):
            table.record(RequestId(client, number), seqno, bytes(size))
        one.check_invariants()
    assert (one.records(), one.forgotten_through) == (other.records(), other.forgotten_through)


@given(WRITES)
def test_what_was_done_is_never_taken_for_new(writes: list[tuple[str, int, int]]) -> None:
    table = DedupTable(window=4, clients=2, result_bytes=300)
    done: dict[RequestId, int] = {}
    for seqno, (client, number, size) in enumerate(writes, 1):
        request = RequestId(client, number)
        if table.find(request) is None:
            assert request not in done, "a second time"
            table.record(request, seqno, bytes(size))
            done[request] = seqno
        for known, its_seqno in done.items():
            found = table.find(known)
            assert found is Expired.EXPIRED or (isinstance(found, Done) and found.seqno == its_seqno)
