import inspect

import msgspec
import pytest

from kvshard.errors import DataLoss, ErrorDetails, ErrorRecord, Internal, VersionConflict
from kvshard.fault_model import FaultOrder, FaultReport
from kvshard.lane_messages import (
    DocumentsSearch,
    DocumentsSearchReply,
    KeysRead,
    KeysReadReply,
    KeysScan,
    KeysScanReply,
    KeysWrite,
    KeysWriteReply,
)
from kvshard.model import (
    CollectionCountRecord,
    HighlightFragment,
    LeafStatusReply,
    LeafStatusRequest,
    ReplicaStatusRecord,
    SearchAfter,
    ShardHit,
    ShardRead,
    ShardReadReply,
    ShardScan,
    ShardScanReply,
    ShardSearch,
    ShardSearchReply,
    ShardTerms,
    ShardTermsReply,
    ShardWrite,
    ShardWriteReply,
    TermStatistics,
)
from kvshard.rpc.codec import (
    METHODS,
    READ,
    READ_KEYS,
    WRITE,
    WRITE_KEYS,
    LaneCall,
    decode,
    decode_error,
    decode_reply,
    encode,
    encode_error,
    handler_of,
    immediate_handler_of,
)
from kvshard.v1 import lane_pb2

CONFLICT = ErrorRecord("VERSION_CONFLICT", "no", ErrorDetails(current_version=3, shards=(1, 2), replicas_tried=("a",)))

MESSAGES = [
    FaultOrder(clear=True, ids=["f1"]),
    FaultReport([], cleared=1),
    ShardRead(1, 2, 3, [b"", b"\x00\xff", b"k" * 1024]),
    ShardReadReply([b"", None, b"v"], [1, 0, 2**63], [0, 0, 9], {1: CONFLICT}, documents=7),
    ShardWrite(1, 2, 3, [b"a", b"b"], [b"", None], [5, 0], [None, 0], wait_for_refresh=True),
    ShardWriteReply([4, 0], [True, False], {1: CONFLICT}),
    ShardScan(1, 2, 3, b"", None, 10, keys_only=True),
    ShardScanReply([b"a"], [b""], [1], [], True, b"b", 4),
    ShardSearch(1, 2, 3, "tail AND latency", ["year:2010"], 10, "-year", ["tag"], 3, ["body"], True, True),
    ShardSearch(1, 2, 3, "*", [], 10, "-year,x", after=SearchAfter([1.5, None, "t", 2**62], 0.1, b"\xff"), taken=20),
    ShardSearchReply(
        [
            ShardHit(b"k", 1.5, b"{}", 2, [-3], [HighlightFragment("body", "a tail", [(2, 6)])]),
            ShardHit(b"l", 0.0, b"{}", 2, ["text", None]),
            ShardHit(b"m", 0.0, b"{}", 2, [2.5]),
            ShardHit(b"n", 0.0, b"{}", 2),
        ],
        4,
        9,
        {"tag": {"x": 1}},
        {"tag": 2},
        8,
        True,
    ),
    ShardTerms(1, 2, 3, [("body", "Tail latency", False), ("body", "lat", True)], {"tag": ["k78"]}, cuts=1),
    ShardTermsReply(TermStatistics(7, {"body": 70}, {"body": {"tail": 3}}, 9), [[("body", "tail")], []]),
    KeysRead("docs", [b"", b"\x00\xff"], b"options", True),
    KeysReadReply([b"", None, b"v"], [1, 0, 2**63], [0, 0, 9], b"rest"),
    KeysWrite("docs", [b"a", b"b"], [b"", None], [5, 0], [None, 0], True, b"id", True),
    KeysWriteReply([4, 0], [True, False], b"rest"),
    DocumentsSearch(b"request"),
    DocumentsSearchReply(b"response"),
    KeysScan(b"request"),
    KeysScanReply([b"a", b"b"], [b"", b"v"], [1, 2**63], [0, 9], True, b"rest"),
    LeafStatusRequest(),
    LeafStatusReply(
        "leaf-1", [ReplicaStatusRecord(1, 2, "primary", 3, 3, [CollectionCountRecord(1, 2, 3, 4)])], 9, 1.5, 1, 2, "0.1.0"
    ),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_round_trip(message: object) -> None:
    assert decode(type(message), encode(message)) == message


def test_every_method_of_the_contract_has_a_request() -> None:
    numbers = set(lane_pb2.LaneMethod.values()) - {
        lane_pb2.LANE_METHOD_UNSPECIFIED,
        lane_pb2.LANE_METHOD_CANCEL,
        lane_pb2.LANE_METHOD_PING,
    }
    assert {number for number, _ in METHODS.values()} == numbers
    assert {type(message) for message in MESSAGES} == {
        kind for request, (_, reply) in METHODS.items() for kind in (request, reply)
    }


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\x80", msgspec.msgpack.encode({"shard": "one"}), encode(LeafStatusRequest())]
)
def test_what_is_no_request_is_an_error(payload: bytes) -> None:
    with pytest.raises(Internal, match="not a ShardRead payload"):
        decode(ShardRead, payload)


@pytest.mark.parametrize("method", [WRITE, WRITE_KEYS, READ, READ_KEYS], ids=lambda method: method.request.__name__)
def test_an_answer_that_cannot_be_read_leaves_a_write_in_doubt(method: LaneCall[object, object]) -> None:
    with pytest.raises(Internal, match="Reply payload") as raised:
        decode_reply(method, b"\xc1")
    assert raised.value.details.maybe_applied is method.is_write


def test_a_field_of_a_newer_version_is_passed_over() -> None:
    payload = msgspec.msgpack.encode({"shard": 1, "epoch": 2, "collection_id": 3, "keys": [b"a"], "colour": "blue"})
    assert decode(ShardRead, payload) == ShardRead(1, 2, 3, [b"a"])


def test_errors_round_trip() -> None:
    error = VersionConflict("no", ErrorDetails(current_version=0, field="key", retry_after_ms=5))
    decoded = decode_error(encode_error(error))
    assert (type(decoded), decoded.message, decoded.details) == (VersionConflict, "no", error.details)


def test_what_is_no_error_record_is_an_error_all_the_same() -> None:
    assert isinstance(decode_error(b"\xc1"), Internal)


async def test_handlers_speak_in_payloads() -> None:
    async def read(request: ShardRead, deadline: float) -> ShardReadReply:
        assert deadline == 5.0
        return ShardReadReply([b"v"] * len(request.keys), [1] * len(request.keys))

    number, handle = handler_of(ShardRead, read)
    assert number == lane_pb2.LANE_METHOD_READ
    reply = decode(ShardReadReply, await handle(encode(ShardRead(1, 1, 1, [b"a", b"b"])), 5.0))
    assert reply.values == [b"v", b"v"]


def test_immediate_handlers_may_decline() -> None:
    def read(request: ShardRead, deadline: float) -> ShardReadReply | None:
        if request.shard == 2:
            raise DataLoss("damaged")
        return ShardReadReply([b"v"], [1]) if request.shard == 1 else None

    _, handle = immediate_handler_of(ShardRead, read)
    assert handle(encode(ShardRead(1, 1, 1, [b"a"])), 5.0) == encode(ShardReadReply([b"v"], [1]))
    assert handle(encode(ShardRead(3, 1, 1, [b"a"])), 5.0) is None
    with pytest.raises(DataLoss):
        handle(encode(ShardRead(2, 1, 1, [b"a"])), 5.0)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_field_is_on_the_wire_under_its_name(message: object) -> None:
    """Also one that has its default, struct or dataclass: versions with other defaults, or that know fewer fields, agree."""
    assert list(msgspec.msgpack.decode(encode(message))) == list(inspect.signature(type(message)).parameters)
