"""How many hits each shard is asked for: fewer than a page has, since the shards share its hits.

Which shard a document lives in is decided by the hash of its key. So of the best `limit` documents each is in a shard by
chance, with the share of the tokens that the shard has, and how many of them it has is binomially distributed: of ten hits
a given one of eight shards has more than five once in 2,000 pages. Each is asked for so many as are enough but for a small
chance; where they are not, the page comes up short of it, and it is asked once more, for all. The page is the same either way.

What makes chance wrong: keys that are kept together by `{...}`, of which a query finds just those of one shard. Then pages come
up short more often than it pays, and while they do all hits are asked for at once.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import exp, lgamma, log, log1p
from typing import Final

MISS_CHANCE: Final = 0.005
"""That one shard or another has more of a page than it is asked for. Being asked again takes as long again as the first time:
so rarely, that a p99 does not see it."""

SHORT_MAX: Final = 0.06
"""Part of a collection's last pages that may have come up short. By chance alone it is far less; with more, the second time
shows in the tail of all searches."""

SHORT_WEIGHT: Final = 1 / 64
"""Of one page in that part: four pages that come up short in a row are too many, one in twenty is not."""

TRY_EVERY: Final = 32
"""Of the pages of a collection where too many came up short, so many are asked for whole until few hits are tried again."""

COLLECTIONS_MAX: Final = 1_024
"""Collections that this is kept of, some 100 bytes each; the least recently noted goes first."""


def hits_asked(limit: int, widths: Sequence[int], is_next_told: bool = True) -> list[int]:
    """How many hits each shard is asked for, when the page has so many. widths: how many tokens each shard has.

    is_next_told: a shard says how much its next hit scores, so that having delivered all that is asked for it need not be asked
    again. Without it one more tells the same.
    """
    whole, shards = sum(widths), len(widths)
    enough = [_enough(limit, width, whole, shards) for width in widths]
    return enough if is_next_told else [min(each + 1, limit) for each in enough]


@lru_cache(4_096)
def _enough(limit: int, width: int, whole: int, shards: int) -> int:
    """The smallest number that a shard exceeds with no more than its part of MISS_CHANCE."""
    if width >= whole:
        return limit
    log_in, log_out = log(width / whole), log1p(-width / whole)
    beyond, chance, most = limit, 0.0, MISS_CHANCE / shards
    while beyond > 1:  # None asked for would be none found.
        ways = lgamma(limit + 1) - lgamma(beyond + 1) - lgamma(limit - beyond + 1)
        chance += exp(ways + beyond * log_in + (limit - beyond) * log_out)
        if chance > most:
            break
        beyond -= 1
    return beyond


class ShortPages:
    """How often pages came up short, by collection, of those for which few hits were asked."""

    def __init__(self) -> None:
        self._parts: dict[int, float] = {}
        self._turn = 0

    def __repr__(self) -> str:
        return f"ShortPages({ {collection: round(part, 3) for collection, part in self._parts.items() if part >= 0.001} })"

    def may_ask_few(self, collection_id: int) -> bool:
        """Whether the next page of this collection may be tried with few hits."""
        if self._parts.get(collection_id, 0.0) <= SHORT_MAX:
            return True
        self._turn = (self._turn + 1) % TRY_EVERY
        return not self._turn

    def note(self, collection_id: int, is_short: bool) -> None:
        """A page for which few hits were asked is there."""
        part = self._parts.pop(collection_id, 0.0)
        self._parts[collection_id] = part + SHORT_WEIGHT * (is_short - part)
        if len(self._parts) > COLLECTIONS_MAX:
            del self._parts[next(iter(self._parts))]
