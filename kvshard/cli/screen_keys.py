"""What is typed at the search screen: bytes of a terminal into keys, and what each key makes of the screen.

Pure: imports only the standard library.
"""

from dataclasses import dataclass, replace
from typing import Final

QUERY_MAX_CHARS: Final = 500
"""Longer ones are pasted by mistake; a line of a terminal shows a third of it."""

UP, DOWN, LEFT, RIGHT, HOME, END = "up", "down", "left", "right", "home", "end"
ENTER, TAB, ESCAPE, BACKSPACE, DELETE, CLEAR, WORD_BACK, QUIT = (
    "enter", "tab", "escape", "backspace", "delete", "clear", "word-back", "quit",
)  # fmt: skip

_SEQUENCES: Final = {
    b"[A": UP, b"[B": DOWN, b"[C": RIGHT, b"[D": LEFT, b"[H": HOME, b"[F": END, b"[1~": HOME, b"[4~": END, b"[3~": DELETE,
    b"OA": UP, b"OB": DOWN, b"OC": RIGHT, b"OD": LEFT, b"OH": HOME, b"OF": END,
}  # fmt: skip
_CONTROLS: Final = {
    0x01: HOME, 0x03: QUIT, 0x04: QUIT, 0x05: END, 0x08: BACKSPACE, 0x09: TAB, 0x0A: ENTER, 0x0D: ENTER, 0x0E: DOWN,
    0x10: UP, 0x15: CLEAR, 0x17: WORD_BACK, 0x7F: BACKSPACE,
}  # fmt: skip
_SEQUENCE_MAX_BYTES: Final = 8
"""No key sends more; what is longer is dropped, lest it be waited for for ever."""


def decode_keys(data: bytes, is_all: bool = False) -> tuple[list[str], bytes]:
    """The keys in what a terminal sent, and the bytes of one that is not whole yet. A printable character is itself.

    is_all: nothing follows for now, so a lone escape is the key of that name.
    """
    keys: list[str] = []
    at = 0
    while at < len(data):
        byte = data[at]
        if byte == 0x1B:
            key, length = _escape(data[at + 1 :], is_all)
            if length is None:
                return keys, data[at:]
            at += 1 + length
        elif byte < 0x20 or byte == 0x7F:
            key, at = _CONTROLS.get(byte, ""), at + 1
        else:
            length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            if at + length > len(data) and not is_all:
                return keys, data[at:]
            key, at = data[at : at + length].decode(errors="ignore"), at + length
            key = key if key.isprintable() else ""
        if key:
            keys.append(key)
    return keys, b""


def _escape(rest: bytes, is_all: bool) -> tuple[str, int | None]:
    """(key, bytes behind the escape) of a sequence; None: it is not whole yet."""
    if not rest:
        return (ESCAPE, 0) if is_all else ("", None)
    if rest[:1] not in (b"[", b"O"):
        return ESCAPE, 0
    for length in range(2, min(len(rest), _SEQUENCE_MAX_BYTES) + 1):
        if 0x40 <= rest[length - 1] <= 0x7E:
            return _SEQUENCES.get(rest[:length], ""), length
    if is_all or len(rest) >= _SEQUENCE_MAX_BYTES:
        return "", len(rest[:_SEQUENCE_MAX_BYTES])
    return "", None


@dataclass(frozen=True, slots=True)
class Typed:
    """What is typed, and where one is. cursor: before which character. selected: which hit, from 0. is_open: it is shown whole.

    has_left: the screen is to end.
    """

    text: str = ""
    cursor: int = 0
    selected: int = 0
    is_open: bool = False
    has_left: bool = False


def press(typed: Typed, key: str, hits: int, completion: str = "") -> Typed:
    """After a key. hits: how many are listed. completion: how the text may go on, whole; empty: not known."""
    if key == QUIT or (key == ESCAPE and not typed.is_open):
        return replace(typed, has_left=True)
    if key == ESCAPE:
        return replace(typed, is_open=False)
    if key == ENTER:
        return replace(typed, is_open=not typed.is_open and typed.selected < hits)
    if key in (UP, DOWN):
        wanted = typed.selected + (1 if key == DOWN else -1)
        return replace(typed, selected=max(0, min(wanted, hits - 1)))
    if key == TAB:
        return _with_text(typed, completion, len(completion)) if completion else typed
    cursors = {LEFT: max(0, typed.cursor - 1), RIGHT: min(len(typed.text), typed.cursor + 1), HOME: 0, END: len(typed.text)}
    if key in cursors:
        return replace(typed, cursor=cursors[key])
    return _edited(typed, key)


def _edited(typed: Typed, key: str) -> Typed:
    before, behind = typed.text[: typed.cursor], typed.text[typed.cursor :]
    if key == BACKSPACE:
        return _with_text(typed, before[:-1] + behind, max(0, typed.cursor - 1))
    if key == DELETE:
        return _with_text(typed, before + behind[1:], typed.cursor)
    if key == CLEAR:
        return _with_text(typed, behind, 0)
    if key == WORD_BACK:
        kept = before.rstrip()
        kept = kept[: kept.rfind(" ") + 1]
        return _with_text(typed, kept + behind, len(kept))
    if len(key) > 1 or len(typed.text) >= QUERY_MAX_CHARS:
        return typed
    return _with_text(typed, before + key + behind, typed.cursor + 1)


def _with_text(typed: Typed, text: str, cursor: int) -> Typed:
    if text == typed.text:
        return replace(typed, cursor=cursor)
    return Typed(text, cursor)


def query_of(text: str) -> str:
    """What to look for while this is typed: its last word may go on, so it stands for all that begin with it."""
    last = text.rpartition(" ")[2].rpartition(":")[2]
    is_word = last.isalnum() and last not in ("AND", "OR", "NOT")
    return f"{text}*" if is_word and text.count('"') % 2 == 0 else text
