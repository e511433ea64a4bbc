"""A stream of KV.Scan whose reader goes away."""

import asyncio
from collections.abc import AsyncGenerator

import grpc.aio
import pytest
from fakes.clock import ManualClock
from prometheus_client import CollectorRegistry

from kvshard.scatter.scan import ScanPage
from kvshard.telemetry import RouterMetrics
from kvshard.v1 import kv_pb2
from router.calls import Calls
from router.reads import Reads
from router.service import KVService


class GoneContext:
    """Of a caller who takes so many messages and then has gone."""

    def __init__(self, takes: int) -> None:
        self.takes = takes
        self.written: list[kv_pb2.ScanResponse] = []

    def time_remaining(self) -> float | None:
        return None

    def invocation_metadata(self) -> tuple[()]:
        return ()

    async def write(self, message: kv_pb2.ScanResponse) -> None:
        if len(self.written) == self.takes:
            raise grpc.aio.BaseError("the message cannot be sent")
        self.written.append(message)


class EndlessScans:
    """Pages without end; is_closed: nobody asks for more."""

    def __init__(self) -> None:
        self.is_closed = False

    async def scan(self, *_: object) -> AsyncGenerator[ScanPage, None]:
        try:
            while True:
                yield ScanPage((b"k",), (b"v",), (1,), (), b"token")
        finally:
            self.is_closed = True


async def test_a_write_that_fails_means_that_the_caller_has_gone() -> None:
    clock, registry, scans = ManualClock(), CollectorRegistry(), EndlessScans()
    metrics = RouterMetrics(registry)
    calls = Calls(clock, metrics)
    service = KVService(calls, Reads(calls, clock, metrics), None, scans)  # type: ignore[arg-type]
    context = GoneContext(takes=2)
    with pytest.raises(asyncio.CancelledError):
        await service.Scan(kv_pb2.ScanRequest(), context)  # type: ignore[arg-type]
    assert [list(message.keys) for message in context.written] == [[b"k"]] * 2
    assert scans.is_closed
    counted = {
        sample.labels["code"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "kvshard_router_requests_total"
    }
    assert counted == {"CANCELLED": 1}
