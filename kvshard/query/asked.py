"""What a search asks for by its query string, its options and its structured query together, in the form that legs carry.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kvshard.query.literals import check_patterns
from kvshard.query.lowering import Documents, like_keys, likes_of, lower, query_string
from kvshard.query.structured import Operator, QueryString, StructuredQuery
from kvshard.query.syntax import Clause, Group, MatchAll, Node, Occur
from kvshard.query.tree import NEEDS_TREE, encode_tree
from kvshard.schema import Schema


@dataclass(frozen=True, slots=True)
class QueryOptions:
    """structured: matched besides the query string. The others are for the string: see search.proto."""

    structured: StructuredQuery | None = None
    fields: Sequence[str] = ()
    minimum: str = ""
    operator: Operator = "or"

    @property
    def are_usual(self) -> bool:
        """Whether the query string says it all."""
        return self.structured is None and not self.fields and not self.minimum and self.operator == "or"

    def document_keys(self) -> list[bytes]:
        """Keys whose documents it takes to know what is asked for. Raises InvalidArgument."""
        if self.structured is None:
            return []
        likes = likes_of(self.structured)
        return list(dict.fromkeys(key for like in likes for key in like_keys(like, "structured.more_like_this")))


USUAL = QueryOptions()


def for_legs(text: str, options: QueryOptions, schema: Schema, documents: Documents | None = None) -> tuple[str, str]:
    """(query string, tree) that a leg carries; the tree is empty where the string says it all. documents: of `document_keys`.

    Raises InvalidArgument, MalformedQuery.
    """
    if options.are_usual:
        return text, ""
    string = QueryString(text, options.fields, options.operator, options.minimum)
    node: Node = query_string(string, schema, "query", "default_fields", "minimum_should_match")
    if options.structured is None and isinstance(node, MatchAll):
        return text, ""
    if options.structured is not None:
        structured = lower(options.structured, schema, "structured", documents)
        is_all = isinstance(node, MatchAll)  # alone it would add 1 to each score
        node = structured if is_all else Group((Clause(Occur.MUST, node), Clause(Occur.MUST, structured)))
    check_patterns(node, "query" if options.structured is None else "structured")
    return NEEDS_TREE, encode_tree(node)
