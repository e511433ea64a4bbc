"""The synchronous client in processes that fork, and at the end of a process: each test is a program of its own.

gRPC does not survive a fork; what is shown here is that a program neither hangs nor loses its client by one.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest
from fakes.router_service import FakeRouter

TIMEOUT_S = 30.0
"""Far beyond what a program here takes, and an end for one that hangs."""

GRPC_SAYS = re.compile(r"absl::InitializeLog|skipping fork\(\) handlers")

PRELUDE = """
    import os, sys, threading, time
    from kvshard.errors import KvShardError
    from kvshard.sync import Client

    def child(work):
        '''Run it in a forked process and give its exit code: 0, 3 for a kvshard error, 1 for any other.'''
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        code = 1
        try:
            work()
            code = 0
        except KvShardError as error:
            print(f"{type(error).__name__}: {error.message}", flush=True)
            code = 3
        finally:
            os._exit(code)

    def write_and_read(name):
        kv.put(name, name.encode())
        assert kv.get(name).value == name.encode()

    kv = Client(sys.argv[1])
"""


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    with FakeRouter(has_lanes=True) as fake:
        yield fake


def program(text: str) -> list[str]:
    # Warnings are errors: Python warns of a fork beside threads, which is what must not be.
    return [sys.executable, "-W", "error", "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(text)]


def check(code: int, said: str, *, is_grpc_at_work: bool) -> None:
    """A program ended well, and said nothing. is_grpc_at_work: at a fork, of which gRPC itself says something then."""
    assert code == 0, said
    assert [line for line in said.splitlines() if not (is_grpc_at_work and GRPC_SAYS.search(line))] == []


def run(router: FakeRouter, text: str, *, is_grpc_at_work: bool = False) -> list[str]:
    """The lines that the program printed. It must end well."""
    with running(router, text) as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
    check(process.returncode, out + err if process.returncode else err, is_grpc_at_work=is_grpc_at_work)
    return out.splitlines()


@contextlib.contextmanager
def running(router: FakeRouter, text: str) -> Iterator["subprocess.Popen[str]"]:
    """The program, and an end for it and all that it has forked."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*program(text), router.address], text=True, start_new_session=True, **pipes) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_client_made_before_the_fork(router: FakeRouter) -> None:
    lines = run(router, "print(child(lambda: write_and_read('a')), child(lambda: write_and_read('b'))); write_and_read('c')")
    assert lines == ["0 0"]
    assert set(router.items["default"]) == {b"a", b"b", b"c"}


def test_a_client_used_before_the_fork_and_after_it_in_both(router: FakeRouter) -> None:
    lines = run(
        router,
        """
        docs = kv.collection("docs")
        docs.create({"title": "text"})
        for turn in range(3):
            write_and_read(f"parent-{turn}")
            print(child(lambda: (write_and_read(f"child-{turn}"), docs.put(f"d{turn}", {"title": "forked"}))))
        write_and_read("parent-again")
        print(len(os.listdir("/proc/self/task")) > 1)
        """,
    )
    assert lines == ["0", "0", "0", "True"]
    assert {b"child-0", b"child-1", b"child-2", b"parent-again"} <= set(router.items["default"])
    assert set(router.items["docs"]) == {b"d0", b"d1", b"d2"}


def test_a_pool_of_forked_processes(router: FakeRouter) -> None:
    lines = run(
        router,
        """
        import multiprocessing

        def write(number):
            return kv.put(f"pool-{number}", b"v") > 0

        kv.put("before", b"v")
        with multiprocessing.get_context("fork").Pool(3) as pool:
            print(all(pool.map(write, range(30))))
        """,
    )
    assert lines == ["True"]
    assert len(router.items["default"]) == 31


def test_forks_beside_threads_that_call(router: FakeRouter) -> None:
    lines = run(
        router,
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # The threads of this program are here, and they are known to be.
        over, failures, counts = threading.Event(), [], [0] * 4

        def work(number):
            while not over.is_set():
                try:
                    write_and_read(f"thread-{number}")
                    counts[number] += 1
                except BaseException as error:
                    failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        [thread.start() for thread in threads]
        codes = []
        for turn in range(5):
            before = list(counts)
            codes.append(child(lambda: write_and_read(f"child-{turn}")))
            while not all(now > then for now, then in zip(counts, before)):
                time.sleep(0.001)
        over.set()
        [thread.join() for thread in threads]
        print(codes, failures)
        """,
    )
    assert lines == ["[0, 0, 0, 0, 0] []"]


def test_a_fork_beside_a_call_that_hangs(router: FakeRouter) -> None:
    """The fork waits no longer than a second, the parent goes on, and the child gets an error instead of a call that hangs."""
    router.hold("ListCollections")
    text = """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        outcomes = []
        thread = threading.Thread(target=lambda: outcomes.append(kv.collections(timeout=20)))
        thread.start()
        print("calling", flush=True)
        sys.stdin.readline()
        began = time.monotonic()
        print(child(lambda: kv.get("k")), flush=True)
        assert time.monotonic() - began < 5
        thread.join()
        print([each.name for each in outcomes[0]])
    """
    with running(router, text) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "calling\n"
        while not router.requests["ListCollections"]:
            pass
        process.stdin.write("\n")
        process.stdin.flush()
        assert "forked from one in which gRPC was at work" in process.stdout.readline()
        assert process.stdout.readline() == "3\n"
        router.release("ListCollections")
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert out == "['default']\n"
    check(process.returncode, err, is_grpc_at_work=True)


def test_a_fork_beside_an_asyncio_client(router: FakeRouter) -> None:
    lines = run(
        router,
        """
        import asyncio
        from kvshard import Client as AsyncClient

        async def main():
            async with AsyncClient(sys.argv[1]) as beside:
                await beside.put("k", b"v")
                await asyncio.to_thread(write_and_read, "a")
                import warnings
                warnings.simplefilter("ignore", DeprecationWarning)
                print(child(in_thread), flush=True)
                await beside.put("k", b"w")
            await asyncio.to_thread(write_and_read, "b")

        def in_thread():
            outcome = []
            def work():
                try:
                    kv.get("k")
                except KvShardError as error:
                    outcome.append(error)
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            raise outcome[0]

        asyncio.run(main())
        """,
        is_grpc_at_work=True,
    )
    assert lines[0].startswith("FailedPrecondition: this process was forked from one in which gRPC was at work")
    assert lines[1] == "3"


def test_the_scan_of_another_process_is_refused_and_its_token_goes_on(router: FakeRouter) -> None:
    for number in range(5):
        router.put(b"k%d" % number, b"v")
    lines = run(
        router,
        """
        from kvshard.sync import scan as scan_module
        scan_module.BATCH_ITEMS = 1
        scan = kv.scan()
        print(next(scan).key)

        def work():
            token = scan.token
            try:
                next(scan)
            except KvShardError as error:
                print(error.message)
            scan.close()
            print([item.key for item in kv.scan(resume=token)], flush=True)

        print(child(work))
        """,
    )
    assert lines[-1] == "0"
    assert "the scan was begun before a fork; go on with scan(resume=token)" in lines
    assert "['k1', 'k2', 'k3', 'k4']" in lines


def test_a_program_that_closes_nothing_ends_cleanly_and_at_once(router: FakeRouter) -> None:
    lines = run(
        router,
        """
        import atexit
        write_and_read("a")
        scan = kv.scan()
        next(scan)
        began = time.monotonic()
        atexit._run_exitfuncs()
        print(time.monotonic() - began < 2)
        """,
    )
    assert lines == ["True"]
