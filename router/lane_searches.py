"""Searches over a lane: a call of gRPC itself costs a router some 0.2 ms more, of the one that a search takes it in all."""

from functools import partial

from google.protobuf.message import DecodeError

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.lane_messages import DocumentsSearch, DocumentsSearchReply
from kvshard.rpc.codec import SEARCH_DOCUMENTS, decode, encode
from kvshard.rpc.lane_handlers import Handler
from kvshard.v1 import search_pb2
from router.calls import Calls
from router.ledger_wire import detail_of
from router.reads import Reads
from router.search_answers import SearchAnswers


class LaneSearches:
    """Handlers for the LaneServicer of a router, beside those of `LaneService`."""

    def __init__(self, calls: Calls, reads: Reads, answers: SearchAnswers) -> None:
        self._calls = calls
        self._reads = reads
        self._answers = answers
        self.handlers: dict[int, Handler] = {SEARCH_DOCUMENTS.number: self._search}

    def __repr__(self) -> str:
        return f"LaneSearches({self._reads!r})"

    async def _search(self, payload: bytes, deadline: float) -> bytes:
        request = _request_in(decode(DocumentsSearch, payload))
        with self._reads.frame("Search", 1, len(payload), request.collection, partial(detail_of, request)) as frame:
            answer = await self._answers.answer(request, self._calls.leg_deadline_of(deadline), frame.times)
            return encode(DocumentsSearchReply(answer.SerializeToString()))


def _request_in(search: DocumentsSearch) -> search_pb2.SearchRequest:
    try:
        return search_pb2.SearchRequest.FromString(search.request)
    except DecodeError:
        raise InvalidArgument("request is no SearchRequest message", ErrorDetails(field="request")) from None
