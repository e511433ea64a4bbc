"""The parts of a query's matches that the order of a search tells apart: equal by a field, behind a value, behind a key.

They restrict a query and leave its scores what they are, to the last bit: the further clause adds nothing to them.
"""

from collections.abc import Callable, Iterable, Sequence

import tantivy
from tantivy import Occur, Query

from kvshard.model import SortValue
from kvshard.schema import FLOAT, KEYWORD, Schema
from kvshard.sorting import SortKey
from leaf.index_fields import KEY, key_text, keyword_term, sort_value_type, sorted_by


class OrderQueries:
    """Makes such queries for one index. parse: tantivy's query parser, the only way to a range over text."""

    def __init__(self, fields: tantivy.Schema, schema: Schema, parse: Callable[[str], Query]) -> None:
        self._fields = fields
        self._schema = schema
        self._parse = parse

    def having(self, query: Query, name: str, value: SortValue) -> Query:
        """The matches whose sort value of a field is this one; None: that have none."""
        if value is None:
            return without(query, Query.exists_query(sorted_by(name)))
        if self._schema[name] == KEYWORD:
            return both(query, Query.term_query(self._fields, sorted_by(name), keyword_term(str(value)), "basic"))
        return both(query, self._numbers(name, value, value, includes_bounds=True))

    def missing(self, query: Query, name: str) -> Query:
        """The matches without a value of the field."""
        return without(query, Query.exists_query(sorted_by(name)))

    def present(self, query: Query, name: str) -> Query:
        """The matches with a value of the field."""
        return both(query, Query.exists_query(sorted_by(name)))

    def beyond(self, query: Query, key: SortKey, value: SortValue) -> Query:
        """The matches with a value that comes behind this one."""
        if value is None:
            return self.present(query, key.name)
        lower, upper = (None, value) if key.is_descending else (value, None)
        if self._schema[key.name] != KEYWORD:
            return both(query, self._numbers(key.name, lower, upper, includes_bounds=False))
        low, high = ("*" if bound is None else keyword_term(str(bound)) for bound in (lower, upper))
        return both(query, self._parse(f"{sorted_by(key.name)}:{{{low} TO {high}}}"))

    def keys_beyond(self, query: Query, key: bytes, is_descending: bool) -> Query:
        """The matches whose keys come behind this one."""
        bound = key_text(key)
        low, high = ("*", bound) if is_descending else (bound, "*")
        return both(query, self._parse(f"{KEY}:{{{low} TO {high}}}"))

    def any_of(self, query: Query, name: str, values: Iterable[SortValue]) -> Query:
        """The matches whose value of a keyword or an integer field is one of these; None is not looked for."""
        return both(query, self._value_set(name, values))

    def none_of(self, query: Query, name: str, values: Sequence[SortValue]) -> Query:
        """The matches whose value of a keyword or an integer field is none of these."""
        left = self.present(query, name) if None in values else query
        return without(left, self._value_set(name, values)) if any(value is not None for value in values) else left

    def of_keys(self, query: Query, keys: Iterable[bytes]) -> Query:
        """The matches among these documents."""
        return both(query, Query.term_set_query(self._fields, KEY, [key_text(key) for key in keys]))

    def _value_set(self, name: str, values: Iterable[SortValue]) -> Query:
        terms = [keyword_term(value) if isinstance(value, str) else value for value in values if value is not None]
        return Query.term_set_query(self._fields, sorted_by(name), terms)

    def _numbers(self, name: str, lower: SortValue, upper: SortValue, includes_bounds: bool) -> Query:
        field_type = self._schema[name]
        number = float if field_type == FLOAT else int
        low, high = (None if bound is None else number(bound) for bound in (lower, upper))
        kind = sort_value_type(field_type)
        # tantivy wants a side without a bound to be inclusive.
        includes_low, includes_high = (includes_bounds or bound is None for bound in (low, high))
        return Query.range_query(self._fields, sorted_by(name), kind, low, high, includes_low, includes_high)


def both(query: Query, further: Query) -> Query:
    """The matches that match the further query as well."""
    return Query.boolean_query([(Occur.Must, query), (Occur.Must, Query.const_score_query(further, 0.0))])


def without(query: Query, further: Query) -> Query:
    """The matches that do not match the further query."""
    return Query.boolean_query([(Occur.Must, query), (Occur.MustNot, further)])
