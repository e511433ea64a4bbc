"""A query over several collections, as one of them is asked: what names a field that only others have matches nothing there.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from kvshard.query.literals import prepare
from kvshard.query.syntax import (
    Alike,
    AnyOf,
    Best,
    Boost,
    Clause,
    Constant,
    Exists,
    Fuzzy,
    Group,
    MatchAll,
    MatchNone,
    Node,
    Occur,
    Phrase,
    Prefix,
    Range,
    Regex,
    Wildcard,
    Within,
    Word,
)
from kvshard.query.tree import NEEDS_TREE, encode_tree
from kvshard.schema import Schema

Asked: TypeAlias = tuple[str, str, list[str]]
"""(query string, tree, filters), as a leg carries them."""


def narrowed(text: str, tree: str, filters: Sequence[str], schema: Schema, elsewhere: Mapping[str, str]) -> Asked:
    """The query for a collection with this schema. elsewhere: the fields of the others; one that nobody has is an error.

    Raises InvalidArgument, MalformedQuery.
    """
    everywhere = {**elsewhere, **schema}
    node = prepare(text, everywhere, tree=tree)
    conditions = [prepare(each, everywhere, f"filters[{at}]") for at, each in enumerate(filters)]
    here, conditions_here = without(node, schema), [without(each, schema) for each in conditions]
    if here == node and conditions_here == conditions:
        return text, tree, list(filters)
    if conditions_here:
        scored = () if isinstance(here, MatchAll) else (Clause(Occur.MUST, here),)  # alone it would add 1 to each score
        here = Group((*scored, *(Clause(Occur.FILTER, each) for each in conditions_here)))
    return NEEDS_TREE, encode_tree(here), []


def without(node: Node, schema: Schema) -> Node:
    """The query with MatchNone in the place of whatever names a field that the schema lacks."""
    match node:
        case Word() | Phrase() | Prefix() | Wildcard() | Regex() | Fuzzy():
            return node if node.field is None or node.field in schema else MatchNone()
        case Exists() | Range() | AnyOf():
            return node if node.field in schema else MatchNone()
        case Group():
            return replace(node, clauses=tuple(replace(each, node=without(each.node, schema)) for each in node.clauses))
        case Best():
            return replace(node, nodes=tuple(without(each, schema) for each in node.nodes))
        case Boost() | Constant():
            return replace(node, node=without(node.node, schema))
        case Within():
            fields = tuple((name, boost) for name, boost in node.fields if name in schema)
            return replace(node, fields=fields, node=without(node.node, schema)) if fields else MatchNone()
        case Alike():
            names = tuple(name for name in node.fields if name in schema)
            return node if not node.fields else replace(node, fields=names) if names else MatchNone()
        case _:
            return node
