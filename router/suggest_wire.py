"""Suggestions on the wire: requests into domain terms, answers into messages. Nothing is decided here."""

from kvshard.rpc.key_convert import coverage_to_proto, timing_to_proto
from kvshard.scatter.ledger import Timing
from kvshard.suggestions import SuggestQuery
from kvshard.v1 import search_pb2
from router.suggest import Suggested

DEFAULT_LIMIT = 5


def suggest_query_of(request: search_pb2.SuggestRequest) -> SuggestQuery:
    """The request in domain terms, not yet checked."""
    limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
    return SuggestQuery(request.text, list(request.fields), limit, list(request.filters))


def suggested_to_proto(suggested: Suggested, timing: Timing | None) -> search_pb2.SuggestResponse:
    """The answer; with its timing where it was asked for."""
    return search_pb2.SuggestResponse(
        completions=[search_pb2.Completion(text=text, documents=documents) for text, documents in suggested.completions.texts],
        error_bound=suggested.completions.error_bound,
        words=[
            search_pb2.CorrectedWord(
                word=word.word,
                start=word.start,
                end=word.end,
                documents=word.documents,
                corrections=[
                    search_pb2.Correction(text=each.text, documents=each.documents, distance=each.distance)
                    for each in word.corrections
                ],
            )
            for word in suggested.words
        ],
        corrected=suggested.corrected,
        coverage=coverage_to_proto(suggested.coverage),
        timing=None if timing is None else timing_to_proto(timing),
    )
