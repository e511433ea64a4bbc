"""What a read asked for, in a few words."""

import pytest

from kvshard.v1 import kv_pb2, query_pb2, search_pb2
from router.ledger_wire import ReadRequest, detail_of
from router.slowlog import DETAIL_MAX_CHARS

TERM = query_pb2.Query(term=query_pb2.TermQuery(field="tag", value="a"))
HUGE = query_pb2.Query(match=query_pb2.MatchQuery(text="a" * 1_000_000))


@pytest.mark.parametrize(
    ("request_", "detail"),
    [
        (kv_pb2.GetRequest(key=b"user:1"), "key 'user:1'"),
        (kv_pb2.GetRequest(key=b"a\n\xff"), r"key 'a\n\\xff'"),
        (kv_pb2.BatchGetRequest(keys=[b"k"] * 1000), "1,000 keys"),
        (kv_pb2.ScanRequest(), "all keys"),
        (kv_pb2.ScanRequest(prefix=b"a", limit=5, keys_only=True), "prefix 'a', limit 5, keys only"),
        (kv_pb2.ScanRequest(start=b"a", end=b"b"), "from 'a', to 'b'"),
        (search_pb2.SearchRequest(), "*"),
        (search_pb2.SearchRequest(structured=TERM), '*, structured term { field: "tag" value: "a" }'),
        (search_pb2.SearchRequest(query="a", structured=HUGE), "a, structured match"),
        (search_pb2.SearchRequest(query="tail", filters=["year:2013"], facets=["tag"], shards=[3]), None),
    ],
)
def test_in_a_few_words(request_: ReadRequest, detail: str | None) -> None:
    assert detail_of(request_) == (detail or "tail, filter year:2013, facets tag, shards 3")


@pytest.mark.parametrize(
    "request_",
    [
        kv_pb2.GetRequest(key=b"k" * 1024),
        kv_pb2.ScanRequest(prefix=b"k" * 1024, start=b"k" * 1024, end=b"k" * 1024),
        search_pb2.SearchRequest(query="q" * 100_000, filters=["f" * 100_000] * 5),
    ],
)
def test_is_short(request_: ReadRequest) -> None:
    detail = detail_of(request_)
    assert len(detail) == DETAIL_MAX_CHARS
    assert detail.endswith("…")
