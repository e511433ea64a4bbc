"""What is known of a query before it is compiled.

Pure: imports only other pure files.
"""

from kvshard.query import Alike, Best, Boost, Constant, Group, Node, Occur, Prefix, Regex, Wildcard, Within


def holds_not(node: Node) -> bool:
    """Whether something in it must not match."""
    match node:
        case Group():
            return any(clause.occur is Occur.MUST_NOT or holds_not(clause.node) for clause in node.clauses)
        case Best():
            return any(map(holds_not, node.nodes))
        case Boost() | Within() | Constant():
            return holds_not(node.node)
    return False


def needs_index(node: Node) -> bool:
    """Whether the words that an index holds decide what it is compiled to."""
    match node:
        case Prefix() | Wildcard() | Regex() | Alike():
            return True
        case Group():
            return any(needs_index(clause.node) for clause in node.clauses)
        case Best():
            return any(map(needs_index, node.nodes))
        case Boost() | Constant() | Within():
            return needs_index(node.node)
    return False
