"""What a query may be at most, each bound with its reason.

Pure: imports only the standard library.
"""

from typing import Final

QUERY_MAX_CLAUSES: Final = 1_024
"""Each clause opens a cursor in every segment of every shard; more of them is a job for a keyword field. (As in Lucene.)"""

QUERY_MAX_NESTING: Final = 32
"""The parser and the leaf's compiler recurse; nobody writes deeper parentheses by hand."""

TREE_MAX_DEPTH: Final = 4 * QUERY_MAX_NESTING + 8
"""Of what travels to a leaf: each level of a structured query may be a boost, fields, a group and a word."""

BOOST_MAX: Final = 1_000.0
"""Beyond it the other clauses' share of a 32-bit score drowns in rounding."""

BOOST_PRODUCT_MAX: Final = 1e6
"""Of boosts inside each other: 32 of the largest would make scores infinite, and then nothing is in order."""

SLOP_MAX: Final = 100
"""Words further apart than this only stand in the same text, which AND asks for at a fraction of the cost."""

DISTANCE_MAX: Final = 2
"""The automaton for three letters has thousands of states, and finds words that nobody would call alike. (As in Lucene.)"""

QUERY_MAX_PATTERNS: Final = 64
"""Prefixes, wildcards and fuzzy words together: each looks through up to 65,536 words of a shard, some 10 to 50 ms."""

WILDCARD_MAX_CHARS: Final = 256
"""Words of a text have at most 40 bytes, keywords seldom more; each word looked at costs in proportion to it."""

STRUCTURED_MAX_CHARS: Final = 100_000
"""All texts of a structured query together: ten query strings' worth, and what a shard parses or cuts in a few milliseconds."""

LIKE_MAX_CHARS: Final = 20_000
"""Of a text that others are to be like: some 3,000 words tell what it is about, and every shard cuts them."""

LIKE_MAX_TEXTS: Final = 16
"""Texts and documents that others are to be like together."""

LIKE_MAX_WORDS: Final = 100
"""Words taken out of them: each is a clause; the hundredth most telling word tells little."""

FUZZY_ONE_FROM_CHARS: Final = 3
FUZZY_TWO_FROM_CHARS: Final = 6
"""`word~`: shorter words are exact, from the first length on one letter may be wrong, from the second on two. (As in
Elasticsearch.)"""


def fuzzy_distance(distance: int | None, chars: int) -> int:
    """How many letters of a word of so many characters may be wrong. None: by its length.

    Never all of them: `ab~2` would find every word of up to two letters.
    """
    if distance is None:
        return 0 if chars < FUZZY_ONE_FROM_CHARS else 1 if chars < FUZZY_TWO_FROM_CHARS else 2
    return max(0, min(distance, chars - 1))
