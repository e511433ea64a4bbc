"""How a search gets to a router: over a lane, and by the unary method where a router takes it by that only."""

from google.protobuf.message import DecodeError

from kvshard.client.connection import Connection
from kvshard.errors import Internal
from kvshard.lane_messages import DocumentsSearch
from kvshard.v1 import search_pb2


async def search(connection: Connection, request: search_pb2.SearchRequest, deadline: float) -> search_pb2.SearchResponse:
    """The answer of the current router, or of the next one where that fails. Raises a KvShardError."""
    encoded = DocumentsSearch(request.SerializeToString())

    async def once() -> search_pb2.SearchResponse:
        connection.routers.check_open()
        reply = await connection.lanes.search(encoded, request.limit, deadline)
        if reply is not None:
            return _response_in(reply.response)
        left = deadline - connection.clock.monotonic()
        return await connection.routers.call(lambda stubs: stubs.search.Search, request, timeout=left, is_write=False)

    return await connection.repeated(once, deadline=deadline, is_repeatable=True)


def _response_in(encoded: bytes) -> search_pb2.SearchResponse:
    try:
        return search_pb2.SearchResponse.FromString(encoded)
    except DecodeError:
        raise Internal("the router's answer is no SearchResponse message") from None
