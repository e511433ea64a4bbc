import pytest

from benchmarks.samples import busiest_functions, layer, layers

FOLDED = """\
main (router/__main__.py:40);run (uvloop/__init__.py:92);_read (kvshard/rpc/lane.py:10) 30
main (router/__main__.py:40);run (uvloop/__init__.py:92);_read (kvshard/rpc/lane.py:14) 20
main (router/__main__.py:40);run (uvloop/__init__.py:92);encode (msgspec/json.py:3) 40

main (router/__main__.py:40);run (uvloop/__init__.py:92) 10
"""


def test_functions_count_where_they_run_themselves_whatever_the_line():
    found = [(part.name, part.share) for part in busiest_functions(FOLDED)]
    assert found == [("_read (kvshard/rpc/lane.py)", 0.5), ("encode (msgspec/json.py)", 0.4), ("run (uvloop/__init__.py)", 0.1)]


def test_layers_are_packages_and_our_rooms():
    assert [(part.name, part.share) for part in layers(FOLDED)] == [("kvshard/rpc", 0.5), ("msgspec", 0.4), ("uvloop", 0.1)]


def test_threads_that_wait_are_not_counted():
    waiting = "main (a.py:9);_worker (concurrent/futures/thread.py:81) 900\nThread.run (threading.py:1) 5\n"
    assert busiest_functions(FOLDED + waiting) == busiest_functions(FOLDED)
    assert layers(FOLDED + waiting) == layers(FOLDED)


def test_no_samples_give_no_parts():
    assert busiest_functions("") == []
    assert layers("\n") == []


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ("get (kvshard/client/keyspace.py:120)", "kvshard/client"),
        ("get (/home/me/kvshard/kvshard/errors.py:12)", "kvshard"),
        ("handle (/home/me/kvshard/leaf/replication/machine.py:12)", "leaf/replication"),
        ("get (kvshard/errors.py:12)", "kvshard"),
        ("handle (leaf/service.py:5)", "leaf"),
        ("call (grpc/aio/_call.py:500)", "grpc"),
        ("call (/venv/lib/python3.11/site-packages/grpc/aio/_call.py:500)", "grpc"),
        ("poll (/usr/lib/python3.11/selectors.py:9)", "selectors"),
        ("epoll_wait (libc.so.6)", "libc.so.6"),
        ("unknown", "unknown"),
    ],
)
def test_a_frame_belongs_to_a_layer(frame, expected):
    assert layer(frame) == expected
