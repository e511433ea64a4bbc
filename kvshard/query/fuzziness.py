"""Typo tolerance of a whole search: its plain words also find words that are nearly the same.

A word that is asked for with `~` says it for itself. Phrases, prefixes, patterns and keywords stay exact.

Pure: imports only the standard library and other pure files.
"""

from dataclasses import replace
from typing import Final

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.query.bounds import DISTANCE_MAX
from kvshard.query.syntax import Best, Boost, Clause, Constant, Fuzzy, Group, Node, Occur, Within, Word
from kvshard.schema import TEXT, Schema, base_type

AUTO: Final = "auto"
"""By the length of the word: up to 2 letters none, up to 5 one, beyond that two."""

FUZZY_MAX_WORDS: Final = 64
"""Words of a search that may have slips: each makes an automaton and looks through the words of every segment."""

NEARLY_SCORE: Final = 0.5
"""Of a word that is nearly the one asked for. The word itself scores this and its relevance, so it always comes first."""


def check_fuzziness(text: str) -> str:
    """The fuzziness of a request in its one form: "" for none, "1", "2", "auto". Raises InvalidArgument."""
    given = text.strip().lower()
    if given in {"", "0"}:
        return ""
    if given not in {AUTO, *map(str, range(1, DISTANCE_MAX + 1))}:
        message = f"fuzziness is auto, or 0 to {DISTANCE_MAX}, not {text[:20]!r}"
        raise InvalidArgument(message, ErrorDetails(field="fuzziness", limit=DISTANCE_MAX))
    return given


def with_fuzziness(node: Node, fuzziness: str, schema: Schema) -> Node:
    """The query with its plain words fuzzy. fuzziness: as `check_fuzziness` gives it.

    Raises InvalidArgument when more than FUZZY_MAX_WORDS of its words would be.
    """
    if not fuzziness:
        return node
    distance = None if fuzziness == AUTO else int(fuzziness)
    has_texts = any(base_type(field_type) == TEXT for field_type in schema.values())
    left = [FUZZY_MAX_WORDS]

    def rewritten(each: Node) -> Node:
        match each:
            case Word():
                is_text = has_texts if each.field is None else base_type(schema[each.field]) == TEXT
                return _fuzzy(each, distance, left) if is_text else each
            case Group():
                return replace(each, clauses=tuple(map(clause_of, each.clauses)))
            case Best():
                return replace(each, nodes=tuple(rewritten(inner) for inner in each.nodes))
            case Boost() | Constant() | Within():
                return replace(each, node=rewritten(each.node))
            case _:
                return each

    def clause_of(clause: Clause) -> Clause:
        if clause.occur is Occur.MUST_NOT:
            return clause  # What is not wanted is told exactly: near words may well be wanted.
        return Clause(clause.occur, rewritten(clause.node))

    return rewritten(node)


def _fuzzy(word: Word, distance: int | None, left: list[int]) -> Node:
    left[0] -= 1
    if left[0] < 0:
        message = f"a search with fuzziness has at most {FUZZY_MAX_WORDS} words"
        raise InvalidArgument(message, ErrorDetails(field="fuzziness", limit=FUZZY_MAX_WORDS))
    nearly = Constant(Fuzzy(word.field, word.text, distance, word.position), NEARLY_SCORE)
    return Group((Clause(Occur.SHOULD, nearly), Clause(Occur.SHOULD, word)))
