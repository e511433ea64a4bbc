"""A collection of documents: dicts in, dicts out, and the search over them."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Unpack

from kvshard.client import searches
from kvshard.client.checks import (
    check_suggest_limit,
    check_timeout,
    invalid,
)
from kvshard.client.codecs import BYTES, DOCUMENTS, decode_document
from kvshard.client.connection import Connection
from kvshard.client.keyspace import Keyspace
from kvshard.client.options import ReadOptions, ReadOverrides
from kvshard.client.results import CollectionInfo, Document, K, SearchPage
from kvshard.client.search_options import SearchOptions, read_overrides, search_request
from kvshard.client.suggestions import Suggestions, field_names, suggestions_of
from kvshard.client.wire import collection_info_of, page_of
from kvshard.errors import CollectionNotFound, DeadlineExceeded, ErrorDetails
from kvshard.hedge_settings import hedging_of
from kvshard.query.structured import StructuredQuery
from kvshard.rpc.convert import aliases_from_proto, hedging_to_proto, schema_to_proto
from kvshard.schema import parse_schema
from kvshard.v1 import cluster_pb2, search_pb2

WAIT_INDEXED_S = 600.0
"""How long `wait_indexed` waits where it is not told; some million documents are indexed meanwhile."""

WAIT_POLL_S = 0.2
"""Between two looks at the collections."""


class Collection(Keyspace[K, Document]):
    """A collection of documents. Made by `Client.collection`; that alone creates nothing."""

    def __init__(self, connection: Connection, name: str, keys: type[K], options: ReadOptions | None = None) -> None:
        super().__init__(connection, name, keys, DOCUMENTS, options)

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def raw(self) -> Keyspace[K, bytes]:
        """The same keys with their values as bytes: for collections without a schema, and for JSON that is ready made."""
        return Keyspace(self._connection, self._name, self._keys, BYTES, self._options)

    async def create(
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
        fields = schema_to_proto(parse_schema(schema or {}))
        hedging, names = hedging_of(hedge, hedge_budget, hedge_attempts)
        request = cluster_pb2.CreateCollectionRequest(
            name=self._name, fields=fields, hedging=hedging_to_proto(hedging) if names else None
        )
        response = await self._connection.unary(
            lambda stubs: stubs.cluster.CreateCollection, request, deadline=self._deadline(timeout), is_repeatable=True
        )
        return collection_info_of(response.collection)

    async def update(
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
        hedging, names = hedging_of(hedge, hedge_budget, hedge_attempts)
        if not names and synonyms is None:
            raise invalid("say what to change: hedge, hedge_budget, hedge_attempts or synonyms", "hedging")
        if isinstance(synonyms, str):
            raise invalid("synonyms is a list of rules, not one string", "synonyms")
        request = cluster_pb2.UpdateCollectionRequest(name=self._name, hedging=hedging_to_proto(hedging), synonyms=synonyms)
        request.update_mask.paths.extend(f"hedging.{name}" for name in names)
        if synonyms is not None:
            request.update_mask.paths.append("synonyms")
        response = await self._connection.unary(
            lambda stubs: stubs.cluster.UpdateCollection, request, deadline=self._deadline(timeout), is_repeatable=True
        )
        return collection_info_of(response.collection)

    async def add_fields(self, fields: Mapping[str, str], *, timeout: float | None = None) -> CollectionInfo:
        """Add searchable fields, of any type that `create` takes; those that are there with this very type stay.

        Documents that have the fields already are indexed in the background, and documents that are written from now on must
        fit them. Once every shard is done the fields can be searched, everywhere at once; until then a search on them raises
        FailedPrecondition. `wait_indexed` waits for that, `Client.status` tells how far it is, and how many documents have a
        value there that does not fit: it is left out of the field. Raises InvalidArgument for a field that has another type,
        ChangeConflict while another change is under way.
        """
        request = cluster_pb2.UpdateCollectionRequest(name=self._name, fields=schema_to_proto(parse_schema(fields)))
        request.update_mask.paths.append("fields")
        response = await self._connection.unary(
            lambda stubs: stubs.cluster.UpdateCollection, request, deadline=self._deadline(timeout), is_repeatable=True
        )
        return collection_info_of(response.collection)

    async def reindex(self, fields: Mapping[str, str] | None = None, *, timeout: float | None = None) -> CollectionInfo:
        """Build the search index anew in the background, and switch all shards to it at once.

        fields: those that get another type or analyzer, as {"body": "text(english)"}, or are added; none: the index is built
        anew as it is. Searches use the old index until the switch. The values stay what they are, so a field of strings can
        become another one of strings, and so with numbers. Raises InvalidArgument; ChangeConflict while another change is under
        way.
        """
        request = cluster_pb2.ReindexCollectionRequest(name=self._name, fields=schema_to_proto(parse_schema(fields or {})))
        return await self._reindex(request, timeout)

    async def cancel_reindex(self, *, timeout: float | None = None) -> CollectionInfo:
        """Call off the change of the schema that is under way; the old schema and its index stay."""
        return await self._reindex(cluster_pb2.ReindexCollectionRequest(name=self._name, cancel=True), timeout)

    async def _reindex(self, request: cluster_pb2.ReindexCollectionRequest, timeout: float | None) -> CollectionInfo:
        response = await self._connection.unary(
            lambda stubs: stubs.cluster.ReindexCollection,
            request,
            deadline=self._deadline(timeout),
            is_repeatable=request.cancel,  # Done twice, the index would be built twice.
        )
        return collection_info_of(response.collection)

    async def wait_indexed(self, *, timeout: float | None = None) -> CollectionInfo:
        """Wait until no change of the schema is under way. Raises DeadlineExceeded after timeout seconds (None: 10 minutes)."""
        patience = WAIT_INDEXED_S if timeout is None else check_timeout(timeout)
        try:
            async with asyncio.timeout(patience):
                while True:
                    found = await self._info()
                    if found.change is None:
                        return found
                    await asyncio.sleep(WAIT_POLL_S)
        except TimeoutError:
            raise DeadlineExceeded(f"{self._name} was not indexed within {patience:g} s") from None

    async def _info(self) -> CollectionInfo:
        response = await self._connection.unary(
            lambda stubs: stubs.cluster.ListCollections,
            cluster_pb2.ListCollectionsRequest(),
            deadline=self._deadline(None),
            is_repeatable=True,
        )
        name = aliases_from_proto(response.aliases).get(self._name, self._name)
        found = next((each for each in response.collections if each.name == name), None)
        if found is None:
            raise CollectionNotFound(f"there is no collection {self._name!r}", ErrorDetails(field="name"))
        return collection_info_of(found)

    async def drop(self, *, timeout: float | None = None) -> None:
        """Drop it with all its keys. Raises CollectionNotFound where there is none."""
        request = cluster_pb2.DropCollectionRequest(name=self._name)
        await self._connection.unary(
            lambda stubs: stubs.cluster.DropCollection, request, deadline=self._deadline(timeout), is_repeatable=False
        )

    def watermark(self) -> bytes:
        """A token of all that this client has written to the collection so far, by any of its handles; empty for nothing.

        Opaque. Give it to a search as `min_versions`, here or in another process, and the search sees these writes. What was
        written through `raw`, or with an error that says maybe_applied, counts as far as it was acknowledged.
        """
        written = self._connection.keys.written.get(self._name)
        return b"" if written is None else written.encode()

    async def search(self, query: str | StructuredQuery = "", **options: Unpack[SearchOptions]) -> SearchPage[K]:
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
        read_options, deadline = self._read_options(read_overrides(options))
        request = search_request(self._name, query, options, read_options)
        response = await searches.search(self._connection, request, deadline)
        return page_of(response, self._decode_key, decode_document)

    async def suggest(
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
        if isinstance(filters, str):
            raise invalid("filters is a list of strings, not one string", "filters")
        options, deadline = self._read_options(read)
        request = search_pb2.SuggestRequest(
            collection=self._name,
            text=text,
            fields=field_names(field),
            limit=check_suggest_limit(limit),
            filters=filters,
            options=options,
        )
        response = await self._connection.unary(
            lambda stubs: stubs.search.Suggest, request, deadline=deadline, is_repeatable=True
        )
        return suggestions_of(response)
