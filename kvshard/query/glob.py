"""Wildcard patterns: `*` stands for any characters, `?` for one, a backslash makes the next character literal.

Matching takes time in proportion to the pattern times the text, whatever the pattern is: each part between two stars is looked
for once, from where the one before it was first found, and never looked for again (atomic groups).

Pure: imports only the standard library.
"""

import re
from collections.abc import Iterator

ANY_TEXT = "*"
ANY_CHARACTER = "?"


def parts_of(pattern: str) -> Iterator[tuple[str, bool]]:
    """(character, is it a wildcard) for each of the pattern, without the backslashes."""
    chars = iter(pattern)
    for char in chars:
        if char == "\\":
            yield next(chars, "\\"), False
        else:
            yield char, char in (ANY_TEXT, ANY_CHARACTER)


def pattern_of(parts: Iterator[tuple[str, bool]] | list[tuple[str, bool]]) -> str:
    """The pattern of such parts; several stars in a row are one."""
    written: list[str] = []
    for char, is_wild in parts:
        if is_wild:
            if char == ANY_CHARACTER or written[-1:] != [ANY_TEXT]:
                written.append(char)
        else:
            written.append("\\" + char if char in "*?\\" else char)
    return "".join(written)


def literal_prefix(pattern: str) -> str:
    """What every match begins with."""
    found: list[str] = []
    for char, is_wild in parts_of(pattern):
        if is_wild:
            break
        found.append(char)
    return "".join(found)


def expression_of(pattern: str) -> "re.Pattern[str]":
    """Matches, by fullmatch, what the pattern does."""
    pieces: list[str] = [""]
    for char, is_wild in parts_of(pattern):
        if not is_wild:
            pieces[-1] += re.escape(char)
        elif char == ANY_CHARACTER:
            pieces[-1] += "."
        else:
            pieces.append("")
    if len(pieces) == 1:
        return re.compile(pieces[0], re.DOTALL)
    middle = "".join(f"(?>.*?{piece})" for piece in pieces[1:-1] if piece)
    return re.compile(f"{pieces[0]}{middle}.*{pieces[-1]}", re.DOTALL)
