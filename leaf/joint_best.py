"""What the legs of one search find on this leaf, together: down to which score anybody may still be on the page.

A page takes so many hits from all shards. Where the legs that this leaf runs have found as many documents of one score or a
better one, whatever scores less in any of their shards is not on the page: it need not be scored exactly, read or sent. Each
leg may know its scores only within bounds when the others ask. What counts is what a document has at least: the n-th best of
such least scores is no better than the n-th best of the right ones.

Pure: imports only the standard library.
"""

from collections.abc import Sequence
from heapq import nlargest
from itertools import chain
from math import inf


class JointBest:
    """The scores of the best documents of each leg. wanted: hits of a page.

    Several threads may call at once: a list of scores is replaced as a whole.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._scores: dict[int, Sequence[float]] = {}

    def __repr__(self) -> str:
        return f"JointBest({self._wanted} of {len(self._scores)} legs, from {self.bar} on)"

    def note(self, shard: int, scores: Sequence[float]) -> None:
        """A leg will tell of documents that have these scores at least. Replaces what it has said before."""
        self._scores[shard] = scores

    @property
    def bar(self) -> float:
        """The score that a document has to reach; -inf while there are too few to tell."""
        best = nlargest(self._wanted, chain.from_iterable(list(self._scores.values())))
        return best[-1] if len(best) == self._wanted else -inf
