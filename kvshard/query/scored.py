"""Which texts of a query are scored by how rare their words are: what a router has to know before it can weight them.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Sequence
from typing import TypeAlias

from kvshard.analyzers import NGRAM
from kvshard.query.literals import default_fields
from kvshard.query.syntax import Best, Boost, Group, Node, Occur, Phrase, Prefix, Within, Word
from kvshard.schema import KEYWORD, TEXT, Schema, base_type, text_type

ScoredText: TypeAlias = tuple[str, str, bool]
"""(field, text, whether its last word is only begun). How the text is cut into terms, the index of the field knows."""


def scored_texts(node: Node, schema: Schema) -> list[ScoredText]:
    """The texts of a query, each once, in order."""
    found: dict[ScoredText, None] = {}
    _collect(node, schema, default_fields(schema), found)
    return list(found)


def is_of_one_text(node: Node) -> bool:
    """Whether scores rest on one word or phrase and nothing beside it: no other, and nothing with a score of its own."""
    match node:
        case Word() | Phrase():
            return True
        case Boost() | Within():
            return is_of_one_text(node.node)
        case Best():
            return len(node.nodes) == 1 and is_of_one_text(node.nodes[0])
        case Group():
            scoring = [clause.node for clause in node.clauses if clause.occur in {Occur.MUST, Occur.SHOULD}]
            return len(scoring) == 1 and is_of_one_text(scoring[0])
        case _:
            return False


def _collect(node: Node, schema: Schema, defaults: Sequence[str], found: dict[ScoredText, None]) -> None:
    match node:
        case Group():
            for clause in node.clauses:
                if clause.occur in {Occur.MUST, Occur.SHOULD}:
                    _collect(clause.node, schema, defaults, found)
        case Best():
            for each in node.nodes:
                _collect(each, schema, defaults, found)
        case Boost():
            _collect(node.node, schema, defaults, found)
        case Within():
            _collect(node.node, schema, tuple(name for name, _ in node.fields), found)
        case Word() | Phrase() | Prefix():
            for name in defaults if node.field is None else (node.field,):
                if _is_scored(node, schema[name]):
                    found[name, node.text, isinstance(node, Prefix)] = None
        case _:
            return  # All else has a score of its own.


def _is_scored(node: Word | Phrase | Prefix, field_type: str) -> bool:
    if isinstance(node, Prefix):
        # A begun word scores the same for all its endings; not so where the beginnings are terms, or if it is over: `word.*`
        return base_type(field_type) == TEXT and (field_type == text_type(NGRAM) or not node.text.isalnum())
    return base_type(field_type) in {TEXT, KEYWORD}
