"""What a router knows of the statistics that scores rest on, shard by shard: heard in answers, kept for the next query.

For each collection it keeps the live documents of each shard, the tokens of each field, and for each term how many documents
have it. Every answer to a search brings the shard's present numbers for the terms of its query, so terms that are asked for
keep up with the writes without a message of their own; a term, or a text, that was never seen costs one round trip.

A number holds the effects of its shard's entries through some seqno. A replica that is behind tells older ones, which do not
replace newer ones. Nor do numbers from before a split count: the shard then was another.

The scores of an answer are exact when each shard that answered had just the numbers that were used for it. Numbers that may
have changed are used all the same for a while (`STALE_MAX_S`), since a ranking hardly depends on the last few writes.

Pure: imports only the standard library and other pure files.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from kvshard.model import TermStatistics
from kvshard.query.scored import ScoredText

CELLS_MAX: Final = 150_000
"""Numbers of shards, some 200 bytes each: 30 MB. With 8 shards those of 18,000 terms, with 64 of 2,300."""

TEXTS_MAX: Final = 20_000
"""Texts of which the terms are known, some 300 bytes each."""

QUERIES_MAX: Final = 1_000
"""Queries that turned out to have further terms: those of kinds that a router cannot see through."""

STALE_MAX_S: Final = 5.0
"""Numbers heard longer ago, of a shard that has changed since, are asked for again. In so long even a busy shard changes by few
of its documents; and whoever reads minutes after a large write finds it weighted."""

REFRESHED_STALE_MAX_S: Final = 1.0
"""The same where the search must see writes that the numbers are older than: it was promised to somebody. A second, so that
writes with a refresh, one after the other, do not cost each search a round trip."""

Term: TypeAlias = tuple[str, str]
"""(field, term of the index)"""

_Key: TypeAlias = tuple[int, str, str | None]
"""(collection, field, term). Without a term: the tokens of the field; without a field too: the documents."""


NO_FLOORS: Final[Mapping[int, int]] = {}


class Kind(Enum):
    """What the scores of an answer rest on. LOCAL: each shard's on its own statistics, at least for a part of the query."""

    EXACT = "exact"
    CACHED = "cached"
    LOCAL = "local"


_SHARD_BITS: Final = 16
"""Of a place, which is a shard as it is after so many cuts: `cuts << 16 | shard`. There are at most 65,536 of them."""

_SHARD_MASK: Final = (1 << _SHARD_BITS) - 1


class _Heard(NamedTuple):
    """An answer of a shard. generation, through: as in TermStatistics."""

    generation: int
    through: int
    at: float


class _Row:
    """What is known of a term, by place: the number, and the answer that it comes from."""

    __slots__ = ("heard", "values")

    def __init__(self) -> None:
        self.values: dict[int, int] = {}
        self.heard: dict[int, _Heard] = {}


_NO_ROW: Final = _Row()


class _Used(NamedTuple):
    """The numbers of a term as they went into a sum, and the answers that they come from. Not changed any more."""

    name: str
    term: str | None
    values: dict[int, int]
    heard: dict[int, _Heard]


@dataclass(frozen=True, slots=True)
class Summed:
    """The statistics for a query over all shards. places: shard -> place of those that are known; unknown: the others."""

    whole: TermStatistics
    rows: tuple[_Used, ...] = ()
    places: Mapping[int, int] = field(default_factory=dict)
    unknown: tuple[int, ...] = ()

    @property
    def parts(self) -> dict[int, TermStatistics]:
        """Those of each shard that is known, as they went in."""
        return {shard: _sums(self.rows, [place]) for shard, place in self.places.items()}

    @property
    def heard_at(self) -> dict[int, float]:
        """When each part was heard, its oldest number."""
        return {shard: min(row.heard[place].at for row in self.rows) for shard, place in self.places.items()}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the scores of an answer rest on. age_s: of the oldest number that was not confirmed by its shard.

    missing: terms that the query turned out to have beyond those that were known. is_stale: it is worth asking again.
    """

    kind: Kind
    age_s: float = 0.0
    missing: frozenset[Term] = frozenset()
    is_stale: bool = False


class KnownStatistics:
    """Invariant: `cells` counts the numbers kept, and there are at most cells_max, but for those of one term alone."""

    def __init__(self, cells_max: int = CELLS_MAX, texts_max: int = TEXTS_MAX) -> None:
        self.cells = 0
        self._cells_max = cells_max
        self._texts_max = texts_max
        self._rows: OrderedDict[_Key, _Row] = OrderedDict()
        self._texts: OrderedDict[tuple[int, ScoredText], tuple[Term, ...]] = OrderedDict()
        self._queries: OrderedDict[tuple[int, bytes], frozenset[Term]] = OrderedDict()

    def __repr__(self) -> str:
        return f"KnownStatistics({len(self._rows)} terms, {self.cells} numbers, {len(self._texts)} texts)"

    @property
    def terms(self) -> int:
        """Terms and fields of which something is known."""
        return len(self._rows)

    @property
    def texts(self) -> int:
        """Texts of which the terms are known."""
        return len(self._texts)

    def unknown_texts(self, collection: int, texts: Sequence[ScoredText]) -> list[ScoredText]:
        """Those of which nobody has told the terms yet."""
        return [text for text in texts if (collection, text) not in self._texts]

    def learn_texts(self, collection: int, texts: Sequence[ScoredText], terms: Sequence[Sequence[Term]]) -> None:
        """A leaf has told the terms of these texts."""
        for text, found in zip(texts, terms, strict=False):
            self._texts[collection, text] = tuple((name, term) for name, term in found)
            self._texts.move_to_end((collection, text))
        while len(self._texts) > self._texts_max:
            self._texts.popitem(last=False)

    def learn_query(self, collection: int, query: bytes, missing: frozenset[Term], texts: Sequence[ScoredText]) -> None:
        """A query turned out to have further terms; its texts may be cut otherwise by now."""
        self._queries[collection, query] = self._queries.get((collection, query), frozenset()) | missing
        self._queries.move_to_end((collection, query))
        if len(self._queries) > QUERIES_MAX:
            self._queries.popitem(last=False)
        for text in texts:
            self._texts.pop((collection, text), None)

    def terms_of(self, collection: int, query: bytes, texts: Sequence[ScoredText]) -> list[Term]:
        """The terms of a query's texts, as far as they are known, each once."""
        found: dict[Term, None] = {}
        for text in texts:
            terms = self._texts.get((collection, text))
            if terms is not None:
                self._texts.move_to_end((collection, text))
                found.update(dict.fromkeys(terms))
        found.update(dict.fromkeys(sorted(self._queries.get((collection, query), ()))))
        return list(found)

    def lacking(
        self,
        collection: int,
        terms: Iterable[Term],
        shards: Mapping[int, int],
        now: float,
        floors: Mapping[int, int] = NO_FLOORS,
    ) -> dict[int, dict[str, list[str]]]:
        """The terms whose numbers have to be asked for, by shard and field. shards: the cuts of each.

        floors: the seqno of each shard whose effects the search must see.
        """
        newest = self._rows.get((collection, "", None), _NO_ROW).heard
        places = [(shard, cuts << _SHARD_BITS | shard, floors.get(shard, 0)) for shard, cuts in shards.items()]
        found: dict[int, dict[str, list[str]]] = {}
        for name, term in terms:
            tokens = self._rows.get((collection, name, None), _NO_ROW).heard
            counts = self._rows.get((collection, name, term), _NO_ROW).heard
            for shard, place, floor in places:
                last, of_field, of_term = newest.get(place), tokens.get(place), counts.get(place)
                if (
                    last is None
                    or of_field is None
                    or of_term is None
                    or _is_lacking(of_field, last, floor, now)
                    or _is_lacking(of_term, last, floor, now)
                ):
                    found.setdefault(shard, {}).setdefault(name, []).append(term)
        return found

    def learn(self, collection: int, shard: int, cuts: int, told: TermStatistics, now: float, through: int = 0) -> None:
        """A shard has told its numbers. through: the seqno whose effects they had to hold."""
        place = cuts << _SHARD_BITS | shard
        heard = _Heard(told.generation, max(told.generation, told.through, through), now)
        self._put((collection, "", None), place, told.documents, heard)
        for name, tokens in told.tokens.items():
            self._put((collection, name, None), place, tokens, heard)
        for name, counts in told.counts.items():
            for term, count in counts.items():
                self._put((collection, name, term), place, count, heard)
        while self.cells > self._cells_max and len(self._rows) > 1:
            _, row = self._rows.popitem(last=False)
            self.cells -= len(row.values)

    def summed(self, collection: int, terms: Sequence[Term], shards: Mapping[int, int]) -> Summed:
        """The statistics for these terms over all shards of which they are known."""
        keys: dict[_Key, None] = {(collection, "", None): None}
        for name, term in terms:
            keys[collection, name, None] = keys[collection, name, term] = None
        places = {shard: cuts << _SHARD_BITS | shard for shard, cuts in shards.items()}
        rows: list[_Used] = []
        for key in keys:
            row = self._rows.get(key, _NO_ROW)
            if row is not _NO_ROW:
                self._rows.move_to_end(key)
            rows.append(_Used(key[1], key[2], row.values.copy(), row.heard.copy()))
        unknown = tuple(shard for shard, place in places.items() if not all(place in row.values for row in rows))
        for shard in unknown:
            del places[shard]
        return Summed(_sums(rows, places.values()), tuple(rows), places, unknown)

    def _put(self, key: _Key, place: int, value: int, heard: _Heard) -> None:
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = _Row()
        before = row.heard.get(place)
        if before is None:
            if not self._is_newest(row, place):
                return
            self._rows.move_to_end(key)
            self.cells += 1
        elif heard.through < before.through:
            return
        row.values[place] = value
        row.heard[place] = heard

    def _is_newest(self, row: _Row, place: int) -> bool:
        """Whether nothing is known of the shard since a later cut; what is known from before this one is forgotten."""
        others = [other for other in row.values if (other ^ place) & _SHARD_MASK == 0]
        if any(other > place for other in others):
            return False
        for other in others:
            del row.values[other], row.heard[other]
        self.cells -= len(others)
        return True


def _is_lacking(heard: _Heard, last: _Heard, floor: int, now: float) -> bool:
    through = heard.through
    if through >= floor and through >= last.generation:
        return False
    age_s = now - heard.at
    return age_s > REFRESHED_STALE_MAX_S if through < floor else age_s > STALE_MAX_S


def _sums(rows: Iterable[_Used], places: Iterable[int]) -> TermStatistics:
    """The numbers of all these places together."""
    wanted = list(places)
    documents = 0
    tokens: dict[str, int] = {}
    counts: dict[str, dict[str, int]] = {}
    for name, term, values, _ in rows:
        total = sum([values[place] for place in wanted])
        if term is not None:
            counts.setdefault(name, {})[term] = total
        elif name:
            tokens[name] = total
        else:
            documents = total
    return TermStatistics(documents, tokens, counts)


def is_sum_of(whole: TermStatistics, parts: Sequence[TermStatistics]) -> bool:
    """Whether statistics over all shards are those that the shards have now."""
    if sum([part.documents for part in parts]) != whole.documents or any(part.counts.keys() - whole.counts for part in parts):
        return False
    for name, counts in whole.counts.items():
        found = [part.counts.get(name, {}) for part in parts]
        if sum([part.tokens.get(name, 0) for part in parts]) != whole.tokens.get(name, 0):
            return False
        if any(each.keys() - counts for each in found):
            return False
        if any(sum([each.get(term, 0) for each in found]) != count for term, count in counts.items()):
            return False
    return True


def verdict(used: Summed, answered: Mapping[int, TermStatistics | None], now: float) -> Verdict:
    """What the scores of an answer rest on. answered: what each shard that answered told of its own; None: nothing."""
    told = {shard: own for shard, own in answered.items() if own is not None}
    if len(told) == len(answered) == len(used.places) + len(used.unknown) and is_sum_of(used.whole, [*told.values()]):
        return Verdict(Kind.EXACT)  # Most often; and nothing else matters to a score than the sums.
    known = {(name, term) for name, counts in used.whole.counts.items() for term in counts}
    missing = frozenset(
        (name, term)
        for own in told.values()
        for name, counts in own.counts.items()
        for term in counts
        if (name, term) not in known
    )
    if not known and not missing:
        return Verdict(Kind.EXACT)  # Nothing of it is scored by how rare it is.
    if missing or len(told) < len(answered) or (used.whole.documents <= 0 and any(own.documents for own in told.values())):
        return Verdict(Kind.LOCAL, missing=missing, is_stale=bool(told))
    ages, is_changed, heard_at = [], False, used.heard_at
    for shard, part in used.parts.items():
        own = told.get(shard)
        if own is None or not _agrees(part, own):
            ages.append(now - heard_at[shard])
            is_changed |= own is not None and ages[-1] > STALE_MAX_S
    if not ages and not used.unknown:
        return Verdict(Kind.EXACT)
    return Verdict(Kind.CACHED, max(ages, default=0.0), is_stale=is_changed or any(shard in told for shard in used.unknown))


def _agrees(used: TermStatistics, own: TermStatistics) -> bool:
    """Whether a shard has the numbers that were used for it. It tells those for the terms that its query has."""
    return used.documents == own.documents and all(
        used.tokens.get(name) == own.tokens.get(name)
        and all(used.counts.get(name, {}).get(term) == count for term, count in counts.items())
        for name, counts in own.counts.items()
    )
