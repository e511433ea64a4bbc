"""Structured queries: what a program builds instead of a query string, as plain data.

    Bool(must=[Match("tail latency", fields=["title^3", "body"], minimum_should_match="75%")],
         filter=[Term("tag", "python"), Range("year", gte=2020)],
         must_not=[Exists("withdrawn")])

Fields to look in are named as "title" or, with a boost, as "title^3"; none: all text fields of the collection, or if it has
none, all keyword fields. Values are written as in a query string: numbers, dates (RFC 3339 or YYYY-MM-DD), true and false.

Nothing is checked here: the router does it, and its errors name the part at fault, as in "structured.bool.filter[1].range".

Pure: imports only the standard library.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Value: TypeAlias = str | int | float | bool
"""A value of a field: dates as text."""

Share: TypeAlias = int | str
"""How many of several have to match: 2, "75%" (rounded down), -1 or "-25%" (so many may be missing)."""

Auto: TypeAlias = Literal["auto"]
"""As many letters as the length of a word allows."""

Operator: TypeAlias = Literal["or", "and"]
"""What stands between words that have nothing between them."""


@dataclass(frozen=True, slots=True)
class MatchAll:
    """Every document."""


@dataclass(frozen=True, slots=True)
class MatchNone:
    """No document."""


@dataclass(frozen=True, slots=True)
class Match:
    """Documents with the words of a text; with all of them if operator is "and". A document gets its best field's score a word.

    fuzziness: so many letters of each word may be wrong, 0 to 2; "auto": by its length.
    """

    text: str
    fields: Sequence[str] = ()
    operator: Operator = "or"
    minimum_should_match: Share | None = None
    fuzziness: int | Auto | None = None


@dataclass(frozen=True, slots=True)
class MatchPhrase:
    """Documents with the words in this order, next to each other, or up to slop places off."""

    text: str
    fields: Sequence[str] = ()
    slop: int = 0


@dataclass(frozen=True, slots=True)
class Term:
    """Documents with this very value in a field that is not text."""

    field: str
    value: Value


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Documents with any of these values in a field that is not text. Each scores 1."""

    field: str
    values: Sequence[Value]


@dataclass(frozen=True, slots=True)
class Prefix:
    """Documents with a word or keyword that begins so. Each scores 1."""

    field: str
    text: str


@dataclass(frozen=True, slots=True)
class Wildcard:
    """Documents with a word or keyword like the pattern: * is any text, ? one character, a backslash takes either literally.

    Each scores 1.
    """

    field: str
    pattern: str


@dataclass(frozen=True, slots=True)
class Regex:
    """Documents with a word or keyword that the regular expression matches as a whole: `.`, `[a-z]`, `\\d`, `(a|b)`, `*`, `+`,
    `?`, `{2,5}`. Each scores 1.
    """

    field: str
    pattern: str


@dataclass(frozen=True, slots=True)
class Fuzzy:
    """Documents with a word of which up to `distance` letters are otherwise; None: by its length. Each scores 1."""

    field: str
    text: str
    distance: int | None = None


@dataclass(frozen=True, slots=True)
class Range:
    """Documents with a value between the bounds. Each scores 1."""

    field: str
    gt: Value | None = None
    gte: Value | None = None
    lt: Value | None = None
    lte: Value | None = None


@dataclass(frozen=True, slots=True)
class Exists:
    """Documents that have a value in the field. Each scores 1."""

    field: str


@dataclass(frozen=True, slots=True)
class Bool:
    """Documents that match all of `must` and `filter`, none of `must_not`, and so many of `should`: unless
    minimum_should_match says it, one if there is neither `must` nor `filter`, else none. `filter` does not score.
    """

    must: "Sequence[StructuredQuery]" = ()
    should: "Sequence[StructuredQuery]" = ()
    must_not: "Sequence[StructuredQuery]" = ()
    filter: "Sequence[StructuredQuery]" = ()
    minimum_should_match: Share | None = None


@dataclass(frozen=True, slots=True)
class DisMax:
    """Documents that match any of the queries, with the best of their scores and tie_breaker (0 to 1) times the others."""

    queries: "Sequence[StructuredQuery]"
    tie_breaker: float = 0.0


@dataclass(frozen=True, slots=True)
class ConstantScore:
    """What the query finds, each with this score."""

    query: "StructuredQuery"
    score: float = 1.0


@dataclass(frozen=True, slots=True)
class Boost:
    """What the query finds, its scores multiplied."""

    query: "StructuredQuery"
    factor: float


@dataclass(frozen=True, slots=True)
class QueryString:
    """A query string, as in `search("...")`."""

    query: str
    fields: Sequence[str] = ()
    operator: Operator = "or"
    minimum_should_match: Share | None = None


@dataclass(frozen=True, slots=True)
class MoreLikeThis:
    """Documents that share telling words with texts, or with the documents of some keys (which are not found themselves).

    The max_query_terms most telling words are taken of those that the texts have min_term_freq times and min_doc_freq (and at
    most max_doc_freq, 0: any) documents have; minimum_should_match of them have to match.
    """

    texts: Sequence[str] = ()
    keys: Sequence[bytes | str] = ()
    fields: Sequence[str] = ()
    max_query_terms: int = 25
    min_term_freq: int = 2
    min_doc_freq: int = 5
    max_doc_freq: int = 0
    min_word_length: int = 0
    minimum_should_match: Share = "30%"


StructuredQuery: TypeAlias = (
    MatchAll
    | MatchNone
    | Match
    | MatchPhrase
    | Term
    | AnyOf
    | Prefix
    | Wildcard
    | Regex
    | Fuzzy
    | Range
    | Exists
    | Bool
    | DisMax
    | ConstantScore
    | Boost
    | QueryString
    | MoreLikeThis
)
