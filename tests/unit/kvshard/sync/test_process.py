"""The gate that calls pass and a fork shuts, and the thread behind it. Nothing is forked here, and gRPC is not touched."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from kvshard.errors import Cancelled, FailedPrecondition
from kvshard.sync import process as process_module
from kvshard.sync.loop_thread import LoopThread
from kvshard.sync.process import Process


@pytest.fixture(autouse=True)
def no_foreign_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have left gRPC at work, which would be no rest."""
    monkeypatch.setattr(process_module, "_native_threads", dict)


@pytest.fixture
def process() -> Iterator[Process]:
    made = Process()
    yield made
    made.end()


async def answer() -> str:
    return threading.current_thread().name


def test_calls_share_one_thread_that_outlives_them(process: Process):
    first, second = process.enter(), process.enter()
    assert first is second
    assert first.run(answer) == "kvshard-sync"
    process.leave()
    process.leave()
    assert process.enter() is first
    process.leave()
    assert process.entered == 0


def test_rest_ends_the_thread_and_the_next_call_starts_another(process: Process):
    assert process.rest(), "there is none yet"
    first = process.enter()
    process.leave()
    assert process.rest()
    assert not first.is_alive
    assert process.enter() is not first
    process.leave()


def test_no_rest_while_a_call_is_under_way(process: Process, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process_module, "FORK_WAIT_S", 0.01)
    thread = process.enter()
    assert not process.rest()
    assert thread.is_alive
    process.leave()
    assert process.rest()


def test_rest_begins_as_soon_as_the_last_call_is_over(process: Process, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process_module, "FORK_WAIT_S", 60.0)
    thread = process.enter()
    outcomes: list[bool] = []
    resting = threading.Thread(target=lambda: outcomes.append(process.rest()))
    resting.start()
    thread.run(answer)
    process.leave()
    resting.join(30)
    assert outcomes == [True]


def test_a_fork_keeps_calls_out_until_it_is_over(process: Process):
    assert process.before_fork()
    entered: list[LoopThread] = []
    caller = threading.Thread(target=lambda: entered.append(process.enter()))
    caller.start()
    assert entered == []
    process.after_fork()
    caller.join(30)
    assert len(entered) == 1
    process.leave()


def test_a_process_that_gRPC_cannot_work_in_refuses(process: Process):
    process.refusal = "for a reason"
    with pytest.raises(FailedPrecondition, match="for a reason"):
        process.enter()
    assert (process.entered, process.thread) == (0, None)


def test_the_end_of_the_process_cancels_what_is_under_way(process: Process):
    thread = process.enter()
    begun = threading.Event()
    outcomes: list[BaseException] = []

    async def hang() -> None:
        begun.set()
        await asyncio.Event().wait()

    def call() -> None:
        try:
            thread.run(hang)
        except BaseException as error:
            outcomes.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    assert begun.wait(30)
    process.end()
    caller.join(30)
    assert [type(error) for error in outcomes] == [Cancelled]
    with pytest.raises(FailedPrecondition, match="the process ends"):
        process.enter()
    with pytest.raises(FailedPrecondition, match="has ended"):
        thread.run(answer)


def test_threads_of_grpc_are_waited_for(monkeypatch: pytest.MonkeyPatch):
    looks = iter([{"7": "event_engine\n"}, {"9": "python\n"}, {"1": "of a library\n"}])
    monkeypatch.setattr(process_module, "_native_threads", lambda: next(looks))
    assert process_module._is_gone({"1": "of a library\n"})
    assert list(looks) == []


def test_threads_of_grpc_that_stay_are_no_rest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process_module, "_native_threads", lambda: {"7": "grpc_global_tim\n"})
    monkeypatch.setattr(process_module, "FORK_WAIT_S", 0.005)
    assert not process_module._is_gone({"7": "grpc_global_tim\n"})
