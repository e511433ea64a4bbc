"""The workers that share a router's port, as one of them sees them: what each reports, asked at its own address.

So whoever asks the router, and gets to any worker, hears of all of them.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import grpc.aio

from kvshard.errors import KvShardError, Unavailable
from kvshard.rpc.channel import aio_channel
from kvshard.rpc.status import error_from_rpc
from kvshard.rpc.worker_convert import worker_status_from_proto
from kvshard.v1 import cluster_pb2, cluster_pb2_grpc
from kvshard.workers import WorkerPlace, WorkerStatus

if TYPE_CHECKING:
    from kvshard.v1.cluster_pb2_grpc import ClusterAsyncStub

T = TypeVar("T")

ASK_TIMEOUT_S = 0.5
"""A worker answers from memory; the wait is for one that is stopped or overloaded, and whoever looks after the router waits."""


class Siblings:
    """own: the state of this worker. Channels live for one question: people ask, a few times a minute."""

    def __init__(self, place: WorkerPlace, own: Callable[[], WorkerStatus]) -> None:
        self._place = place
        self._own = own

    def __repr__(self) -> str:
        return f"Siblings({self._place.name} beside {', '.join(self._place.siblings) or 'nobody'})"

    @property
    def name(self) -> str:
        """This worker."""
        return self._place.name

    def own_status(self) -> WorkerStatus:
        """The state of this worker."""
        return self._own()

    async def statuses(self) -> list[WorkerStatus]:
        """The state of every worker, in their order; of one that does not answer, why."""
        request = cluster_pb2.GetWorkerStatusRequest()
        answers = await self._ask(lambda stub: stub.GetWorkerStatus(request, timeout=ASK_TIMEOUT_S))
        found = [self._own()]
        for name, answer in answers.items():
            if isinstance(answer, KvShardError):
                found.append(WorkerStatus(name, self._place.siblings[name], answer.message or answer.reason.lower()))
            else:
                found.append(worker_status_from_proto(answer.worker))
        order = {each: number for number, each in enumerate(self._place.names)}
        return sorted(found, key=lambda status: order.get(status.worker, len(order)))

    async def slow_reads(self, request: cluster_pb2.ListSlowReadsRequest) -> tuple[list[cluster_pb2.SlowRead], list[str]]:
        """What the others have in their slow logs, and which of them do not answer."""
        theirs = cluster_pb2.ListSlowReadsRequest()
        theirs.CopyFrom(request)
        theirs.only_this_worker = True
        answers = await self._ask(lambda stub: stub.ListSlowReads(theirs, timeout=ASK_TIMEOUT_S))
        reads = [read for answer in answers.values() if not isinstance(answer, KvShardError) for read in answer.reads]
        return reads, [name for name, answer in answers.items() if isinstance(answer, KvShardError)]

    async def _ask(self, ask: "Callable[[ClusterAsyncStub], Awaitable[T]]") -> dict[str, T | KvShardError]:
        siblings = self._place.siblings
        answers = await asyncio.gather(*(_answer(address, ask) for address in siblings.values()))
        return dict(zip(siblings, answers, strict=True))


async def _answer(address: str, ask: "Callable[[ClusterAsyncStub], Awaitable[T]]") -> T | KvShardError:
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S), aio_channel(address) as channel:
            return await ask(cluster_pb2_grpc.ClusterStub(channel))
    except grpc.aio.AioRpcError as raised:
        return error_from_rpc(raised)
    except TimeoutError:
        return Unavailable("it did not answer in time")
