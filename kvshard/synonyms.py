"""Synonyms of a collection: which words mean the same, said in rules, and what a query means by them.

A rule is a line of text:
- `car, automobile, motor car` - whoever looks for one of them finds all;
- `laptop => notebook, portable computer` - who looks for what stands left finds what stands right too, not the other way.

Sides may have several words; those are looked for as a phrase. Case does not matter. Rules say what was typed, not stems, and
are not followed from one to the next. They are heeded when a query is read, in words and whole phrases of text fields: a change
needs no new index. The score is that of the best of the synonyms. Prefixes, patterns and fuzzy words have none.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, TypeAlias

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.query.bounds import QUERY_MAX_CLAUSES
from kvshard.query.syntax import Best, Boost, Clause, Constant, Group, Node, Occur, Phrase, Within, Word
from kvshard.schema import TEXT, Schema, base_type

RULES_MAX: Final = 1_000
"""Of a collection. Each rule is looked at whenever the map is read anew."""

RULES_MAX_CHARS: Final = 16_384
"""Of all rules of a collection together: they are part of the cluster map, which every process and every client holds."""

TERMS_MAX: Final = 20
"""Of a rule: each of them is a clause of every query that has one of the others."""

WORDS_MAX: Final = 8
"""Of a term: a longer one is no synonym but a sentence."""

_ARROW: Final = "=>"
_CACHED_TABLES: Final = 64
"""Of collections that are searched: a table is built in milliseconds and takes some 100 kB."""

_Words: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SynonymTable:
    """Rules made ready for queries. others: the words of a term, in lower case -> what else they may mean.

    longest: words of the longest term.
    """

    others: Mapping[_Words, tuple[_Words, ...]]
    longest: int


def check_synonyms(rules: Iterable[str]) -> tuple[str, ...]:
    """The rules in canonical form; empty lines and comments (`#`) are left out. Raises InvalidArgument that names the rule."""
    kept: list[str] = []
    for number, line in enumerate(rules, 1):
        text = line.strip()
        if text and not text.startswith("#"):
            left, right = _sides(text, number)
            terms = ", ".join(map(" ".join, left))
            kept.append(f"{terms} {_ARROW} {', '.join(map(' '.join, right))}" if right else terms)
    if len(kept) > RULES_MAX:
        raise _bad(f"a collection has at most {RULES_MAX} synonym rules, not {len(kept)}", RULES_MAX)
    size = sum(map(len, kept))
    if size > RULES_MAX_CHARS:
        raise _bad(f"synonym rules have at most {RULES_MAX_CHARS} characters together, not {size}", RULES_MAX_CHARS)
    return tuple(kept)


@lru_cache(_CACHED_TABLES)
def table_of(rules: tuple[str, ...]) -> SynonymTable:
    """The rules, as `check_synonyms` gives them, ready for queries."""
    found: dict[_Words, dict[_Words, None]] = {}
    for number, rule in enumerate(rules, 1):
        left, right = _sides(rule, number)
        for term in left:
            others = found.setdefault(term, {})
            others.update(dict.fromkeys(other for other in right or left if other != term))
    table = {term: tuple(others) for term, others in found.items() if others}
    return SynonymTable(table, max(map(len, table), default=0))


def rules_for(rules: tuple[str, ...], nodes: Iterable[Node]) -> list[str]:
    """Those of the rules that may say something of these queries: few, where there are many.

    A router sends them along, so that all shards heed the same rules, and a change at once.
    """
    if not rules:
        return []
    words = {word for node in nodes for word in _words_of(node)}
    return [rule for rule, terms in _terms_of(rules) if any(words.issuperset(term) for term in terms)]


@lru_cache(_CACHED_TABLES)
def _terms_of(rules: tuple[str, ...]) -> list[tuple[str, list[_Words]]]:
    """Each rule with the terms that stand left in it."""
    return [(rule, _sides(rule, number)[0]) for number, rule in enumerate(rules, 1)]


def _words_of(node: Node) -> Iterator[str]:
    match node:
        case Word() | Phrase():
            yield from node.text.lower().split()
        case Group():
            for clause in node.clauses:
                yield from _words_of(clause.node)
        case Best():
            for each in node.nodes:
                yield from _words_of(each)
        case Boost() | Constant() | Within():
            yield from _words_of(node.node)
        case _:
            return


def with_synonyms(node: Node, table: SynonymTable, schema: Schema) -> Node:
    """The query with its words meaning their synonyms too.

    Raises InvalidArgument when it would come to more than QUERY_MAX_CLAUSES clauses by that.
    """
    return _Rewriting(table, schema).node(node) if table.others else node


class _Rewriting:
    """Of one query."""

    def __init__(self, table: SynonymTable, schema: Schema) -> None:
        self._table = table
        self._schema = schema
        self._has_texts = any(base_type(field_type) == TEXT for field_type in schema.values())
        self._left = QUERY_MAX_CLAUSES

    def node(self, node: Node) -> Node:
        match node:
            case Word() | Phrase():
                others = self._others(node.field, tuple(node.text.lower().split()))
                return Best((node, *_terms(node.field, others, node.position))) if others else node
            case Group():
                return replace(node, clauses=tuple(self._clauses(node)))
            case Best():
                return replace(node, nodes=tuple(map(self.node, node.nodes)))
            case Boost() | Constant() | Within():
                return replace(node, node=self.node(node.node))
            case _:
                return node

    def _clauses(self, group: Group) -> Iterator[Clause]:
        at = 0
        while at < len(group.clauses):
            run = self._run(group, at)
            clause = group.clauses[at]
            if not run:
                yield Clause(clause.occur, self.node(clause.node))
                at += 1
                continue
            first = run[0]
            together = Group(tuple(Clause(clause.occur, self.node(word)) for word in run))
            others = self._others(first.field, _lower(run))
            yield Clause(clause.occur, Best((together, *_terms(first.field, others, first.position))))
            at += len(run)

    def _run(self, group: Group, at: int) -> list[Word]:
        """The most words from there on that stand side by side and are one term together; none where a single word is."""
        occur = group.clauses[at].occur
        if group.minimum is not None or occur is Occur.MUST_NOT:
            return []  # Words that are counted, or excluded one by one, stay clauses of their own.
        words: list[Word] = []
        for clause in group.clauses[at : at + self._table.longest]:
            is_next = clause.occur is occur and isinstance(clause.node, Word)
            if not is_next or not isinstance(clause.node, Word) or (words and clause.node.field != words[0].field):
                break
            words.append(clause.node)
        while len(words) > 1 and _lower(words) not in self._table.others:
            words.pop()
        return words if len(words) > 1 and self._is_text(words[0].field) else []

    def _others(self, field: str | None, words: _Words) -> tuple[_Words, ...]:
        others = self._table.others.get(words, ()) if self._is_text(field) else ()
        self._left -= len(others)
        if self._left < 0:
            message = f"the query and its synonyms come to more than {QUERY_MAX_CLAUSES:,} clauses"
            raise InvalidArgument(message, ErrorDetails(field="query", limit=QUERY_MAX_CLAUSES))
        return others

    def _is_text(self, field: str | None) -> bool:
        return self._has_texts if field is None else base_type(self._schema[field]) == TEXT


def _lower(words: Sequence[Word]) -> _Words:
    return tuple(word.text.lower() for word in words)


def _terms(field: str | None, terms: Iterable[_Words], position: int) -> Iterator[Node]:
    for words in terms:
        if len(words) == 1:
            yield Word(field, words[0], position)
        else:
            yield Phrase(field, " ".join(words), position=position)


def _sides(rule: str, number: int) -> tuple[list[_Words], list[_Words]]:
    """The terms of a rule, and if it has an arrow those behind it."""
    before, arrow, after = rule.partition(_ARROW)
    left = _side(before, rule, number)
    right = _side(after, rule, number) if arrow else []
    if not arrow and len(left) < 2:
        raise _bad_rule(rule, number, "needs at least two different terms, as in: car, automobile")
    if len(left) + len(right) > TERMS_MAX:
        raise _bad_rule(rule, number, f"has more than {TERMS_MAX} terms", TERMS_MAX)
    return left, right


def _side(text: str, rule: str, number: int) -> list[_Words]:
    if _ARROW in text:
        raise _bad_rule(rule, number, "has more than one =>")
    terms = [tuple(term.lower().split()) for term in text.split(",")]
    if not all(terms):
        raise _bad_rule(rule, number, "has an empty term")
    if any(len(term) > WORDS_MAX for term in terms):
        raise _bad_rule(rule, number, f"has a term of more than {WORDS_MAX} words", WORDS_MAX)
    for word in (word for term in terms for word in term):
        if not any(char.isalnum() for char in word):
            raise _bad_rule(rule, number, f"has the term {word[:20]!r}, in which there is nothing to search for")
    return list(dict.fromkeys(terms))


def _bad_rule(rule: str, number: int, why: str, limit: int | None = None) -> InvalidArgument:
    shown = rule if len(rule) <= 60 else f"{rule[:60]}..."
    return _bad(f"synonym rule {number} {why}: {shown!r}", limit)


def _bad(message: str, limit: int | None = None) -> InvalidArgument:
    return InvalidArgument(message, ErrorDetails(field="synonyms", limit=limit))
