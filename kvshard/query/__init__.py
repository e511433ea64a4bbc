"""The query language: `syntax` is what a query consists of, `parser` reads it, `literals` fits it to a schema."""

from kvshard.query.literals import Interval, check_query, default_fields, interval_of, prepare
from kvshard.query.parser import parse_query
from kvshard.query.syntax import (
    Boost,
    Clause,
    Exists,
    Group,
    MatchAll,
    Node,
    Occur,
    Phrase,
    Prefix,
    Range,
    Word,
    print_query,
)

__all__ = [
    "Boost",
    "Clause",
    "Exists",
    "Group",
    "Interval",
    "MatchAll",
    "Node",
    "Occur",
    "Phrase",
    "Prefix",
    "Range",
    "Word",
    "check_query",
    "default_fields",
    "interval_of",
    "parse_query",
    "prepare",
    "print_query",
]
