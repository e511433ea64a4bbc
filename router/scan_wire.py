"""Scans on the wire: a `ScanRequest` message into domain terms, a page into a `ScanResponse` message."""

from kvshard.rpc.key_convert import coverage_to_proto, policy_of, state_to_proto, timing_to_proto
from kvshard.scatter.ledger import Timing
from kvshard.scatter.requests import DEFAULT_READ_POLICY, ReadPolicy, key_range
from kvshard.scatter.scan import ScanPage, ScanRequest
from kvshard.v1 import kv_pb2


def scan_request_of(message: kv_pb2.ScanRequest) -> tuple[ScanRequest, ReadPolicy]:
    """What is to be scanned, and how. Raises InvalidArgument."""
    request = ScanRequest(
        range=key_range(message.prefix, message.start, message.end),
        range_fields=(message.prefix, message.start, message.end),
        limit=message.limit,
        is_keys_only=message.keys_only,
        token=message.token,
    )
    return request, policy_of(message.options) if message.HasField("options") else DEFAULT_READ_POLICY


def page_to_proto(page: ScanPage, request: ScanRequest, policy: ReadPolicy, timing: Timing | None) -> kv_pb2.ScanResponse:
    """A page with its columns. timing: of the last page, where it is wanted."""
    message = page_rest_to_proto(page, policy, timing)
    message.keys.extend(page.keys)
    if not request.is_keys_only:
        message.values.extend(page.values)
    message.versions.extend(page.versions)
    message.expires_at_ms.extend(page.expires_at_ms)
    return message


def page_rest_to_proto(page: ScanPage, policy: ReadPolicy, timing: Timing | None) -> kv_pb2.ScanResponse:
    """The same without the columns."""
    return kv_pb2.ScanResponse(
        token=page.token,
        is_incomplete=page.is_incomplete,
        coverage=None if page.coverage is None else coverage_to_proto(page.coverage),
        states=map(state_to_proto, page.states) if policy.is_stale else None,
        timing=None if timing is None else timing_to_proto(timing),
    )
