"""The shell around the statistics: what is asked of whom, and what an answer says when not all could be heard."""

from typing import Any

import pytest
from fakes.leaf_client import ANY_LEAF, FakeLeafClient
from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from prometheus_client import CollectorRegistry

from kvshard.clock import SystemClock
from kvshard.errors import InvalidArgument, Unavailable
from kvshard.model import ShardSearch, ShardTerms, TermStatistics
from kvshard.scatter.coverage import KnownCounts
from kvshard.scatter.requests import DEFAULT_READ_POLICY, SearchQuery
from kvshard.scatter.scatter import Scatter
from kvshard.scatter.tokens import TokenCodec
from kvshard.telemetry import RouterMetrics
from router.ranking import Rankings, StatisticsUsed
from router.search import SearchOperation
from router.statistics import Kind

CLOCK = SystemClock()


class Setting:
    """A router over these shards, with three documents each."""

    def __init__(self, shards: int = 2) -> None:
        maps = FakeMapSource(cluster_map(shards=shards, leaves=2))
        self.leaves = MemoryLeaves()
        self.metrics = RouterMetrics(CollectorRegistry())
        scatter = Scatter(maps, CLOCK, self.metrics, FakeLeafClient().ping)
        client = self.leaves.client
        self.rankings = Rankings(client, scatter, CLOCK, self.metrics)
        codec = TokenCodec("cluster")
        self.searches = SearchOperation(maps, client, scatter, KnownCounts(), codec, CLOCK, rankings=self.rankings)
        for shard in range(shards):
            for number in range(3):
                self.leaves.shards.setdefault((shard, 2), {})[b"%d-%d" % (shard, number)] = (b'{"title": "one two"}', 1)

    async def search(self, text: str = "one", **more: Any) -> StatisticsUsed:
        query = SearchQuery(text, [], 10, more.pop("sort", ""), [], 10, [], False, False, None, **more)
        found = await self.searches.search("docs", query, b"", DEFAULT_READ_POLICY, CLOCK.monotonic() + 5)
        assert found.total == 3 * len(self.leaves.shards)
        return found.statistics

    def asked(self, kind: type = ShardTerms) -> list[Any]:
        return [call.request for call in self.leaves.client.calls_of(kind)]


@pytest.fixture
def setting() -> Setting:
    return Setting()


async def test_the_pages_of_a_search_rank_by_what_the_first_one_ranked_by(setting: Setting) -> None:
    query = SearchQuery("one", [], 2, "", [], 10, [], False, False, None)

    async def page(token: bytes) -> Any:
        return await setting.searches.search("docs", query, token, DEFAULT_READ_POLICY, CLOCK.monotonic() + 5)

    first = await page(b"")
    second = await page(first.next_token)
    assert second.statistics.kind is Kind.EXACT, "nothing has changed since"
    setting.leaves.shards[0, 2][b"0-9"] = (b'{"title": "one two"}', 2)
    third = await page(second.next_token)
    assert (third.statistics.kind, third.statistics.extra_trips) == (Kind.CACHED, 0)
    shipped = [request.statistics for request in setting.asked(ShardSearch)]
    assert len(shipped) == 6
    assert shipped[0] is not None
    assert all(each == shipped[0] for each in shipped)
    assert (await page(b"")).statistics.whole != shipped[0], "a search that begins knows better"


async def test_a_word_costs_a_round_trip_once(setting: Setting) -> None:
    used = [await setting.search(text) for text in ("one", "one", "two", "one")]
    assert [(each.kind, each.extra_trips) for each in used] == [(Kind.EXACT, trips) for trips in (1, 0, 1, 0)]
    assert len(setting.asked()) == 4
    assert setting.metrics.statistics_trips._value.get() == 2
    whole = TermStatistics(6, {"title": 12}, {"title": {"one": 6}})
    assert [request.statistics for request in setting.asked(ShardSearch)[:2]] == [whole, whole]
    assert setting.rankings.families()[0].rows[0] == (("terms",), 4.0)


async def test_what_changed_meanwhile_is_said_and_learnt(setting: Setting) -> None:
    await setting.search()
    setting.leaves.shards[0, 2][b"0-0"] = (b'{"title": "one"}', 9)
    setting.leaves.seqno += 1
    assert (await setting.search()).kind is Kind.CACHED
    assert await setting.search() == StatisticsUsed(Kind.EXACT)


async def test_a_search_does_without_statistics_that_cannot_be_had(setting: Setting) -> None:
    setting.leaves.client.on(ANY_LEAF, ShardTerms, InvalidArgument("of no kind that I know"))
    used = await setting.search()
    # The answers tell what the router could not ask for; the second try has it.
    assert used.kind in {Kind.LOCAL, Kind.EXACT}
    setting.leaves.client.on(ANY_LEAF, ShardTerms, Unavailable("connection refused"))
    assert (await setting.search("two")).kind in {Kind.LOCAL, Kind.EXACT}


async def test_a_leaf_of_an_earlier_version_scores_by_itself(setting: Setting) -> None:
    def old(request: ShardSearch) -> Any:
        reply = setting.leaves._search(request)
        return type(reply)(reply.hits, reply.total, reply.documents)

    setting.leaves.client.on(ANY_LEAF, ShardSearch, old)
    assert (await setting.search()).kind is Kind.LOCAL


@pytest.mark.parametrize(
    ("more", "kind"), [({"is_local": True}, Kind.LOCAL), ({"sort": "_key"}, None), ({"text": "*"}, Kind.EXACT)]
)
async def test_without_need_nothing_is_asked(setting: Setting, more: dict[str, Any], kind: Kind | None) -> None:
    assert await setting.search(**more) == StatisticsUsed(kind)
    assert setting.asked() == []
    sent = {request.statistics for request in setting.asked(ShardSearch) if more.get("text") != "*"}
    assert sent <= {None}


async def test_one_shard_knows_by_itself() -> None:
    setting = Setting(shards=1)
    setting.leaves.client.on(ANY_LEAF, ShardSearch, lambda request: _told(setting.leaves, request))
    assert await setting.search() == StatisticsUsed(Kind.EXACT)
    assert setting.asked() == []
    assert [request.is_alone for request in setting.asked(ShardSearch)] == [True]


def _told(leaves: MemoryLeaves, request: ShardSearch) -> Any:
    reply = leaves._search(request)
    return type(reply)(reply.hits, reply.total, reply.documents, statistics=TermStatistics(3))
