"""The checks at the door: each names the field and the limit."""

from dataclasses import replace

import pytest

from kvshard import limits
from kvshard.errors import FailedPrecondition, InvalidArgument, MalformedQuery
from kvshard.scatter import requests
from kvshard.scatter.requests import DEFAULT_READ_POLICY, KeyRange, SearchQuery, each_alone, is_usual
from kvshard.scatter.watermarks import Watermarks
from kvshard.tail.hedging import Auto, FixedDelay, ReplicaChoice

SCHEMA = {"title": "text", "tag": "keyword", "year": "integer"}


def refused(call, field: str, limit: int | None = None) -> None:
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert caught.value.details.field == field
    assert caught.value.details.limit == limit
    assert limit is None or str(limit) in caught.value.message


@pytest.mark.parametrize("key", [b"", b"k" * 1025])
def test_key_of_a_wrong_length(key: bytes) -> None:
    refused(lambda: requests.check_key(key), "key", 1024)


@pytest.mark.parametrize("key", [b"k", b"k" * 1024])
def test_key_of_a_right_length(key: bytes) -> None:
    requests.check_key(key)


def test_value_and_ttl() -> None:
    requests.check_value(b"v" * limits.VALUE_MAX_BYTES)
    refused(lambda: requests.check_value(b"v" * (limits.VALUE_MAX_BYTES + 1)), "value", limits.VALUE_MAX_BYTES)
    requests.check_ttl(requests.TTL_MAX_MS)
    refused(lambda: requests.check_ttl(2**64 - 1), "ttl_ms", requests.TTL_MAX_MS)


def test_batch_of_too_many_keys() -> None:
    requests.check_keys([b"k"] * 10_000)
    refused(lambda: requests.check_keys([b"k"] * 10_001), "keys", 10_000)


def test_batch_names_the_bad_key() -> None:
    refused(lambda: requests.check_keys([b"a", b"b", b""]), "keys[2]", 1024)


def columns(keys=(b"a", b"b"), values=(b"1", b"2"), deletes=(), ttl_ms=(), conditions=()) -> requests.WriteColumns:
    return requests.write_columns(list(keys), list(values), list(deletes), list(ttl_ms), list(conditions))


def test_batch_write_columns() -> None:
    assert columns().values == [b"1", b"2"]
    assert columns(values=(b"", b"2"), deletes=(True, False)).values == [None, b"2"]
    assert columns(values=(), deletes=(True, True)).values == [None, None]
    assert columns(keys=(), values=()).keys == []


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"values": (b"1",)}, "values"),
        ({"values": ()}, "values"),
        ({"deletes": (True,)}, "deletes"),
        ({"ttl_ms": (1, 2, 3)}, "ttl_ms"),
        ({"conditions": (None,)}, "conditions"),
        ({"deletes": (True, False)}, "values[0]"),  # a delete with a value
    ],
)
def test_batch_write_columns_that_do_not_fit(changed: dict[str, tuple[object, ...]], field: str) -> None:
    refused(lambda: columns(**changed), field)


def test_batch_write_limits() -> None:
    large = b"v" * limits.VALUE_MAX_BYTES
    refused(lambda: columns(values=(b"", large + b"v")), "values[1]", limits.VALUE_MAX_BYTES)
    five = [b"k%d" % i for i in range(5)]
    refused(lambda: columns(five, [large] * 5), "values", limits.BATCH_MAX_BYTES)
    refused(lambda: columns(ttl_ms=(0, 2**63)), "ttl_ms[1]", requests.TTL_MAX_MS)


def test_conditions() -> None:
    assert requests.condition_of(None, None) is None
    assert requests.condition_of(5, None) == 5
    assert requests.condition_of(None, True) == 0
    refused(lambda: requests.condition_of(None, False, "conditions[3]"), "conditions[3].if_absent")
    refused(lambda: requests.condition_of(0, None), "condition.if_version")


@pytest.mark.parametrize(
    ("prefix", "start", "end", "expected"),
    [
        (b"", b"", b"", KeyRange(b"", None)),
        (b"ab", b"", b"", KeyRange(b"ab", b"ac")),
        (b"ab", b"abc", b"abd", KeyRange(b"abc", b"abd")),
        (b"ab", b"a", b"b", KeyRange(b"ab", b"ac")),
        (b"a\xff", b"", b"", KeyRange(b"a\xff", b"b")),
        (b"\xff\xff", b"", b"", KeyRange(b"\xff\xff", None)),
        (b"", b"m", b"c", KeyRange(b"m", b"c")),
    ],
)
def test_key_range(prefix: bytes, start: bytes, end: bytes, expected: KeyRange) -> None:
    assert requests.key_range(prefix, start, end) == expected


def test_empty_ranges() -> None:
    assert requests.key_range(b"", b"m", b"m").is_empty
    assert not requests.key_range(b"", b"", b"").is_empty
    refused(lambda: requests.key_range(b"p" * 1025, b"", b""), "prefix", 1024)


def test_read_policy() -> None:
    default = requests.read_policy(0, "", "", None, 0, False)
    assert default == requests.DEFAULT_READ_POLICY == requests.ReadPolicy(hedge=None, replica_choice=ReplicaChoice.ADAPTIVE)
    assert requests.read_policy(0, "auto", "", None, 0, False).hedge == Auto()
    chosen = requests.read_policy(2, "10ms", "primary", 0.5, 2, True)
    assert chosen == requests.ReadPolicy(True, FixedDelay(0.01), ReplicaChoice.PRIMARY, 0.5, True, True)


@pytest.mark.parametrize(
    ("arguments", "field", "limit"),
    [
        ((3, "", "", None, 0), "options.consistency", None),
        ((0, "often", "", None, 0), "options.hedge", None),
        ((0, "x" * 65, "", None, 0), "options.hedge", 64),
        ((0, "", "best", None, 0), "options.replica_choice", None),
        ((0, "", "", 1.01, 0), "options.min_coverage", 1),
        ((0, "", "", -0.1, 0), "options.min_coverage", 1),
        ((0, "", "", float("nan"), 0), "options.min_coverage", 1),
        ((0, "", "", None, 7), "options.on_shortfall", None),
    ],
)
def test_read_policy_that_is_none(arguments, field: str, limit: int | None) -> None:
    refused(lambda: requests.read_policy(*arguments, False), field, limit)


def search(**changed: object) -> SearchQuery:
    fields = {
        "query": "tail",
        "filters": [],
        "limit": 10,
        "sort": "",
        "facets": [],
        "facet_limit": 10,
        "highlight": [],
        "is_refresh_wanted": False,
        "is_keys_only": False,
        "shards": None,
    }
    return SearchQuery(**(fields | changed))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"limit": 0},
        {"limit": 1},
        {"limit": 1000},
        {"sort": "-year"},
        {"sort": "tag"},
        {"facets": ["tag"]},
        {"highlight": ["title"]},
    ],
)
def test_search_that_is_well(changed: dict[str, object]) -> None:
    requests.check_search(search(**changed), "docs", SCHEMA)


@pytest.mark.parametrize(
    ("changed", "field", "limit"),
    [
        ({"limit": 1001}, "limit", 1000),
        ({"facet_limit": 1001}, "facet_limit", 1000),
        ({"filters": ["x"] * 33}, "filters", 32),
        ({"sort": "nothing"}, "sort", None),
        ({"sort": "-title"}, "sort", None),
        ({"sort": "-"}, "sort", None),
        ({"facets": ["year"]}, "facets", None),
        ({"facets": ["tag", "tag"]}, "facets", None),
        ({"highlight": ["tag"]}, "highlight", None),
        ({"highlight": ["nothing"]}, "highlight", None),
    ],
)
def test_search_that_is_wrong(changed: dict[str, object], field: str, limit: int | None) -> None:
    refused(lambda: requests.check_search(search(**changed), "docs", SCHEMA), field, limit)


def test_malformed_query_points_at_the_place() -> None:
    with pytest.raises(MalformedQuery) as caught:
        requests.check_search(search(query='tail "lat'), "docs", SCHEMA)
    assert caught.value.details.position is not None
    assert caught.value.details.field == "query"


def test_malformed_filter_is_named() -> None:
    with pytest.raises(MalformedQuery) as caught:
        requests.check_search(search(filters=["tail", '"lat']), "docs", SCHEMA)
    assert caught.value.details.field == "filters[1]"


def test_search_without_schema() -> None:
    with pytest.raises(FailedPrecondition, match="default"):
        requests.check_search(search(), "default", {})


def test_texts_with_an_analyzer_are_texts() -> None:
    schema = {"body": "text(english)"}
    requests.check_search(search(sort="", facets=[], highlight=["body"], query="body:tail", filters=[]), "docs", schema)
    refused(lambda: requests.check_search(search(sort="body", facets=[], highlight=[]), "docs", schema), "sort", None)


def test_shards() -> None:
    assert requests.check_shards([2, 0, 2], {0: "", 1: "", 2: ""}) == [0, 2]
    refused(lambda: requests.check_shards([3], {0: ""}), "shards")


@pytest.mark.parametrize("name", ["a", "A-b_9", "x" * 64])
def test_collection_names(name: str) -> None:
    requests.check_collection_name(name)


@pytest.mark.parametrize("name", ["9a", "-a", "_a", "a b", "a/b", "é", "a\n"])
def test_collection_names_that_are_none(name: str) -> None:
    refused(lambda: requests.check_collection_name(name), "name")


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_collection_names_of_a_wrong_length(name: str) -> None:
    refused(lambda: requests.check_collection_name(name), "name", 64)


def test_request_identity() -> None:
    known = Watermarks({3: 8})
    identity = requests.request_identity("c" * 64, 2**63 - 1, True, known.encode())
    assert (identity.number, identity.is_retry, identity.known.of(3)) == (2**63 - 1, True, 8)


@pytest.mark.parametrize(
    ("client", "number", "watermarks", "field", "limit"),
    [
        ("", 1, b"", "request_id.client", 64),
        ("c" * 65, 1, b"", "request_id.client", 64),
        ("c", 0, b"", "request_id.number", 2**63 - 1),
        ("c", 2**63, b"", "request_id.number", 2**63 - 1),
        ("c", 1, Watermarks().encode(), "request_id.watermarks", None),
    ],
)
def test_request_identity_that_is_none(client: str, number: int, watermarks: bytes, field: str, limit: int | None) -> None:
    refused(lambda: requests.request_identity(client, number, False, watermarks), field, limit)


def test_request_identity_of_a_part() -> None:
    identity = requests.request_identity("c", 1, True, b"")
    assert requests.request_identity_of_part(identity, [], 0, 3) is identity
    part = requests.request_identity_of_part(identity, [0, 2, 9], 10, 3)
    assert (part.positions, part.total, part.number) == ((0, 2, 9), 10, 1)


@pytest.mark.parametrize(
    ("positions", "total", "field", "limit"),
    [
        ([0, 1], 10, "request_id.positions", None),
        ([0, 1, 10], 10, "request_id.positions", None),
        ([0, 2, 2], 10, "request_id.positions", None),
        ([2, 1, 3], 10, "request_id.positions", None),
        ([], 10, "request_id.positions", None),
        ([0, 1, 2], 0, "request_id.positions", None),
        ([0, 1, 2], 10_001, "request_id.total", 10_000),
    ],
)
def test_request_identity_of_a_part_that_is_none(positions: list[int], total: int, field: str, limit: int | None) -> None:
    identity = requests.request_identity("c", 1, True, b"")
    refused(lambda: requests.request_identity_of_part(identity, positions, total, 3), field, limit)


def test_keys_that_may_fail_alone_are_read_as_the_policy_says_otherwise() -> None:
    alone = each_alone(DEFAULT_READ_POLICY)
    assert alone == replace(DEFAULT_READ_POLICY, is_partial_accepted=True)
    assert is_usual(alone)
    stale = replace(DEFAULT_READ_POLICY, is_stale=True)
    assert each_alone(stale) == replace(stale, is_partial_accepted=True)
    assert not is_usual(each_alone(stale))
