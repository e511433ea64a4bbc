"""What a query means beyond what it says: the synonyms of its collection, and slips that are forgiven.

Pure: imports only other pure files.
"""

from kvshard.query import Node, with_fuzziness
from kvshard.schema import Schema
from kvshard.synonyms import table_of, with_synonyms


def meant(node: Node, schema: Schema, synonyms: tuple[str, ...], fuzziness: str = "") -> Node:
    """The query as it is to be searched for. synonyms: the collection's rules. fuzziness: as `check_fuzziness` gives it.

    Synonyms come first: a slip in one of them is a slip, too. Raises InvalidArgument where that makes too much of it.
    """
    expanded = with_synonyms(node, table_of(synonyms), schema) if synonyms else node
    return with_fuzziness(expanded, fuzziness, schema)
