"""What is particular to etcd: endpoints that fail, restarts, compaction, lost answers, login and encryption."""

import asyncio
import contextlib
import pathlib
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from harness.etcd import EtcdServer, free_ports, text

from kvshard.clock import SystemClock
from kvshard.clustermap import Leaf
from kvshard.coordination import mapwriter
from kvshard.coordination.base import ABSENT, Compare, Coordinator, CoordinatorUnavailable, Event, HistoryCompacted, Put
from kvshard.coordination.connect import connect
from kvshard.coordination.mapstore import BootstrapPlan, MapStore, bootstrap

WAIT_S = 20


@pytest.fixture
def etcd(tmp_path: pathlib.Path) -> Iterator[EtcdServer]:
    server = EtcdServer(tmp_path)
    try:
        yield server.start()
    finally:
        server.stop()


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Coordinator]:
    coordinator = connect(url, SystemClock())
    try:
        yield coordinator
    finally:
        await coordinator.close()


async def put(store: Coordinator, key: str, value: bytes = b"") -> int:
    """Write a key, however long that takes."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(CoordinatorUnavailable):
                return (await store.txn([], [Put(key, value)])).revision
            await asyncio.sleep(0.05)


class Follower:
    """The events of a watch, as they come."""

    def __init__(self, store: Coordinator, after: int) -> None:
        self.events: list[Event] = []
        self.task = asyncio.create_task(self._follow(store, after))

    async def _follow(self, store: Coordinator, after: int) -> None:
        async for events in store.watch("", after):
            self.events += events

    async def until(self, revision: int) -> list[int]:
        """The revisions seen, once this one is among them."""
        async with asyncio.timeout(WAIT_S):
            while revision not in [event.revision for event in self.events]:
                assert not self.task.done(), self.task
                await asyncio.sleep(0.01)
        return [event.revision for event in self.events]

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


class Proxy:
    """Stands before a server. lose_answer: the next request gets through, but the connection dies before its answer does."""

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.partition(":")
        self.lose_answer = False
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_connection(self._host, int(self._port))
        self._writers |= {writer, back_writer}
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pump(reader, back_writer, is_answer=False))
            group.create_task(self._pump(back_reader, writer, is_answer=True))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                if is_answer and self.lose_answer:
                    # The first bytes may be about the connection itself; the server is done some moments later.
                    await asyncio.sleep(0.3)
                    self.lose_answer = False
                    break
                writer.write(data)
                await writer.drain()
        self.cut()

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def close(self) -> None:
        self._server.close()
        self.cut()
        await self._server.wait_closed()


async def test_a_watch_goes_on_after_a_restart(etcd: EtcdServer) -> None:
    async with opened(etcd.url()) as writer, opened(etcd.url()) as reader:
        start = await put(writer, "a")
        follower = Follower(reader, start)
        first = await put(writer, "a")
        await follower.until(first)
        for number in range(2):
            etcd.stop(signal.SIGKILL if number else signal.SIGTERM)
            with pytest.raises(CoordinatorUnavailable):
                await reader.get("a")
            etcd.start()
            last = await put(writer, "a")
            assert await follower.until(last) == list(range(first, last + 1))
        await follower.end()


async def test_a_watch_sees_what_happened_while_it_was_cut_off(etcd: EtcdServer) -> None:
    proxy = Proxy(etcd.endpoint)
    through = await proxy.start()
    async with opened(etcd.url()) as writer, opened(f"etcd://{through}") as reader:
        start = await put(writer, "a")
        follower = Follower(reader, start)
        for _ in range(5):
            proxy.cut()
            last = [await put(writer, "a") for _ in range(10)][-1]
            seen = await follower.until(last)
            assert seen == list(range(start + 1, last + 1))
        await follower.end()
    await proxy.close()


async def test_dead_endpoints_are_passed_over(etcd: EtcdServer) -> None:
    dead, also_dead = free_ports(2)
    async with opened(f"etcd://127.0.0.1:{dead},127.0.0.1:{also_dead},{etcd.endpoint}") as store:
        began = time.monotonic()
        revision = (await store.txn([Compare("a", ABSENT)], [Put("a", b"1")])).revision
        follower = Follower(store, revision)
        assert await follower.until(await put(store, "a"))
        assert time.monotonic() - began < 3
        await follower.end()


async def test_another_endpoint_takes_over(etcd: EtcdServer) -> None:
    """The endpoint in use vanishes: calls and the watch go on at the other one."""
    proxy = Proxy(etcd.endpoint)
    through = await proxy.start()
    async with opened(f"etcd://{through},{etcd.endpoint}") as store:
        revision = await put(store, "a", b"1")
        follower = Follower(store, revision)
        await follower.until(await put(store, "a", b"2"))
        await proxy.close()
        assert (await store.get("a")) is not None
        await follower.until(await put(store, "a", b"3"))
        await follower.end()


async def test_endpoints_of_two_clusters_are_refused(etcd: EtcdServer, tmp_path: pathlib.Path) -> None:
    (tmp_path / "other").mkdir()
    other = EtcdServer(tmp_path / "other", flags=("--initial-cluster-token=other",))
    other.start()
    try:
        async with opened(f"etcd://{etcd.endpoint},{other.endpoint}") as store:
            await put(store, "a")
            etcd.stop()
            with pytest.raises(CoordinatorUnavailable, match="belongs to etcd cluster"):
                await store.get("a")
    finally:
        other.stop()


async def test_a_member_that_hangs_costs_a_bounded_time(etcd: EtcdServer) -> None:
    async with opened(etcd.url()) as store:
        await put(store, "a")
        etcd.pause()
        try:
            began = time.monotonic()
            with pytest.raises(CoordinatorUnavailable):
                await store.txn([], [Put("a", b"maybe")])
            assert time.monotonic() - began < 7
        finally:
            etcd.send(signal.SIGCONT)
        assert await put(store, "a", b"after")


async def test_an_answer_that_was_lost_is_an_unknown_outcome(etcd: EtcdServer) -> None:
    """The transaction took effect, the caller hears "unknown": never "failed", and it is not sent again."""
    proxy = Proxy(etcd.endpoint)
    through = await proxy.start()
    async with opened(f"etcd://{through},{etcd.endpoint}") as store, opened(etcd.url()) as look:
        assert await store.get("n") is None
        proxy.lose_answer = True
        with pytest.raises(CoordinatorUnavailable):
            await store.txn([Compare("n", ABSENT)], [Put("n", b"1")])
        item = await look.get("n")
        assert item is not None
        revision = item.revision
        assert (await store.get_prefix("")).revision == revision
    await proxy.close()


async def test_an_ambiguous_bootstrap_is_read_again(etcd: EtcdServer) -> None:
    proxy = Proxy(etcd.endpoint)
    through = await proxy.start()
    async with opened(f"etcd://{through}") as store:
        assert await store.get("x") is None
        proxy.lose_answer = True
        assert await bootstrap(store, BootstrapPlan((Leaf("one"),), 300))
        assert not await bootstrap(store, BootstrapPlan((Leaf("one"),), 300))
        assert len((await store.get_prefix("map/shard/")).items) == 300
    await proxy.close()


async def test_a_watch_that_was_cut_off_too_long_says_so(etcd: EtcdServer) -> None:
    proxy = Proxy(etcd.endpoint)
    through = await proxy.start()
    async with opened(etcd.url()) as writer, opened(f"etcd://{through}") as reader:
        follower = Follower(reader, await put(writer, "a"))
        await follower.until(await put(writer, "a"))
        await proxy.close()
        last = [await put(writer, "a") for _ in range(5)][-1]
        etcd.compact(last - 1)
        back = await asyncio.start_server(proxy._serve, *through.split(":"))
        with pytest.raises(HistoryCompacted):
            await asyncio.wait_for(follower.task, WAIT_S)
        back.close()
        proxy.cut()
        await back.wait_closed()


async def test_a_map_is_followed_through_restart_and_compaction(etcd: EtcdServer) -> None:
    clock = SystemClock()
    async with opened(etcd.url()) as writer, opened(etcd.url()) as reader:
        assert await bootstrap(writer, BootstrapPlan((Leaf("one"),), 4))
        maps = MapStore(reader, clock)
        await maps.start()
        await mapwriter.register_leaf(writer, "one", "a:1", "", 1.0)
        etcd.stop()
        assert maps.current.shards
        etcd.start()
        await put(writer, "elsewhere")
        await mapwriter.register_leaf(writer, "one", "a:2", "", 1.0)
        etcd.compact(etcd.revision())
        async with asyncio.timeout(WAIT_S):
            while maps.current.leaf_address("one") != "a:2":
                await maps.wait_newer(maps.current.version)
        await maps.close()


async def test_login(etcd: EtcdServer, tmp_path: pathlib.Path) -> None:
    """A token that etcd has forgotten (it restarted) is replaced without the caller's noticing; a wrong password is told."""
    etcd.call("auth/user/add", {"name": "root", "password": "top"})
    etcd.call("auth/user/grant", {"user": "root", "role": "root"})
    etcd.call("auth/user/add", {"name": "kv", "password": "secret"})
    etcd.call("auth/role/add", {"name": "kv"})
    permission = {"permType": "READWRITE", "key": text("mine/"), "range_end": text("mine0")}
    etcd.call("auth/role/grant", {"name": "kv", "perm": permission})
    etcd.call("auth/user/grant", {"user": "kv", "role": "kv"})
    etcd.call("auth/enable", {})
    (tmp_path / "password").write_text("secret\n")
    query = f"?user=kv&password-file={tmp_path / 'password'}"
    async with opened(etcd.url("mine", query)) as store:
        assert await put(store, "a")
        follower = Follower(store, await put(store, "a"))
        etcd.stop()
        etcd.start_without_probe()
        assert await follower.until(await put(store, "a"))
        await follower.end()
    for wrong in (etcd.url("other", query), etcd.url("mine", "?user=kv&password=wrong"), etcd.url("mine")):
        async with opened(wrong) as store:
            with pytest.raises(CoordinatorUnavailable) as caught:
                await store.get("a")
            assert "secret" not in str(caught.value)


def make_certificates(folder: pathlib.Path) -> None:
    """A CA, and a certificate by it for 127.0.0.1 that serves both ends."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make certificates with")
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    new = ["req", "-newkey", "rsa:2048", "-nodes"]
    signing = ["-days", "2", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
    steps = [
        [*new, "-x509", "-days", "2", "-subj", "/CN=test-ca", "-keyout", "ca.key", "-out", "ca.pem"],
        [*new, "-subj", "/CN=member", "-keyout", "key.pem", "-out", "request"],
        ["x509", "-req", "-in", "request", *signing, "-extfile", "extensions", "-out", "cert.pem"],
    ]
    for step in steps:
        subprocess.run([openssl, *step], cwd=folder, check=True, capture_output=True, timeout=30)


async def test_encryption(tmp_path: pathlib.Path) -> None:
    make_certificates(tmp_path)
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")}
    flags = (f"--cert-file={files['cert']}", f"--key-file={files['key']}", f"--trusted-ca-file={files['ca']}")
    server = EtcdServer(tmp_path, flags=(*flags, "--client-cert-auth"), scheme="https")
    server.start()
    try:
        query = f"?cacert={files['ca']}&cert={files['cert']}&key={files['key']}"
        async with opened(server.url("", query)) as store:
            assert await put(store, "a", b"1")
            follower = Follower(store, await put(store, "a", b"2"))
            await follower.until(await put(store, "a", b"3"))
            await follower.end()
        for lacking in ("", f"?cacert={files['ca']}", f"?cacert={tmp_path / 'none.pem'}"):
            async with opened(server.url("", lacking)) as store:
                with pytest.raises(CoordinatorUnavailable):
                    await store.get("a")
    finally:
        server.stop()
