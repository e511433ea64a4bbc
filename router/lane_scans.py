"""The first page of a scan over a lane: a short scan costs a frame then, not a stream of its own."""

from contextlib import aclosing
from functools import partial

from google.protobuf.message import DecodeError

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.lane_messages import KeysScan, KeysScanReply
from kvshard.rpc.codec import SCAN_KEYS, decode, encode
from kvshard.rpc.lane_handlers import Handler
from kvshard.scatter.ledger import ScanTimes
from kvshard.scatter.requests import refuse
from kvshard.scatter.scan import ScanOperation
from kvshard.scatter.scan_chunks import SHORT_SCAN_KEYS
from kvshard.v1 import kv_pb2
from router.calls import Calls
from router.ledger_wire import detail_of
from router.reads import Reads
from router.scan_wire import page_rest_to_proto, scan_request_of


class LaneScans:
    """Handlers for the LaneServicer of a router, beside those of `LaneService`."""

    def __init__(self, calls: Calls, reads: Reads, scans: ScanOperation) -> None:
        self._calls = calls
        self._reads = reads
        self._scans = scans
        self.handlers: dict[int, Handler] = {SCAN_KEYS.number: self._scan}

    def __repr__(self) -> str:
        return f"LaneScans({self._scans.memory!r})"

    async def _scan(self, payload: bytes, deadline: float) -> bytes:
        message = _request_in(decode(KeysScan, payload))
        times = ScanTimes(self._reads.clock.monotonic())
        with self._reads.scan_frame(len(payload), message.collection, partial(detail_of, message), times):
            if not 1 <= message.limit <= SHORT_SCAN_KEYS:
                refuse(f"limit must be 1 to {SHORT_SCAN_KEYS}, not {message.limit}", "limit", SHORT_SCAN_KEYS)
            request, policy = scan_request_of(message)
            pages = self._scans.scan(message.collection, request, policy, self._calls.leg_deadline_of(deadline), times)
            async with aclosing(pages):
                page = await anext(pages)
            is_timed = policy.is_timing_wanted and page.coverage is not None
            timing = times.timing(self._reads.clock.monotonic()) if is_timed else None
            reply = KeysScanReply(
                list(page.keys),
                [] if request.is_keys_only else list(page.values),
                list(page.versions),
                list(page.expires_at_ms),
                not page.token,
                page_rest_to_proto(page, policy, timing).SerializeToString(),
            )
            return encode(reply)


def _request_in(request: KeysScan) -> kv_pb2.ScanRequest:
    try:
        return kv_pb2.ScanRequest.FromString(request.request)
    except DecodeError:
        raise InvalidArgument("request is no ScanRequest message", ErrorDetails(field="request")) from None
