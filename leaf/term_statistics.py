"""Answers one ShardTerms on a thread: cuts the texts of a query into terms, and tells the shard's statistics for them."""

from kvshard.clustermap import TOKEN_SLOTS, Collection
from kvshard.errors import Cancelled, ErrorDetails, InvalidArgument
from kvshard.limits import STATISTICS_MAX_TERMS
from kvshard.model import ShardTerms, ShardTermsReply, changed
from kvshard.query import Prefix, Word
from kvshard.schema import KEYWORD, TEXT, base_type
from leaf.index_statistics import IndexStatistics
from leaf.log_source import LogSource
from leaf.text_index import TextIndex, tantivy_failures
from leaf.weighting import Weighting


class TermsJob:
    """One question. `run` belongs to a search thread; `cancel` may be called from anywhere."""

    def __init__(self, request: ShardTerms, collection: Collection, source: LogSource) -> None:
        self._request = request
        self._collection = collection
        self._source = source
        self._is_cancelled = False

    def __repr__(self) -> str:
        return f"TermsJob(shard {self._request.shard}, {self._collection.name})"

    @property
    def group(self) -> tuple[int, str]:
        """The same for the legs of one question."""
        return self._collection.id, repr(self._request.texts)

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self._is_cancelled = True

    def run(self, index: TextIndex) -> ShardTermsReply:
        """The answer. Raises a KvShardError, or IndexFailed when tantivy does."""
        request = self._request
        self._validate()
        own_slot = self._source.last_slot(request.shard)
        last_slot = own_slot if index.last_slot > own_slot else TOKEN_SLOTS - 1
        with tantivy_failures():
            through = index.indexed_through  # Before the snapshot: never more than it holds.
            statistics = index.statistics
            texts = [self._terms_of(index, statistics, *text) for text in request.texts]
            wanted = {name: set(terms) for name, terms in request.terms.items()}
            for terms in texts:
                for name, term in terms:
                    wanted.setdefault(name, set()).add(term)
            return ShardTermsReply(changed(statistics.of(wanted, last_slot), through=through), texts)

    def _terms_of(
        self, index: TextIndex, statistics: IndexStatistics, name: str, text: str, is_begun: bool
    ) -> list[tuple[str, str]]:
        if self._is_cancelled:
            raise Cancelled("the search was cancelled")
        weighting = Weighting(statistics.fields)
        index.compiler.scored(Prefix(name, text) if is_begun else Word(name, text), weighting, statistics.searcher)
        return [(field, term) for field, terms in weighting.terms.items() for term in sorted(terms)]

    def _validate(self) -> None:
        request = self._request
        count = len(request.texts) + sum(map(len, request.terms.values()))
        if count > STATISTICS_MAX_TERMS:
            details = ErrorDetails(field="query", limit=STATISTICS_MAX_TERMS)
            raise InvalidArgument(f"statistics of at most {STATISTICS_MAX_TERMS} terms are told at once, not {count}", details)
        for name in [*request.terms, *(name for name, _, _ in request.texts)]:
            if base_type(self._collection.schema.get(name, "")) not in {TEXT, KEYWORD}:
                raise InvalidArgument(f"{name[:64]} is no field that is scored by its terms", ErrorDetails(field="query"))
