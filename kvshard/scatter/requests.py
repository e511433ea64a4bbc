"""What a request must be before anything is asked of a leaf: the checks at the door, and requests in domain terms.

Each check raises InvalidArgument (or a subclass) whose details name the field at fault and, where there is one, the limit.

Pure: imports only the standard library and other pure files.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import NoReturn

from kvshard import limits, query
from kvshard.aggregations.check import check_aggregations
from kvshard.aggregations.model import Aggregation
from kvshard.clustermap import Collection
from kvshard.errors import ErrorDetails, FailedPrecondition, InvalidArgument
from kvshard.meaning import meant
from kvshard.model import USUAL_SHAPE, SearchShape
from kvshard.query import Node as QueryNode
from kvshard.query.asked import USUAL, QueryOptions, for_legs
from kvshard.query.lacking import narrowed
from kvshard.query.lowering import Documents
from kvshard.request_ids import CLIENT_MAX_CHARS
from kvshard.scatter.min_versions import NOTHING_WANTED, MinVersions
from kvshard.scatter.shaping import check_shape
from kvshard.scatter.watermarks import Watermarks
from kvshard.schema import base_type
from kvshard.sorting import check_sort, parse_sort, sort_text
from kvshard.synonyms import rules_for
from kvshard.tail import hedging
from kvshard.unknown_fields import unknown_field
from kvshard.vectors import Nearest, check_nearest, check_vector

TTL_MAX_MS = 100 * 365 * 24 * 3_600_000
"""100 years: more is a mistake of the unit, and the expiry instant must fit 64 bits."""

FILTERS_MAX = 32
"""Each filter is parsed and run by every shard."""

EXPLAINED_MAX = 100
"""Hits of a page that are explained: each shard has to explain as many, at some 100 us each, and people are to read them."""

OPTION_TEXT_MAX_CHARS = 64
"""The longest sensible hedge policy is half of it; parsed policies are cached by their text."""

INDEXED_RETRY_MS = 1_000
"""When to ask again for a field that is being indexed: the switch is seconds away at best."""

SCAN_LIMIT_NONE = 0
"""A scan without a limit reads to the end."""

NUMBER_MAX = 2**63 - 1
"""Of a request id: what a shard's log and table store; a client that counts its writes never gets there."""

_CONSISTENCIES = {0: False, 1: False, 2: True}
_SHORTFALL_POLICIES = {0: False, 1: False, 2: True}


@dataclass(frozen=True, slots=True)
class ReadPolicy:
    """How a read is to be done; the defaults are the service's. hedge: None: as its collection, or else the router, has it."""

    is_stale: bool = False
    hedge: hedging.HedgePolicy | None = None
    replica_choice: hedging.ReplicaChoice = hedging.ReplicaChoice.ADAPTIVE
    min_coverage: float = 1.0
    is_partial_accepted: bool = False
    is_timing_wanted: bool = False

    @property
    def may_lack_shards(self) -> bool:
        """Whether an answer without some shard may be good enough."""
        return self.is_partial_accepted or self.min_coverage < 1.0


DEFAULT_READ_POLICY = ReadPolicy()
_EACH_ALONE = ReadPolicy(is_partial_accepted=True)


def each_alone(policy: ReadPolicy) -> ReadPolicy:
    """The policy for keys of which each may fail alone."""
    return _EACH_ALONE if policy is DEFAULT_READ_POLICY else replace(policy, is_partial_accepted=True)


def is_usual(policy: ReadPolicy) -> bool:
    """Whether the policy says nothing about how legs are done. The usual ones are known without a look at their fields."""
    return policy is DEFAULT_READ_POLICY or policy is _EACH_ALONE


_hedge_policy = lru_cache(maxsize=256)(hedging.parse_policy)


def refuse(message: str, field: str, limit: int | None = None) -> NoReturn:
    """Raise InvalidArgument for a field, with the limit it broke."""
    raise InvalidArgument(message, ErrorDetails(field=field, limit=limit))


def read_policy(
    consistency: int, hedge: str, replica_choice: str, min_coverage: float | None, on_shortfall: int, is_timing_wanted: bool
) -> ReadPolicy:
    """The read options of a request, checked. Enumerations come as their wire numbers."""
    if consistency not in _CONSISTENCIES:
        refuse(f"there is no consistency number {consistency}", "options.consistency")
    if on_shortfall not in _SHORTFALL_POLICIES:
        refuse(f"there is no shortfall policy number {on_shortfall}", "options.on_shortfall")
    for field, text in (("options.hedge", hedge), ("options.replica_choice", replica_choice)):
        if len(text) > OPTION_TEXT_MAX_CHARS:
            refuse(f"{field} is longer than {OPTION_TEXT_MAX_CHARS} characters", field, OPTION_TEXT_MAX_CHARS)
    wanted = 1.0 if min_coverage is None else min_coverage
    if not 0.0 <= wanted <= 1.0:  # Also false for NaN.
        refuse(f"min_coverage must be between 0 and 1, not {wanted}", "options.min_coverage", 1)
    return ReadPolicy(
        is_stale=_CONSISTENCIES[consistency],
        hedge=_hedge_policy(hedge) if hedge.strip() else None,
        replica_choice=hedging.parse_replica_choice(replica_choice),
        min_coverage=wanted,
        is_partial_accepted=_SHORTFALL_POLICIES[on_shortfall],
        is_timing_wanted=is_timing_wanted,
    )


def check_key(key: bytes, field: str = "key") -> None:
    """A key has 1 to KEY_MAX_BYTES bytes."""
    if not 0 < len(key) <= limits.KEY_MAX_BYTES:
        refuse(f"{field} must have 1 to {limits.KEY_MAX_BYTES} bytes, not {len(key)}", field, limits.KEY_MAX_BYTES)


def check_value(value: bytes, field: str = "value") -> None:
    """A value has at most VALUE_MAX_BYTES bytes."""
    if len(value) > limits.VALUE_MAX_BYTES:
        refuse(f"{field} must have at most {limits.VALUE_MAX_BYTES} bytes, not {len(value)}", field, limits.VALUE_MAX_BYTES)


def check_ttl(ttl_ms: int, field: str = "ttl_ms") -> None:
    """A length of life is at most TTL_MAX_MS; 0 is for ever."""
    if not 0 <= ttl_ms <= TTL_MAX_MS:
        refuse(f"{field} must be 0 to {TTL_MAX_MS} (100 years), not {ttl_ms}", field, TTL_MAX_MS)


def check_keys(keys: Sequence[bytes]) -> None:
    """The keys of a batch: not too many, and each a legal key."""
    if len(keys) > limits.BATCH_MAX_KEYS:
        refuse(f"a batch has at most {limits.BATCH_MAX_KEYS} keys, not {len(keys)}", "keys", limits.BATCH_MAX_KEYS)
    if keys and (not all(keys) or max(map(len, keys)) > limits.KEY_MAX_BYTES):
        bad = next(i for i, key in enumerate(keys) if not 0 < len(key) <= limits.KEY_MAX_BYTES)
        check_key(keys[bad], f"keys[{bad}]")


@dataclass(frozen=True, slots=True)
class RequestIdentity:
    """The id that a client gave its write. known: what the client knew of the shards before it first sent it.

    positions, total: of a part of a batch, as in ShardWrite.
    """

    client: str
    number: int
    is_retry: bool
    known: Watermarks
    positions: tuple[int, ...] = ()
    total: int = 0


def request_identity(client: str, number: int, is_retry: bool, watermarks: bytes) -> RequestIdentity:
    """The request id of a write, checked."""
    if not 1 <= len(client) <= CLIENT_MAX_CHARS:
        message = f"request_id.client must have 1 to {CLIENT_MAX_CHARS} characters, not {len(client)}"
        refuse(message, "request_id.client", CLIENT_MAX_CHARS)
    if not 1 <= number <= NUMBER_MAX:
        refuse(f"request_id.number must be 1 to {NUMBER_MAX}, not {number}", "request_id.number", NUMBER_MAX)
    if watermarks and not is_retry:
        refuse("request_id.watermarks belong to a repetition; set is_retry", "request_id.watermarks")
    return RequestIdentity(client, number, is_retry, Watermarks.decode(watermarks))


def request_identity_of_part(identity: RequestIdentity, positions: Sequence[int], total: int, keys: int) -> RequestIdentity:
    """The id of a part of a batch, checked. keys: how many this part has."""
    if not positions and not total:
        return identity
    if total > limits.BATCH_MAX_KEYS:
        message = f"request_id.total must be at most {limits.BATCH_MAX_KEYS}, not {total}"
        refuse(message, "request_id.total", limits.BATCH_MAX_KEYS)
    if len(positions) != keys:
        refuse(f"request_id.positions has {len(positions)} entries for {keys} keys", "request_id.positions")
    if any(before >= after for before, after in pairwise([*positions, total])):
        refuse(f"request_id.positions must ascend and lie below {total}, the total", "request_id.positions")
    return replace(identity, positions=tuple(positions), total=total)


@dataclass(slots=True)
class WriteColumns:
    """A batch of writes. Columns parallel to the keys; an optional column is empty when unused (see model.ShardWrite)."""

    keys: list[bytes]
    values: list[bytes | None]
    ttl_ms: list[int]
    conditions: list[int | None]


def write_columns(
    keys: list[bytes], values: list[bytes], deletes: list[bool], ttl_ms: list[int], conditions: list[int | None]
) -> WriteColumns:
    """The columns of a batch write, checked against each other and the limits. `values` may be empty if all are deletes."""
    check_keys(keys)
    is_all_deletes = len(deletes) == len(keys) and all(deletes)
    _check_length("values", len(values), len(keys), is_optional=is_all_deletes)
    for name, column in (("deletes", deletes), ("ttl_ms", ttl_ms), ("conditions", conditions)):
        _check_length(name, len(column), len(keys), is_optional=True)
    _check_sizes(keys, values, ttl_ms)
    return WriteColumns(keys, _values_or_deletes(values, deletes, len(keys)), ttl_ms, conditions)


def check_columns(columns: WriteColumns) -> None:
    """Columns that came as such, checked against each other and the limits."""
    keys = columns.keys
    check_keys(keys)
    _check_length("values", len(columns.values), len(keys), is_optional=False)
    for name, column in (("ttl_ms", columns.ttl_ms), ("conditions", columns.conditions)):
        _check_length(name, len(column), len(keys), is_optional=True)
    _check_sizes(keys, columns.values, columns.ttl_ms)
    for index, condition in enumerate(columns.conditions):
        if condition is not None and not 0 <= condition <= NUMBER_MAX:
            check_condition(condition, f"conditions[{index}]")


def check_condition(condition: int | None, field: str = "condition") -> None:
    """A condition in the terms of model.ShardWrite is a version, ABSENT (0) or None."""
    if condition is not None and not 0 <= condition <= NUMBER_MAX:
        refuse(f"{field} must be a version, not {condition}", field, NUMBER_MAX)


def _check_sizes(keys: Sequence[bytes], values: Sequence[bytes | None], ttl_ms: Sequence[int]) -> None:
    lengths = list(map(len, filter(None, values)))
    if lengths and max(lengths) > limits.VALUE_MAX_BYTES:
        bad = next(i for i, value in enumerate(values) if value and len(value) > limits.VALUE_MAX_BYTES)
        check_value(values[bad] or b"", f"values[{bad}]")
    size = sum(map(len, keys)) + sum(lengths)
    if size > limits.BATCH_MAX_BYTES:
        refuse(f"a batch has at most {limits.BATCH_MAX_BYTES} bytes, not {size}", "values", limits.BATCH_MAX_BYTES)
    if ttl_ms and not 0 <= min(ttl_ms) <= max(ttl_ms) <= TTL_MAX_MS:
        bad = next(i for i, ttl in enumerate(ttl_ms) if not 0 <= ttl <= TTL_MAX_MS)
        check_ttl(ttl_ms[bad], f"ttl_ms[{bad}]")


def _check_length(name: str, length: int, expected: int, *, is_optional: bool) -> None:
    if length != expected and not (is_optional and length == 0):
        refuse(f"{name} has {length} entries beside {expected} keys; the columns must be of equal length", name)


def _values_or_deletes(values: list[bytes], deletes: list[bool], count: int) -> list[bytes | None]:
    if not any(deletes):
        return list(values)
    if not values:
        return [None] * count
    for i, (value, is_delete) in enumerate(zip(values, deletes, strict=True)):
        if is_delete and value:
            refuse(f"values[{i}] must be empty: the operation is a delete", f"values[{i}]")
    return [None if is_delete else value for value, is_delete in zip(values, deletes, strict=True)]


def condition_of(if_version: int | None, if_absent: bool | None, field: str = "condition") -> int | None:
    """A write condition in the terms of model.ShardWrite: a version, ABSENT (0), or None for unconditional."""
    if if_absent is not None:
        if not if_absent:
            refuse(f"{field}.if_absent must be true where it is given", f"{field}.if_absent")
        return 0
    if if_version == 0:
        refuse(f"{field}.if_version must be at least 1; use if_absent for a key that must not be there", f"{field}.if_version")
    return if_version


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Keys in [start, end); end None: no upper end."""

    start: bytes
    end: bytes | None

    @property
    def is_empty(self) -> bool:
        """True when no key can lie in it."""
        return self.end is not None and self.start >= self.end


def key_range(prefix: bytes, start: bytes, end: bytes) -> KeyRange:
    """The range of a scan: its prefix and its bounds together. An empty `end` is no upper end."""
    for field, bound in (("prefix", prefix), ("start", start), ("end", end)):
        if len(bound) > limits.KEY_MAX_BYTES:
            message = f"{field} must have at most {limits.KEY_MAX_BYTES} bytes, as no key is longer, not {len(bound)}"
            refuse(message, field, limits.KEY_MAX_BYTES)
    ends = [bound for bound in (end or None, _after_prefix(prefix)) if bound is not None]
    return KeyRange(max(prefix, start), min(ends, default=None))


def _after_prefix(prefix: bytes) -> bytes | None:
    """The smallest key after all that begin with the prefix; None when there is none (empty, or all 0xff)."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """A search in domain terms; see search.proto for the fields. shards None: all of them. min_versions: what it must see.

    options: what is asked for besides the query string; `for_legs` makes the tree of it, which then stands for both.
    is_local: each shard scores by its own statistics. elsewhere: the fields of all collections, in a search over several.
    """

    query: str
    filters: list[str]
    limit: int
    sort: str
    facets: list[str]
    facet_limit: int
    highlight: list[str]
    is_refresh_wanted: bool
    is_keys_only: bool
    shards: list[int] | None
    min_versions: MinVersions = NOTHING_WANTED
    fuzziness: str = ""
    aggregations: dict[str, Aggregation] = dataclasses.field(default_factory=dict)
    is_local: bool = False
    nearest: Nearest | None = None
    is_explanation_wanted: bool = False
    is_profile_wanted: bool = False
    options: QueryOptions = USUAL
    tree: str = ""
    synonyms: tuple[str, ...] = ()
    shape: SearchShape = USUAL_SHAPE
    elsewhere: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def is_nearest_alone(self) -> bool:
        """Whether it asks for nothing but the nearest by a vector."""
        has_query = self.query.strip() not in ("", "*") or bool(self.tree) or not self.options.are_usual
        return self.nearest is not None and not has_query

    def for_legs(self, schema: Mapping[str, str], documents: Documents | None = None) -> "SearchQuery":
        """The search as its legs carry it. documents: of `options.document_keys`. Raises InvalidArgument."""
        if self.options.are_usual or not schema:
            return self
        text, tree = for_legs(self.query, self.options, schema, documents)
        return replace(self, query=text, options=USUAL, tree=tree)

    def heeding(self, rules: tuple[str, ...], schema: Mapping[str, str]) -> "SearchQuery":
        """The search with those of its collection's synonym rules that concern it. It has been checked against the schema."""
        if not rules:
            return self
        texts = [query.prepare(self.query, schema, tree=self.tree)]
        texts += [query.prepare(text, schema, f"filters[{number}]") for number, text in enumerate(self.filters)]
        return replace(self, synonyms=tuple(rules_for(rules, texts)))

    def node(self, schema: Mapping[str, str]) -> QueryNode:
        """What is searched for, with what the query means beyond what it says, as the leaves have it."""
        return meant(query.prepare(self.query, schema, tree=self.tree), schema, self.synonyms, self.fuzziness)

    def fingerprint_parts(self) -> list[bytes]:
        """What must stay as it was from page to page: whatever decides which hits there are, and their order."""
        shards = "all" if self.shards is None else ",".join(map(str, self.shards))
        order = sort_text(parse_sort(self.sort))
        if self.shape.collapse:
            order += f" collapsed by {self.shape.collapse}"
        fuzziness = [f"fuzziness {self.fuzziness}"] if self.fuzziness else []
        texts = [self.query] if self.options.are_usual else [self.query, repr(self.options)]
        local = ["local"] if self.is_local else []
        return [text.encode() for text in (*texts, order, shards, *fuzziness, *local, *self.filters)]


def check_limit(limit: int) -> None:
    """A page has at most SEARCH_MAX_LIMIT hits; with 0 there are only total, facets and aggregations."""
    if not 0 <= limit <= limits.SEARCH_MAX_LIMIT:
        refuse(f"limit must be 0 to {limits.SEARCH_MAX_LIMIT}, not {limit}", "limit", limits.SEARCH_MAX_LIMIT)


def fitted(request: SearchQuery, collection: Collection, documents: Documents | None = None) -> SearchQuery:
    """The search as its legs carry it, checked by the collection's schema. documents: see SearchQuery.for_legs.

    Raises FailedPrecondition for a field whose index is still being built.
    """
    try:
        legs = _fitted(request, collection.name, collection.schema, documents)
        return legs.heeding(collection.synonyms, collection.schema)
    except (InvalidArgument, FailedPrecondition):
        if collection.change is None:
            raise
        _fitted(request, collection.name, collection.change.schema, documents)  # What that refuses is refused afterwards too.
        raise being_indexed(collection) from None


def being_indexed(collection: Collection, fraction: float | None = None) -> FailedPrecondition:
    """What a search on a field gets whose index is still being built. fraction: how far it is, where that is known."""
    changed = {} if collection.change is None else collection.change.schema
    names = [name for name, kind in changed.items() if collection.schema.get(name) != kind]
    far = "kvshard status tells how far it is" if fraction is None else f"{fraction:.0%} of the documents are in the new index"
    message = f"collection {collection.name!r} is being indexed ({', '.join(names[:20])}); a search on that has to wait, {far}"
    return FailedPrecondition(message, ErrorDetails(field="collection", retry_after_ms=INDEXED_RETRY_MS))


def _fitted(request: SearchQuery, name: str, schema: Mapping[str, str], documents: Documents | None) -> SearchQuery:
    elsewhere = request.elsewhere if schema else {}
    legs = request.for_legs({**elsewhere, **schema}, documents)
    if elsewhere:
        text, tree, filters = narrowed(legs.query, legs.tree, legs.filters, schema, elsewhere)
        legs = replace(legs, query=text, tree=tree, filters=filters)
    check_search(legs, name, schema)
    return legs


def check_search(request: SearchQuery, collection: str, schema: Mapping[str, str]) -> None:
    """Everything about a search that can be told without a leaf, the syntax of its queries included."""
    if not schema:
        details = ErrorDetails(field="collection")
        raise FailedPrecondition(f"collection {collection!r} has no schema, so there is nothing to search", details)
    check_limit(request.limit)
    if not 1 <= request.facet_limit <= limits.FACET_MAX_VALUES:
        message = f"facet_limit must be 1 to {limits.FACET_MAX_VALUES}, not {request.facet_limit}"
        refuse(message, "facet_limit", limits.FACET_MAX_VALUES)
    if request.is_explanation_wanted and request.limit > EXPLAINED_MAX:
        refuse(f"at most {EXPLAINED_MAX} hits are explained, not {request.limit}; ask for fewer", "explain", EXPLAINED_MAX)
    if len(request.filters) > FILTERS_MAX:
        refuse(f"a search has at most {FILTERS_MAX} filters, not {len(request.filters)}", "filters", FILTERS_MAX)
    check_sort(parse_sort(request.sort), schema)
    check_shape(request.shape, schema, request.is_keys_only)
    for name in _distinct(request.facets, "facets"):
        _check_field(name, "facets", schema, lambda kind: kind == "keyword", "only keyword fields have facets")
    for name in _distinct(request.highlight, "highlight"):
        _check_field(name, "highlight", schema, lambda kind: base_type(kind) == "text", "only text fields can be highlighted")
    request.node(schema)
    if request.nearest is not None:
        _check_nearest(request, request.nearest, schema)
    for number, text in enumerate(request.filters):
        query.prepare(text, schema, f"filters[{number}]")
    check_aggregations(request.aggregations, schema, lambda text, where: query.prepare(text, schema, where))


def _check_nearest(request: SearchQuery, nearest: Nearest, schema: Mapping[str, str]) -> None:
    if request.sort:
        refuse("the nearest have an order of their own; leave the sort out", "sort")
    if request.shape.collapse:
        refuse("the nearest cannot be collapsed; leave collapse out", "collapse")
    vector_type = check_nearest(schema, nearest.field, len(nearest.vector), nearest.k)
    check_vector(vector_type, nearest.vector, "nearest.vector")


def _check_field(name: str, where: str, schema: Mapping[str, str], is_fit: Callable[[str], bool], otherwise: str) -> None:
    kind = schema.get(name)
    if kind is None:
        refuse(unknown_field(name, schema), where)
    if not is_fit(kind):
        refuse(f"{otherwise}: {name!r} is of type {kind}", where)


def _distinct(names: list[str], where: str) -> list[str]:
    if len(set(names)) != len(names):
        refuse(f"a field stands twice in {where}", where)
    return names


def check_shards(shards: Sequence[int], known: Mapping[int, object]) -> list[int]:
    """The shards that a search is restricted to, in order; each must exist."""
    for shard in shards:
        if shard not in known:
            refuse(f"there is no shard {shard}", "shards")
    return sorted(set(shards))


def check_collection_name(name: str, field: str = "name") -> None:
    """A collection's name is a letter, then letters, digits, "-" and "_"; at most COLLECTION_NAME_MAX_CHARS of them."""
    longest = limits.COLLECTION_NAME_MAX_CHARS
    if not 1 <= len(name) <= longest:
        refuse(f"a collection's name has 1 to {longest} characters, not {len(name)}", field, longest)
    if not (name.isascii() and name[0].isalpha() and name.replace("-", "").replace("_", "").isalnum()):
        refuse(f'{name!r} is no name for a collection: a letter, then letters, digits, "-" and "_"', field)
