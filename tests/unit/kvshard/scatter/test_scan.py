"""Scans: order over shards, pages and tokens, dead and dying shards, leaving early."""

import asyncio
from collections import Counter
from contextlib import aclosing

import pytest
from fakes.leaf_client import ANY_LEAF, FakeLeafClient, Hang
from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from prometheus_client import CollectorRegistry

from kvshard.clock import SystemClock
from kvshard.errors import DeadlineExceeded, InvalidToken, ResourceExhausted, Unavailable
from kvshard.model import ShardScan, ShardScanReply
from kvshard.scatter import scan as scan_module
from kvshard.scatter import scan_chunks
from kvshard.scatter.coverage import KnownCounts
from kvshard.scatter.ledger import ScanTimes
from kvshard.scatter.requests import DEFAULT_READ_POLICY, ReadPolicy, key_range
from kvshard.scatter.scan import ScanOperation, ScanPage, ScanRequest
from kvshard.scatter.scatter import Scatter
from kvshard.scatter.tokens import TokenCodec
from kvshard.telemetry import RouterMetrics

CLOCK = SystemClock()
PARTIAL = ReadPolicy(is_partial_accepted=True)
KEYS = [b"key-%03d" % number for number in range(100)]


class Setting:
    def __init__(self) -> None:
        self.maps = FakeMapSource(cluster_map(shards=4, leaves=4))
        self.leaves = MemoryLeaves()
        self.known = KnownCounts()
        scatter = Scatter(self.maps, CLOCK, RouterMetrics(CollectorRegistry()), FakeLeafClient().ping)
        codec = TokenCodec("cluster")
        self.operation = ScanOperation(self.maps, self.leaves.client, scatter, self.known, codec, CLOCK)
        for key in KEYS:
            self.leaves.shards.setdefault((self.maps.current.shard_of_key(key), 1), {})[key] = (b"v" + key, 1)

    def scan(
        self,
        prefix=b"",
        start=b"",
        end=b"",
        limit=0,
        token=b"",
        policy=DEFAULT_READ_POLICY,
        keys_only=False,
        timeout_s=None,
        times=None,
    ):
        request = ScanRequest(key_range(prefix, start, end), (prefix, start, end), limit, keys_only, token)
        deadline = float("inf") if timeout_s is None else CLOCK.monotonic() + timeout_s
        return self.operation.scan("", request, policy, deadline, times)

    async def pages(self, **arguments) -> list[ScanPage]:
        async with aclosing(self.scan(**arguments)) as pages:
            return [page async for page in pages]

    async def keys(self, **arguments) -> list[bytes]:
        return [key for page in await self.pages(**arguments) for key in page.keys]

    def living_on(self, leaf: str) -> list[bytes]:
        current = self.maps.current
        return [key for key in KEYS if current.shards[current.shard_of_key(key)].primary == leaf]


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(scan_chunks, "CHUNK_FIRST_KEYS", 7)
    monkeypatch.setattr(scan_chunks, "CHUNK_MAX_KEYS", 7)
    monkeypatch.setattr(scan_module, "PAGE_MAX_KEYS", 10)
    monkeypatch.setattr(scan_module, "PAGE_MIN_KEYS", 1)
    return Setting()


async def test_leaving_early_cancels_and_awaits_the_fetches(setting: Setting) -> None:
    """The stream is left at its first page while the next chunks are being fetched."""
    hangs = {leaf: Hang() for leaf in setting.maps.current.leaves}
    for leaf, hang in hangs.items():
        setting.leaves.client.on(leaf, ShardScan, setting.leaves._scan, hang)
    async with aclosing(setting.scan()) as pages:
        first = await anext(pages)
        assert first.keys
        await anext(pages)
        for _ in range(5):
            await asyncio.sleep(0)
        assert [leaf for leaf, hang in hangs.items() if hang.reached.is_set()]
    assert not [call for call in setting.leaves.client.calls if call.fate == "waiting"]


async def test_cancelled_scan_cancels_its_fetches(setting: Setting) -> None:
    hang = Hang()
    setting.leaves.client.on("leaf-2", ShardScan, hang)
    call = asyncio.create_task(setting.pages())
    await hang.reached.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert hang.cancelled == 1


async def test_all_keys_in_order(setting: Setting) -> None:
    pages = await setting.pages()
    assert [key for page in pages for key in page.keys] == KEYS
    assert [value for page in pages for value in page.values] == [b"v" + key for key in KEYS]
    assert all(len(page.keys) <= 10 for page in pages)
    assert [page.coverage is None for page in pages] == [True] * (len(pages) - 1) + [False]
    last = pages[-1]
    assert last.token == b""
    assert last.coverage is not None
    assert (last.coverage.legs, last.coverage.legs_ok, last.coverage.documents_considered) == (4, 4, 100)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"prefix": b"key-01"}, KEYS[10:20]),
        ({"start": b"key-095"}, KEYS[95:]),
        ({"end": b"key-003"}, KEYS[:3]),
        ({"prefix": b"key-0", "start": b"key-05", "end": b"key-052"}, KEYS[50:52]),
        ({"limit": 13}, KEYS[:13]),
        ({"limit": 1000}, KEYS),
        ({"prefix": b"nothing"}, []),
        ({"start": b"b", "end": b"a"}, []),
    ],
)
async def test_bounds(setting: Setting, arguments: dict[str, object], expected: list[bytes]) -> None:
    assert await setting.keys(**arguments) == expected


async def test_keys_only(setting: Setting) -> None:
    (page,) = await setting.pages(limit=2, keys_only=True)
    assert list(zip(page.keys, page.values, strict=True)) == [(KEYS[0], b""), (KEYS[1], b"")]


async def test_small_limit_reads_no_more_than_it_needs(setting: Setting) -> None:
    await setting.pages(limit=2)
    assert [call.request.limit for call in setting.leaves.client.calls_of(ShardScan)] == [2] * 4


async def test_a_short_scan_asks_each_shard_for_its_share_and_comes_as_one_page(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "PAGE_MAX_KEYS", 1_000)
    monkeypatch.setattr(scan_chunks, "CHUNK_MAX_KEYS", 1_000)
    pages = await setting.pages(limit=40)
    assert [list(page.keys) for page in pages] == [KEYS[:40]]
    asked = [call.request.limit for call in setting.leaves.client.calls_of(ShardScan)]
    assert asked[:4] == [18] * 4
    assert len(asked) <= 5, "one shard may have had more than its share"


async def test_a_scan_under_one_routing_key_asks_its_shard_alone(setting: Setting) -> None:
    shard = setting.maps.current.shard_of_key(b"{user}")
    keys = [b"{user}:%02d" % number for number in range(30)]
    setting.leaves.shards[shard, 1] = dict.fromkeys(keys, (b"v", 1))
    pages = await setting.pages(prefix=b"{user}:")
    assert [key for page in pages for key in page.keys] == keys
    assert {call.request.shard for call in setting.leaves.client.calls_of(ShardScan)} == {shard}
    coverage = pages[-1].coverage
    assert coverage is not None
    assert (coverage.is_complete, coverage.legs, coverage.documents_considered) == (True, 1, 30)


async def test_a_shard_with_all_keys_of_a_short_scan_is_asked_for_all_that_is_left(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "PAGE_MAX_KEYS", 1_000)
    monkeypatch.setattr(scan_chunks, "CHUNK_MAX_KEYS", 1_000)
    keys = [b"a{tag}%03d" % number for number in range(500)]
    shard = setting.maps.current.shard_of_key(keys[0])
    setting.leaves.shards[shard, 1] |= dict.fromkeys(keys, (b"v", 1))
    assert await setting.keys(start=b"a", limit=300) == keys[:300]
    asked = [call.request.limit for call in setting.leaves.client.calls_of(ShardScan) if call.request.shard == shard]
    assert asked == [94, 300], "nobody else has more"
    others = [call.request.shard for call in setting.leaves.client.calls_of(ShardScan) if call.request.shard != shard]
    assert sorted(others) == sorted(set(others)), "what the others had was enough"


async def test_chunks_are_bounded_by_bytes(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_chunks, "CHUNK_MAX_BYTES", 4_096)
    for held in setting.leaves.shards.values():
        held.update(dict.fromkeys(held, (b"x" * 1000, 1)))
    assert await setting.keys() == KEYS
    asked = [call.request for call in setting.leaves.client.calls_of(ShardScan)]
    assert {request.max_bytes for request in asked} == {4_096}
    assert len(asked) > 25, "seven keys would fit but for their bytes"
    assert setting.operation.memory.held == 0


async def test_what_a_scan_holds_is_given_back_when_it_is_left(setting: Setting) -> None:
    memory = setting.operation.memory
    async with aclosing(setting.scan()) as pages:
        await anext(pages)
        assert memory.held > 0
        before = memory.held
        await anext(pages)
        assert memory.held != before
    assert memory.held == 0
    setting.leaves.fail("leaf-2", Unavailable("connection refused"))
    with pytest.raises(Unavailable):
        await setting.pages()
    assert memory.held == 0


async def test_a_scan_is_refused_while_the_others_hold_too_much(setting: Setting) -> None:
    setting.operation.memory = scan_chunks.ScanMemory(bytes=100, max_bytes=200)
    async with aclosing(setting.scan()) as pages:
        assert (await anext(pages)).keys[0] == KEYS[0]
        with pytest.raises(ResourceExhausted):
            await setting.pages()
        rest = [key async for page in pages for key in page.keys]
    assert rest[-1] == KEYS[-1], "the one under way goes on with little"
    assert await setting.keys() == KEYS


async def test_while_memory_is_short_a_slow_reader_has_nothing_fetched_ahead(setting: Setting) -> None:
    setting.operation.memory = scan_chunks.ScanMemory(bytes=1, max_bytes=1 << 20)
    async with aclosing(setting.scan()) as pages:
        await anext(pages)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(setting.leaves.client.calls_of(ShardScan)) == 4


async def test_few_rows_wait_for_more_while_chunks_are_on_the_way(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "PAGE_MIN_KEYS", 10)
    sizes = [len(page.keys) for page in await setting.pages()]
    assert sizes == [10] * 10


async def test_resumes_after_every_page(setting: Setting) -> None:
    for page in (await setting.pages())[:-1]:
        position = KEYS.index(page.keys[-1])
        assert await setting.keys(token=page.token) == KEYS[position + 1 :]


async def test_pages_of_a_limited_scan(setting: Setting) -> None:
    seen: list[bytes] = []
    token = b""
    while True:
        pages = await setting.pages(prefix=b"key-0", limit=9, token=token)
        seen.extend(key for page in pages for key in page.keys)
        token = pages[-1].token
        if not token:
            break
    assert seen == KEYS


async def test_token_of_another_scan_is_refused(setting: Setting) -> None:
    page = (await setting.pages(limit=5))[-1]
    with pytest.raises(InvalidToken):
        await setting.pages(prefix=b"key", token=page.token)


async def test_account_sums_the_chunks_of_each_shard(setting: Setting) -> None:
    times = ScanTimes(CLOCK.monotonic())
    assert [key for page in await setting.pages(times=times) for key in page.keys] == KEYS
    timing = times.timing(CLOCK.monotonic())
    fetches = [call.request.shard for call in setting.leaves.client.calls_of(ShardScan)]
    assert [(row.shard, row.attempts) for row in timing.legs] == sorted(Counter(fetches).items())
    assert max(row.attempts for row in timing.legs) > 1
    assert (times.fan_out, len(times.leg_times_us())) == (4, 4)
    assert 0 <= timing.merge_us <= timing.total_us


async def test_account_has_the_dead_shard_of_a_scan_that_fails(setting: Setting) -> None:
    setting.leaves.fail("leaf-2", Unavailable("connection refused"))
    times = ScanTimes(CLOCK.monotonic())
    with pytest.raises(Unavailable):
        await setting.pages(times=times)
    assert [row.shard for row in times.timing(CLOCK.monotonic()).legs if not row.leaf] == [1]


async def test_dead_shards_fail_the_scan_and_are_all_named(setting: Setting) -> None:
    setting.leaves.fail("leaf-2", Unavailable("connection refused"))
    setting.leaves.fail("leaf-4", Unavailable("connection refused"))
    with pytest.raises(Unavailable) as caught:
        await setting.pages()
    assert caught.value.details.shards == (1, 3)


async def test_shard_that_dies_under_way_fails_the_scan(setting: Setting) -> None:
    setting.leaves.client.on("leaf-2", ShardScan, setting.leaves._scan, Unavailable("connection broke"))
    seen: list[bytes] = []

    async def read() -> None:
        async with aclosing(setting.scan()) as pages:
            async for page in pages:
                seen.extend(page.keys)

    with pytest.raises(Unavailable) as caught:
        await read()
    assert caught.value.details.shards == (1,)
    assert seen == KEYS[: len(seen)], "what was emitted before has no gap"


async def test_partial_scan_says_what_is_missing(setting: Setting) -> None:
    await setting.pages()  # The sizes of all shards are known now.
    setting.leaves.fail("leaf-2", Unavailable("connection refused"))
    pages = await setting.pages(policy=PARTIAL)
    missing = setting.living_on("leaf-2")
    assert [key for page in pages for key in page.keys] == [key for key in KEYS if key not in missing]
    coverage = pages[-1].coverage
    assert coverage is not None
    coverage.check_invariants()
    assert [leg.shard for leg in coverage.failed] == [1]
    assert (coverage.documents_considered, coverage.documents_total) == (100 - len(missing), 100)


@pytest.mark.parametrize("policy", [PARTIAL, ReadPolicy(min_coverage=0.1)], ids=["partial", "min_coverage"])
async def test_a_shard_that_hangs_leaves_time_for_the_others(setting: Setting, policy: ReadPolicy) -> None:
    await setting.pages()  # The sizes of all shards are known now.

    setting.maps.install(cluster_map(shards=4, leaves=4, replicas=2))
    hang = Hang()
    setting.leaves.client.on(
        ANY_LEAF, ShardScan, lambda request: hang(request) if request.shard == 1 else setting.leaves._scan(request)
    )
    pages = await setting.pages(policy=policy, timeout_s=0.5)
    missing = setting.living_on("leaf-2")
    assert [key for page in pages for key in page.keys] == [key for key in KEYS if key not in missing]
    coverage = pages[-1].coverage
    assert coverage is not None
    assert [leg.shard for leg in coverage.failed] == [1]


async def test_the_end_of_a_streams_time_is_not_taken_for_silent_shards(setting: Setting) -> None:
    """Its reader was slow, every shard is well: a partial scan must not end there as if the rest were missing."""
    setting.maps.install(cluster_map(shards=4, leaves=4, replicas=2))
    async with aclosing(setting.scan(policy=PARTIAL, timeout_s=0.05)) as pages:
        first = await anext(pages)
        await asyncio.sleep(0.06)
        with pytest.raises(DeadlineExceeded, match="deadline"):
            async for page in pages:
                first = page
    rest = await setting.keys(policy=PARTIAL, token=first.token)
    assert rest[-1] == KEYS[-1]


async def test_scan_that_continues_an_incomplete_one_says_so(setting: Setting) -> None:
    setting.leaves.fail("leaf-2", Unavailable("connection refused"))
    first = (await setting.pages(policy=PARTIAL, limit=20))[-1]
    assert first.coverage is not None
    assert not first.coverage.is_complete
    setting.leaves.serve("leaf-2")
    rest = (await setting.pages(token=first.token))[-1]
    assert rest.coverage is not None
    assert rest.coverage.legs == rest.coverage.legs_ok == 4
    assert not rest.coverage.is_complete


async def test_each_page_says_whether_something_is_missing_from_it(setting: Setting) -> None:
    setting.leaves.client.on("leaf-2", ShardScan, setting.leaves._scan, Unavailable("connection broke"))
    pages = await setting.pages(policy=PARTIAL)
    said = [page.is_incomplete for page in pages]
    assert said == sorted(said), "once something is missing, everything after it is incomplete"
    assert (said[0], said[-1]) == (False, True), "what came before the shard was lost is whole"


async def test_a_scan_that_may_lack_something_is_judged_when_every_shard_was_heard(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shard fails at once, the others are slow: it must not be weighed against nothing."""
    monkeypatch.setattr(scan_module, "OTHER_FAILURES_WAIT_S", 0.0)
    await setting.pages()  # The sizes of all shards are known now.
    may_answer = asyncio.Event()

    async def slow(request: ShardScan) -> ShardScanReply:
        await may_answer.wait()
        return setting.leaves._scan(request)

    setting.leaves.client.on(ANY_LEAF, ShardScan, slow)
    setting.leaves.client.on("leaf-2", ShardScan, Unavailable("connection refused"))
    scan = asyncio.create_task(setting.pages(policy=ReadPolicy(min_coverage=0.5)))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not scan.done()
    may_answer.set()
    coverage = (await scan)[-1].coverage
    assert coverage is not None
    assert (coverage.legs, coverage.legs_ok) == (4, 3)
    with pytest.raises(Unavailable, match="1 of 4 shards"):
        await setting.pages(policy=ReadPolicy(min_coverage=0.99))


async def test_slow_reader_has_at_most_one_chunk_a_shard_fetched_ahead(setting: Setting) -> None:
    async with aclosing(setting.scan()) as pages:
        await anext(pages)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(setting.leaves.client.calls_of(ShardScan)) <= 8


async def test_empty_chunks_that_get_further_are_fine(setting: Setting) -> None:
    step = ShardScanReply([], [], [], [], has_more=True, resume=b"key-05", documents=5)
    end = ShardScanReply([], [], [], [], has_more=False, resume=b"", documents=5)
    setting.leaves.client.on("leaf-1", ShardScan, step, end)
    seen = await setting.keys()
    assert seen == [key for key in KEYS if key not in setting.living_on("leaf-1")]


async def test_shard_that_does_not_get_further_fails_instead_of_looping(setting: Setting) -> None:
    setting.leaves.client.on("leaf-1", ShardScan, ShardScanReply([], [], [], [], has_more=True, resume=b""))
    with pytest.raises(Unavailable, match="does not get further"):
        await setting.pages()
