"""A collection of documents for threads: dicts in, dicts out, and the search over them."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar, Unpack

from kvshard.client.client import Client as AsyncClient
from kvshard.client.codecs import BYTES, DOCUMENTS
from kvshard.client.collection import Collection as AsyncCollection
from kvshard.client.options import ReadOverrides
from kvshard.client.results import CollectionInfo, Document, K, SearchPage
from kvshard.client.search_options import SearchOptions
from kvshard.client.suggestions import Suggestions
from kvshard.query.structured import StructuredQuery
from kvshard.sync.keyspace import Keyspace
from kvshard.sync.source import Source

T = TypeVar("T")


class Collection(Keyspace[K, Document]):
    """A collection of documents. Made by `Client.collection`; that alone creates nothing."""

    def __init__(self, source: Source[K], name: str) -> None:
        super().__init__(
            source, name, DOCUMENTS, lambda client: client.collection(name), lambda client: client.collection(name).raw
        )

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def raw(self) -> Keyspace[K, bytes]:
        """The same keys with their values as bytes: for collections without a schema, and for JSON that is ready made."""
        return Keyspace(self._source, self._name, BYTES, self._find_raw, self._find_raw)

    def _ask(self, begin: Callable[[AsyncCollection[K]], Awaitable[T]]) -> T:
        return self._source.run(lambda client: begin(client.collection(self._name)))

    def create(
        self,
        schema: Mapping[str, str] | None = None,
        *,
        hedge: str | None = None,
        hedge_budget: float | str | None = None,
        hedge_attempts: int | None = None,
        timeout: float | None = None,
    ) -> CollectionInfo:
        """Create it, or do nothing where it exists with this very schema; CollectionExists where it has another.

        schema: field name -> "text", "keyword", "integer", "float", "boolean" or "date"; without one, values are plain bytes.
        A text may name how it is cut: "text(english)" or another language (stems, without stop words), "text(ngram)" (half a
        word finds the whole one), "text(ascii)" (without accents), "text(cjk)", "text(keyword)" (the whole value, lower case).
        hedge, hedge_budget, hedge_attempts: how its reads are hedged, see `update`; CollectionExists too where they are
        otherwise.
        """
        return self._ask(
            lambda there: there.create(
                schema, hedge=hedge, hedge_budget=hedge_budget, hedge_attempts=hedge_attempts, timeout=timeout
            )
        )

    def update(
        self,
        *,
        hedge: str | None = None,
        hedge_budget: float | str | None = None,
        hedge_attempts: int | None = None,
        synonyms: Iterable[str] | None = None,
        timeout: float | None = None,
    ) -> CollectionInfo:
        """Change how its reads are hedged where they do not say it, and its synonyms; None leaves a setting as it is.

        hedge: "auto", "off", "10ms", "p99", "min(p99,50ms)". hedge_budget: hedges allowed, as a part of the first attempts
        (0.05 or "5%", at most half); 0 allows none. hedge_attempts: attempts of a leg at most, the first one included. To take
        a setting back, so that it is as the router has it: "default", for the attempts 0. synonyms: rules in place of those
        there are; "car, automobile, motor car" mean each other, "laptop => notebook" has who looks for laptop find notebook
        too. Searches heed them from now on, without a new index. Raises CollectionNotFound.
        """
        return self._ask(
            lambda there: there.update(
                hedge=hedge,
                hedge_budget=hedge_budget,
                hedge_attempts=hedge_attempts,
                synonyms=synonyms,
                timeout=timeout,
            )
        )

    def add_fields(self, fields: Mapping[str, str], *, timeout: float | None = None) -> CollectionInfo:
        """Add searchable fields, of any type that `create` takes; those that are there with this very type stay.

        Documents that have the fields already are indexed in the background, and documents that are written from now on must
        fit them. Once every shard is done the fields can be searched, everywhere at once; until then a search on them raises
        FailedPrecondition. `wait_indexed` waits for that, `Client.status` tells how far it is, and how many documents have a
        value there that does not fit: it is left out of the field. Raises InvalidArgument for a field that has another type,
        ChangeConflict while another change is under way.
        """
        return self._ask(lambda there: there.add_fields(fields, timeout=timeout))

    def reindex(self, fields: Mapping[str, str] | None = None, *, timeout: float | None = None) -> CollectionInfo:
        """Build the search index anew in the background, and switch all shards to it at once.

        fields: those that get another type or analyzer, as {"body": "text(english)"}, or are added; none: the index is built
        anew as it is. Searches use the old index until the switch. The values stay what they are, so a field of strings can
        become another one of strings, and so with numbers. Raises InvalidArgument; ChangeConflict while another change is under
        way.
        """
        return self._ask(lambda there: there.reindex(fields, timeout=timeout))

    def cancel_reindex(self, *, timeout: float | None = None) -> CollectionInfo:
        """Call off the change of the schema that is under way; the old schema and its index stay."""
        return self._ask(lambda there: there.cancel_reindex(timeout=timeout))

    def wait_indexed(self, *, timeout: float | None = None) -> CollectionInfo:
        """Wait until no change of the schema is under way. Raises DeadlineExceeded after timeout seconds (None: 10 minutes)."""
        return self._ask(lambda there: there.wait_indexed(timeout=timeout))

    def drop(self, *, timeout: float | None = None) -> None:
        """Drop it with all its keys. Raises CollectionNotFound where there is none."""
        self._ask(lambda there: there.drop(timeout=timeout))

    def watermark(self) -> bytes:
        """A token of all that this client has written to the collection so far, by any of its handles; empty for nothing.

        Opaque. Give it to a search as `min_versions`, here or in another process, and the search sees these writes.
        """

        async def made(client: AsyncClient[K]) -> bytes:
            return client.collection(self._name).watermark()

        return self._source.run(made)

    def search(self, query: str | StructuredQuery = "", **options: Unpack[SearchOptions]) -> SearchPage[K]:
        """Find the best documents.

        query: words, "phrases", "phrases"~2, pre*, w?ld*, fuzzy~1, field:word, field:[a TO b], AND, OR, NOT, groups, ^2; empty
        or * finds all. Or a structured query, as `kvshard.Match("words", fields=["title^3"])`. The options:

        matching: a structured query to match besides a query string. fields: where words of the string without a field are
        looked for; operator: what stands between words that have nothing between them, "or" or "and"; minimum_should_match: how
        many of its clauses have to match, as 2, "75%", -1. fuzziness: letters of the query's words that may be wrong, 0 to 2,
        or "auto": by the length of each word.

        limit: hits wanted, 10. filters: query strings that each hit must match besides, without a say in its score. facets:
        keyword fields whose values are counted, the facet_limit (10) most frequent ones. highlight: text fields to mark.
        sort: fields with commas between them, "-" in front for descending, ":missing_first" behind; also "_score" and "_key";
        or a list of such and of SortBy; by score when empty. next: the `.next` of the page before, with the other arguments as
        they were. keys_only: hits without their documents. return_fields: only these of each document, "a.b" for one inside an
        object. collapse: only the first hit of each value of this keyword or integer field. track_total: False or a number: how
        far matches have to be counted. fragments, fragment_chars: of each highlighted field, at most 20, at most 2,000.

        refresh: see every write that was acknowledged before. shards: ask only these. collections: search
        these too, at most 15 (see search.proto); each hit says which one it is in. min_versions: the token of `watermark`, or
        those of several clients: see all that they had written then. The search waits for the shards that are behind, until its
        timeout.

        explain: each hit tells how its score came about (at most 100 hits). profile: the page tells what each shard looked for
        and where the time went. statistics: what scores rest on: "exact", all documents of the collection, or "local", those of
        each shard, for comparison.

        aggs: figures over all that match, by name, such as `Terms("tag", aggs={"years": Stats("year")})`; the page has the
        answers in `.aggregations`. limit=0: these alone.

        nearest: the documents nearest to a vector, `Nearest("embedding", vector)`; with a query as well the two orders are
        fused by reciprocal rank. Such a search has one page and no sort.

        And how to read, as for `get`: timeout, consistency, hedge, replica_choice, min_coverage, on_shortfall, explain_timing.
        """
        return self._ask(lambda there: there.search(query, **options))

    def suggest(
        self,
        text: str,
        *,
        field: str | Sequence[str] | None = None,
        limit: int = 5,
        filters: Sequence[str] = (),
        **read: Unpack[ReadOverrides],
    ) -> Suggestions:
        """Say how a half typed text may go on, and what its misspelt words may have meant.

        field: where suggestions come from, one or several; all texts that have words when None. A text field completes
        the last word, a keyword field the whole value. limit: completions wanted, 1 to 100. filters: query strings that a
        document must match to count.
        """
        return self._ask(lambda there: there.suggest(text, field=field, limit=limit, filters=filters, **read))
