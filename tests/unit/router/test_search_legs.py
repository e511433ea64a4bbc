"""Pages made of few hits of each shard: they are those that all hits of all shards would give."""

from dataclasses import replace
from typing import Any

import pytest
from fakes.leaf_client import FakeLeafClient
from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from prometheus_client import CollectorRegistry

from kvshard.clock import SystemClock
from kvshard.clustermap import WantedSplit
from kvshard.errors import ErrorDetails, Unavailable
from kvshard.model import SearchShape, ShardSearch, ShardSearchReply, changed
from kvshard.scatter.coverage import KnownCounts
from kvshard.scatter.hits_asked import hits_asked
from kvshard.scatter.ledger import ReadTimes
from kvshard.scatter.requests import DEFAULT_READ_POLICY, ReadPolicy, SearchQuery
from kvshard.scatter.scatter import Scatter
from kvshard.scatter.tokens import TokenCodec
from kvshard.search_accounts import LegProfile
from kvshard.splitting import divided
from kvshard.telemetry import RouterMetrics
from router.search import Found, SearchOperation

CLOCK = SystemClock()
SHARDS = 8
LIMIT = 10
FEW = hits_asked(LIMIT, [1] * SHARDS)[0]
QUERY = SearchQuery("one", [], LIMIT, "", [], 10, [], False, False, None)


def document(score: int, tag: str = "x") -> bytes:
    return b'{"title": "%s", "tag": "%s", "year": %d}' % (b" ".join([b"one"] * score), tag.encode(), score)


class Setting:
    """A router over eight shards. homes: the shard of each document; the first one has the best score."""

    def __init__(self, homes: list[int]) -> None:
        self.maps = FakeMapSource(cluster_map(shards=SHARDS, leaves=2))
        self.leaves = MemoryLeaves()
        self.metrics = RouterMetrics(CollectorRegistry())
        self.scatter = Scatter(self.maps, CLOCK, self.metrics, FakeLeafClient().ping)
        codec = TokenCodec("cluster")
        client = self.leaves.client
        self.searches = SearchOperation(self.maps, client, self.scatter, KnownCounts(), codec, CLOCK, metrics=self.metrics)
        self.homes = homes
        for place, shard in enumerate(homes):
            self.leaves.shards.setdefault((shard, 2), {})[b"key-%03d" % place] = (document(len(homes) - place), place + 1)

    async def page(
        self,
        query: SearchQuery = QUERY,
        token: bytes = b"",
        policy: ReadPolicy = DEFAULT_READ_POLICY,
        times: ReadTimes | None = None,
    ) -> Found:
        return await self.searches.search("docs", query, token, policy, CLOCK.monotonic() + 5, times)

    def asked(self) -> list[ShardSearch]:
        return [call.request for call in self.leaves.client.calls_of(ShardSearch)]

    def keys(self, first: int = 0, last: int = LIMIT) -> list[bytes]:
        return [b"key-%03d" % place for place in range(first, min(last, len(self.homes)))]


def keys_of(found: Found) -> list[bytes]:
    return [hit.key for _, hit in found.hits]


EVEN = [place * 3 % SHARDS for place in range(64)]
CROWDED = [2] * 14 + EVEN
TWO_CROWDED = [2] * 6 + [3] * 6 + EVEN


async def test_each_shard_is_asked_for_few_hits() -> None:
    setting = Setting(EVEN)
    found = await setting.page()
    assert keys_of(found) == setting.keys()
    assert found.total == len(EVEN)
    assert [request.limit for request in setting.asked()] == [FEW] * SHARDS
    assert setting.metrics.short_pages._value.get() == 0


async def test_a_shard_that_has_just_what_was_asked_for_is_not_asked_again() -> None:
    """Its next hit scores less than the page's last one, which it says; in another order it is asked for that hit."""
    for sort, most in (("", FEW), ("-year", FEW + 1)):
        setting = Setting([2] * FEW + [0, 1, 3, 4, 5] + [2] * 9 + EVEN)
        found = await setting.page(replace(QUERY, sort=sort))
        assert keys_of(found) == setting.keys()
        assert [request.limit for request in setting.asked()] == [most] * SHARDS


@pytest.mark.parametrize(
    "more", [{"shape": SearchShape(collapse="tag")}, {"limit": 1}, {"shards": [2]}], ids=["collapsed", "one hit", "one shard"]
)
async def test_where_the_shards_do_not_share_the_page_all_hits_are_asked_for(more: dict[str, Any]) -> None:
    setting = Setting(EVEN)
    query = replace(QUERY, **more)
    await setting.page(query)
    assert {request.limit for request in setting.asked()} == {query.limit}
    assert {request.together for request in setting.asked()} <= {0, query.limit}


@pytest.mark.parametrize("sort", ["", "-year", "year", "_key", "tag,-year"])
@pytest.mark.parametrize("homes", [EVEN, CROWDED, TWO_CROWDED, [5] * 40, [0] * 3])
async def test_pages_are_those_of_all_hits(homes: list[int], sort: str) -> None:
    setting = Setting(homes)
    order = setting.keys(last=len(homes))
    if sort == "year":
        order.reverse()
    seen, token = [], b""
    while True:
        found = await setting.page(replace(QUERY, sort=sort), token)
        seen += keys_of(found)
        assert (found.total, found.coverage.is_complete) == (len(homes), True)
        assert len(found.hits) == LIMIT or not found.next_token
        token = found.next_token
        if not token:
            break
    assert seen == order


async def test_a_shard_that_has_more_is_asked_again_alone_for_all() -> None:
    setting = Setting(CROWDED)
    times = ReadTimes(CLOCK.monotonic())
    query = replace(QUERY, facets=["tag"], is_profile_wanted=True, shape=SearchShape(fields=["tag"]))

    def told(request: ShardSearch) -> ShardSearchReply:
        profile = LegProfile([], [], 0, 1, 1, 1, request.limit)
        return changed(setting.leaves._search(request), profile=profile, indexed_through=request.limit)

    setting.leaves.client.on("leaf-1", ShardSearch, told)
    found = await setting.page(query, times=times)
    assert keys_of(found) == setting.keys()
    assert [(facet.values, facet.error_bound) for facet in found.facets] == [([("x", len(CROWDED))], 0)]
    assert (found.total, found.is_total_exact) == (len(CROWDED), True)
    *first, again = setting.asked()
    assert sorted(request.shard for request in first) == [*range(SHARDS)]
    assert (again.shard, again.limit, again.facets, again.together) == (2, LIMIT, [], 0)
    assert again.shape == SearchShape(fields=["tag"], count_up_to=0)
    assert again.statistics == first[0].statistics
    assert found.statistics.extra_trips == 1, "for statistics, before it began"
    assert (found.coverage.legs, found.coverage.legs_ok) == (SHARDS, SHARDS)
    assert [leg.shard for leg in times.timing(CLOCK.monotonic()).legs] == sorted([*range(SHARDS), 2])
    assert [(leg.shard, leg.profile.hits) for leg in found.profiles if leg.shard == 2] == [(2, LIMIT), (2, FEW)]
    assert setting.metrics.short_pages._value.get() == 1


async def test_shards_that_may_have_more_are_asked_again_together() -> None:
    setting = Setting(TWO_CROWDED)
    found = await setting.page(replace(QUERY, limit=14))
    assert keys_of(found) == setting.keys(last=14)
    few = hits_asked(14, [1] * SHARDS)[0]
    assert [request.limit for request in setting.asked()] == [few] * SHARDS, "six are enough"
    setting = Setting([2] * 8 + [3] * 8 + EVEN)
    found = await setting.page(replace(QUERY, limit=16))
    assert keys_of(found) == setting.keys(last=16)
    assert sorted(request.shard for request in setting.asked()[SHARDS:]) == [2, 3]


async def test_what_is_written_in_between_is_neither_lost_nor_there_twice() -> None:
    """The best hit is deleted, the next one becomes the worst, and a new one comes first."""
    setting = Setting(CROWDED)

    def then_written(request: ShardSearch) -> ShardSearchReply:
        reply = setting.leaves._search(request)
        if request.shard == 2 and request.limit == FEW:
            held = setting.leaves.shards[2, 2]
            del held[b"key-000"]
            held[b"key-001"] = (document(1), 1_000)
            held[b"new"] = (document(999), 1_001)
        return reply

    setting.leaves.client.on("leaf-1", ShardSearch, then_written)
    found = await setting.page()
    assert keys_of(found) == [b"new", *setting.keys(2, 11)]
    assert found.total == len(CROWDED)


async def test_a_split_between_the_two_times_has_all_of_them_asked_anew() -> None:
    setting = Setting(CROWDED)
    current = setting.maps.current
    child = SHARDS
    parent, made = divided(replace(current.shards[2], split=WantedSplit(child, current.shards[2].middle_slot)))

    def then_split(request: ShardSearch) -> ShardSearchReply:
        reply = setting.leaves._search(request)
        if request.shard == 2 and not setting.leaves.cuts:
            setting.leaves.split(2, child, made.first_slot)
            setting.maps.upcoming = replace(current, version=2, shards={**current.shards, 2: parent, child: made})
        return reply

    setting.leaves.client.on("leaf-1", ShardSearch, then_split)
    found = await setting.page(replace(QUERY, facets=["tag"]))
    assert keys_of(found) == setting.keys()
    assert (found.total, found.coverage.legs, found.coverage.is_complete) == (len(CROWDED), SHARDS + 1, True)
    assert found.facets[0].values == [("x", len(CROWDED))]
    last = {request.shard: (request.limit, request.together) for request in setting.asked()[-SHARDS - 1 :]}
    assert last == dict.fromkeys(range(SHARDS + 1), (LIMIT, 0))


async def test_a_shard_that_fails_the_second_time_has_failed() -> None:
    setting = Setting(CROWDED)
    gone = Unavailable("connection refused", ErrorDetails(shards=(2,)))

    def once(request: ShardSearch) -> Any:
        return gone if request.shard == 2 and request.limit == LIMIT else setting.leaves._search(request)

    setting.leaves.client.on("leaf-1", ShardSearch, once)
    with pytest.raises(Unavailable) as caught:
        await setting.page()
    assert caught.value.details.shards == (2,)
    found = await setting.page(policy=ReadPolicy(is_partial_accepted=True))
    others = [key for key, shard in zip(setting.keys(last=99), CROWDED, strict=True) if shard != 2]
    assert keys_of(found) == others[:LIMIT]
    assert [leg.shard for leg in found.coverage.failed] == [2]
    assert not found.coverage.is_complete


async def test_where_pages_keep_coming_up_short_all_hits_are_asked_for() -> None:
    setting = Setting([5] * 40)
    for _ in range(12):
        assert keys_of(await setting.page()) == setting.keys()
    limits = [request.limit for request in setting.asked()[-SHARDS:]]
    assert limits == [LIMIT] * SHARDS
    assert setting.metrics.short_pages._value.get() == 4


async def test_a_leaf_that_left_hits_out_is_asked_again_only_for_a_page_that_may_have_them() -> None:
    setting = Setting(EVEN)
    left_out = {"below": 0.0}

    def some(request: ShardSearch) -> ShardSearchReply:
        assert request.together in (0, LIMIT)
        reply = setting.leaves._search(request)
        if not request.together:
            return reply
        kept = [hit for hit in reply.hits if hit.score >= left_out["below"]]
        return changed(reply, hits=kept, has_more=True, complete_to=left_out["below"])

    setting.leaves.client.on("leaf-1", ShardSearch, some)
    left_out["below"] = float(len(EVEN) - LIMIT + 1)  # The score of the page's last hit.
    assert keys_of(await setting.page()) == setting.keys()
    assert len(setting.asked()) == SHARDS
    left_out["below"] += 1
    assert keys_of(await setting.page()) == setting.keys()
    assert len(setting.asked()) > 2 * SHARDS
    assert {request.together for request in setting.asked()[2 * SHARDS :]} == {0}
