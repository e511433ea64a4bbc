"""A LeafClient without leaves: answers come from scripts, and every call is recorded."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from kvshard.errors import Internal, KvShardError, Unavailable
from kvshard.fault_model import FaultOrder, FaultReport
from kvshard.model import (
    LeafStatusReply,
    LeafStatusRequest,
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
)
from kvshard.rpc.leaf_client import Answer, Heard, LeafClient, ReadRequest, TakeBack

ANY_LEAF = "*"

Step = Any
"""What one call gets: a reply, an Answer, a KvShardError (raised), or a function request -> any of these (or awaitable)."""


@dataclass(frozen=True)
class Call:
    """A call that was made. fate: "answered", "raised" or "cancelled"; "waiting" while it is outstanding."""

    leaf: str
    request: Any
    deadline: float
    fate: str = "waiting"
    is_hedge: bool = False

    def __repr__(self) -> str:
        kind = type(self.request).__name__
        shard = getattr(self.request, "shard", None)
        return f"{self.leaf}<-{kind}({'' if shard is None else f'shard {shard}'}) {self.fate}"


@dataclass(frozen=True)
class Ping:
    """The request of a ping, for scripts."""


class Hang:
    """A step that waits until `release()` and then answers with `reply`; cancelled calls count in `cancelled`."""

    def __init__(self, reply: Any = None) -> None:
        self._reply = reply
        self._released = asyncio.Event()
        self.reached = asyncio.Event()
        self.cancelled = 0

    def release(self) -> None:
        """Let the call go on."""
        self._released.set()

    async def __call__(self, request: Any) -> Any:
        self.reached.set()
        try:
            await self._released.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self._reply

    def __repr__(self) -> str:
        return f"Hang(cancelled={self.cancelled}, released={self._released.is_set()})"


class FakeLeafClient(LeafClient):
    """Scripted leaves. `on(leaf, ShardRead, step, step, ...)`: one step a call, the last one repeats.

    forgets: no call is recorded, for tests that look at memory. starts: reads can be started, as over an open lane.

    A leaf without a script raises Unavailable, as an unreachable one does. `ANY_LEAF` serves leaves without one of their own.
    """

    def __init__(self, starts: bool = True) -> None:
        self.calls: list[Call] = []
        self.is_closed = False
        self.forgets = False
        self.starts = starts
        self._started: set[asyncio.Task[Any]] = set()
        self._scripts: dict[tuple[str, type], list[Step]] = {}

    def on(self, leaf: str, request_type: type, *steps: Step) -> "FakeLeafClient":
        """Script the answers of one leaf to one type of request; replaces an earlier script."""
        assert steps, "a script needs a step"
        self._scripts[leaf, request_type] = list(steps)
        return self

    def calls_of(self, request_type: type, leaf: str | None = None) -> list[Call]:
        """The recorded calls of one type (to one leaf)."""
        return [c for c in self.calls if isinstance(c.request, request_type) and leaf in (None, c.leaf)]

    async def read(self, leaf: str, request: ShardRead, deadline: float, is_hedge: bool = False) -> Answer[ShardReadReply]:
        return await self._call(leaf, request, deadline, is_hedge)

    def start(
        self, leaf: str, request: ReadRequest, deadline: float, heard: Heard, is_hedge: bool = False, is_last: bool = True
    ) -> TakeBack | None:
        if not self.starts:
            return None
        task = asyncio.get_running_loop().create_task(self._call(leaf, request, deadline, is_hedge))
        self._started.add(task)
        is_taken_back = False

        def tell(task: "asyncio.Task[Any]") -> None:
            self._started.discard(task)
            if task.cancelled():
                return
            error = task.exception()
            if not is_taken_back:
                defect = error and not isinstance(error, KvShardError) and Internal(f"{type(error).__name__}: {error}")
                heard(defect or error or task.result())

        def take_back() -> None:
            nonlocal is_taken_back
            is_taken_back = True
            task.cancel()

        task.add_done_callback(tell)
        return take_back

    async def write(self, leaf: str, request: ShardWrite, deadline: float) -> Answer[ShardWriteReply]:
        return await self._call(leaf, request, deadline)

    async def scan(self, leaf: str, request: ShardScan, deadline: float, is_hedge: bool = False) -> Answer[ShardScanReply]:
        return await self._call(leaf, request, deadline, is_hedge)

    async def search(
        self, leaf: str, request: ShardSearch, deadline: float, is_hedge: bool = False
    ) -> Answer[ShardSearchReply]:
        return await self._call(leaf, request, deadline, is_hedge)

    async def term_statistics(
        self, leaf: str, request: ShardTerms, deadline: float, is_hedge: bool = False
    ) -> Answer[ShardTermsReply]:
        return await self._call(leaf, request, deadline, is_hedge)

    async def status(self, leaf: str, request: LeafStatusRequest, deadline: float) -> Answer[LeafStatusReply]:
        return await self._call(leaf, request, deadline)

    async def ping(self, leaf: str, deadline: float) -> None:
        """A leaf is awake as long as a Ping has no script of its own."""
        if (leaf, Ping) in self._scripts:
            await self._call(leaf, Ping(), deadline)

    async def order_faults(self, leaf: str, order: FaultOrder, deadline: float) -> FaultReport:
        return (await self._call(leaf, order, deadline)).reply

    async def close(self) -> None:
        self.is_closed = True

    async def _call(self, leaf: str, request: Any, deadline: float, is_hedge: bool = False) -> Answer[Any]:
        index = len(self.calls)
        if not self.forgets:
            self.calls.append(Call(leaf, request, deadline, is_hedge=is_hedge))
        try:
            answer = await self._answer(leaf, request)
        except asyncio.CancelledError:
            self._settle(index, "cancelled")
            raise
        except KvShardError:
            self._settle(index, "raised")
            raise
        self._settle(index, "answered")
        return answer

    async def _answer(self, leaf: str, request: Any) -> Answer[Any]:
        step = self._next_step(leaf, type(request))
        if callable(step):
            function: Callable[[Any], Any | Awaitable[Any]] = step
            step = function(request)
            if inspect.isawaitable(step):
                step = await step
        if isinstance(step, KvShardError):
            raise step
        return step if isinstance(step, Answer) else Answer(step)

    def _next_step(self, leaf: str, request_type: type) -> Step:
        script = self._scripts.get((leaf, request_type)) or self._scripts.get((ANY_LEAF, request_type))
        if script is None:
            return Unavailable(f"{leaf} has no script for {request_type.__name__}")
        return script.pop(0) if len(script) > 1 else script[0]

    def _settle(self, index: int, fate: str) -> None:
        if not self.forgets:
            self.calls[index] = replace(self.calls[index], fate=fate)

    def __repr__(self) -> str:
        scripts = ", ".join(f"{leaf}:{kind.__name__}x{len(steps)}" for (leaf, kind), steps in self._scripts.items())
        return f"FakeLeafClient(scripts=[{scripts}], calls={self.calls})"
