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


class _Cell(NamedTuple):
    """generation, through: as in TermStatistics."""

    value: int
    generation: int
    through: int
    heard_at: float
    cuts: int


@dataclass(frozen=True, slots=True)
class Summed:
    """The statistics for a query over all shards. parts: of each shard that is known, as they went in.

    heard_at: when each part was heard, its oldest number. unknown: shards of which some number is not known.
    """

    whole: TermStatistics
    parts: dict[int, TermStatistics] = field(default_factory=dict)
    heard_at: dict[int, float] = field(default_factory=dict)
    unknown: tuple[int, ...] = ()


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
        self._rows: OrderedDict[_Key, dict[int, _Cell]] = OrderedDict()
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
        documents = self._rows.get((collection, "", None), {})
        found: dict[int, dict[str, list[str]]] = {}
        for name, term in terms:
            rows = (self._rows.get((collection, name, None), {}), self._rows.get((collection, name, term), {}))
            for shard, cuts in shards.items():
                newest = documents.get(shard)
                floor = floors.get(shard, 0)
                if newest is None or any(_is_lacking(row.get(shard), cuts, newest, floor, now) for row in rows):
                    found.setdefault(shard, {}).setdefault(name, []).append(term)
        return found

    def learn(self, collection: int, shard: int, cuts: int, heard: TermStatistics, now: float, through: int = 0) -> None:
        """A shard has told its numbers. through: the seqno whose effects they had to hold."""
        generation, through = heard.generation, max(heard.generation, heard.through, through)
        self._put((collection, "", None), shard, _Cell(heard.documents, generation, through, now, cuts))
        for name, tokens in heard.tokens.items():
            self._put((collection, name, None), shard, _Cell(tokens, generation, through, now, cuts))
        for name, counts in heard.counts.items():
            for term, count in counts.items():
                self._put((collection, name, term), shard, _Cell(count, generation, through, now, cuts))
        while self.cells > self._cells_max and len(self._rows) > 1:
            _, row = self._rows.popitem(last=False)
            self.cells -= len(row)

    def summed(self, collection: int, terms: Sequence[Term], shards: Mapping[int, int]) -> Summed:
        """The statistics for these terms over all shards of which they are known."""
        fields = dict.fromkeys(name for name, _ in terms)
        keys: list[_Key] = [(collection, "", None), *((collection, name, None) for name in fields)]
        keys += [(collection, name, term) for name, term in terms]
        rows = [(key, self._rows.get(key, {})) for key in keys]
        parts: dict[int, TermStatistics] = {}
        heard_at: dict[int, float] = {}
        for shard, cuts in shards.items():
            cells = [(name, term, row.get(shard)) for (_, name, term), row in rows]
            known = [(name, term, cell) for name, term, cell in cells if cell is not None and cell.cuts == cuts]
            if len(known) == len(cells):
                parts[shard] = _part(known)
                heard_at[shard] = min(cell.heard_at for _, _, cell in known)
        for key in keys:
            if key in self._rows:
                self._rows.move_to_end(key)
        unknown = tuple(shard for shard in shards if shard not in parts)
        return Summed(_whole(parts.values(), terms), parts, heard_at, unknown)

    def _put(self, key: _Key, shard: int, cell: _Cell) -> None:
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = {}
        else:
            self._rows.move_to_end(key)
        known = row.get(shard)
        if known is None:
            self.cells += 1
        elif (cell.cuts, cell.through) < (known.cuts, known.through):
            return
        row[shard] = cell


def _is_lacking(cell: _Cell | None, cuts: int, newest: _Cell, floor: int, now: float) -> bool:
    if cell is None or cell.cuts != cuts:
        return True
    if cell.through < floor and now - cell.heard_at > REFRESHED_STALE_MAX_S:
        return True
    return cell.through < newest.generation and now - cell.heard_at > STALE_MAX_S


def _part(cells: Iterable[tuple[str, str | None, _Cell]]) -> TermStatistics:
    documents = 0
    tokens: dict[str, int] = {}
    counts: dict[str, dict[str, int]] = {}
    for name, term, cell in cells:
        if term is not None:
            counts.setdefault(name, {})[term] = cell.value
        elif name:
            tokens[name] = cell.value
        else:
            documents = cell.value
    return TermStatistics(documents, tokens, counts)


def _whole(parts: Iterable[TermStatistics], terms: Sequence[Term]) -> TermStatistics:
    documents = 0
    tokens = dict.fromkeys((name for name, _ in terms), 0)
    counts: dict[str, dict[str, int]] = {}
    for name, term in terms:
        counts.setdefault(name, {})[term] = 0
    for part in parts:
        documents += part.documents
        for name, value in part.tokens.items():
            tokens[name] += value
        for name, each in part.counts.items():
            for term, count in each.items():
                counts[name][term] += count
    return TermStatistics(documents, tokens, counts)


def is_sum_of(whole: TermStatistics, parts: Iterable[TermStatistics]) -> bool:
    """Whether statistics over all shards are those that the shards have now."""
    terms = [(name, term) for name, counts in whole.counts.items() for term in counts]
    given = list(parts)
    if any((name, term) not in terms for part in given for name, counts in part.counts.items() for term in counts):
        return False
    found = _whole(given, terms)
    return (found.documents, found.tokens, found.counts) == (whole.documents, whole.tokens, whole.counts)


def verdict(used: Summed, answered: Mapping[int, TermStatistics | None], now: float) -> Verdict:
    """What the scores of an answer rest on. answered: what each shard that answered told of its own; None: nothing."""
    known = {(name, term) for name, counts in used.whole.counts.items() for term in counts}
    told = {shard: own for shard, own in answered.items() if own is not None}
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
    ages, is_changed = [], False
    for shard, part in used.parts.items():
        own = told.get(shard)
        if own is None or not _agrees(part, own):
            ages.append(now - used.heard_at[shard])
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
