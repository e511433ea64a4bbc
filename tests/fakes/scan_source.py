"""A ScanSource without routers: chunks and errors come from scripts, and every request is recorded."""

import asyncio
from collections import deque
from collections.abc import Sequence

from kvshard.client.results import Coverage
from kvshard.client.scan_source import ScanChunk, ScanSource, ScanStream
from kvshard.errors import KvShardError
from kvshard.v1 import kv_pb2

WHOLE = Coverage(True, 7, 7, 1.0, 2, 2)


def chunk_of(keys: Sequence[bytes], *, is_end: bool = False, is_incomplete: bool = False, is_last: bool = False) -> ScanChunk:
    """A chunk of these keys with values like them. is_last: of its stream."""
    coverage = WHOLE if is_end or is_last else None
    return ScanChunk(keys, [b"v" + key for key in keys], range(1, len(keys) + 1), (), is_end, is_incomplete, coverage)


class FakeScanSource(ScanSource):
    """Streams of scripted steps: a chunk, an error that the stream breaks with, None for its end, "hang".

    A stream without a script serves `keys` in chunks of three by what the request asks for.
    """

    def __init__(self, keys: Sequence[bytes] = (), *scripts: Sequence[ScanChunk | KvShardError | str | None]) -> None:
        self.keys = sorted(keys)
        self.requests: list[kv_pb2.ScanRequest] = []
        self.streams: list[FakeScanStream] = []
        self._scripts = deque(scripts)

    def __repr__(self) -> str:
        return f"FakeScanSource({len(self.keys)} keys, requests={self.requests})"

    def open(self, request: kv_pb2.ScanRequest, timeout: float) -> ScanStream:
        self.requests.append(request)
        script = self._scripts.popleft() if self._scripts else self._served(request)
        stream = FakeScanStream(script)
        self.streams.append(stream)
        return stream

    def _served(self, request: kv_pb2.ScanRequest) -> list[ScanChunk]:
        inside = [key for key in self.keys if key >= request.start and (not request.end or key < request.end)]
        wanted = inside[: request.limit or len(inside)]
        chunks = [chunk_of(wanted[first : first + 3]) for first in range(0, len(wanted), 3)] or [chunk_of([])]
        chunks[-1] = chunk_of(chunks[-1].keys, is_end=len(wanted) == len(inside), is_last=True)
        return chunks


class FakeScanStream(ScanStream):
    def __init__(self, script: Sequence[ScanChunk | KvShardError | str | None]) -> None:
        self.is_cancelled = False
        self._script = deque(script)

    @property
    def router(self) -> int | None:
        return 0

    async def read(self) -> ScanChunk | None:
        step = self._script.popleft() if self._script else None
        if isinstance(step, KvShardError):
            raise step
        if isinstance(step, str):
            await asyncio.Event().wait()
        assert not isinstance(step, str)
        return step

    def cancel(self) -> None:
        self.is_cancelled = True
