"""Keys of a terminal, and what they make of the search screen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshard.cli.screen_keys import QUERY_MAX_CHARS, Typed, decode_keys, press, query_of


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"abc", ["a", "b", "c"]),
        ("é漢😀".encode(), ["é", "漢", "😀"]),
        (b"\x1b[A\x1b[B\x1bOC\x1bOD", ["up", "down", "right", "left"]),
        (b"\x1b[3~\x1b[1~\x1b[F", ["delete", "home", "end"]),
        (b"\x1b[200~x\x1b[201~", ["x"]),
        (b"\r\n\t\x7f\x08\x15\x17\x01\x05\x03\x04", [
            "enter", "enter", "tab", "backspace", "backspace", "clear", "word-back", "home", "end", "quit", "quit",
        ]),
        (b"\x00\x1c", []),
        (b"\x1bx", ["escape", "x"]),
    ],
)  # fmt: skip
def test_keys(data: bytes, keys: list[str]) -> None:
    assert decode_keys(data) == (keys, b"")


@pytest.mark.parametrize("whole", ["漢".encode(), b"\x1b[A", b"\x1b[3~", "😀".encode()])
def test_a_key_that_comes_in_parts(whole: bytes) -> None:
    for cut in range(1, len(whole)):
        keys, rest = decode_keys(whole[:cut])
        assert (keys, rest) == ([], whole[:cut])
        assert decode_keys(rest + whole[cut:])[0] == decode_keys(whole)[0]


def test_a_lone_escape_is_one_once_nothing_follows() -> None:
    assert decode_keys(b"\x1b") == ([], b"\x1b")
    assert decode_keys(b"\x1b", is_all=True) == (["escape"], b"")


@given(st.binary(max_size=60))
def test_whatever_a_terminal_sends_is_taken(data: bytes) -> None:
    keys, rest = decode_keys(data)
    assert len(rest) <= 9
    assert decode_keys(rest, is_all=True)[1] == b""
    typed = Typed()
    for key in keys:
        typed = press(typed, key, 3)
        assert 0 <= typed.cursor <= len(typed.text) <= QUERY_MAX_CHARS
        assert 0 <= typed.selected < 3


def test_typing_and_taking_back() -> None:
    typed = Typed()
    for key in ["a", "c", "left", "b", "end", " ", "d", "e"]:
        typed = press(typed, key, 0)
    assert (typed.text, typed.cursor) == ("abc de", 6)
    assert press(typed, "word-back", 0) == Typed("abc ", 4)
    assert press(press(typed, "word-back", 0), "word-back", 0) == Typed("", 0)
    assert press(typed, "backspace", 0).text == "abc d"
    assert press(press(typed, "home", 0), "delete", 0).text == "bc de"
    assert press(press(typed, "home", 0), "backspace", 0).text == "abc de"
    assert press(typed, "clear", 0).text == ""
    full = Typed("x" * QUERY_MAX_CHARS, 0)
    assert press(full, "y", 0) == full


def test_choosing_opening_leaving() -> None:
    typed = Typed("a", 1)
    assert press(typed, "up", 5).selected == 0
    down = press(press(typed, "down", 2), "down", 2)
    assert down.selected == 1
    opened = press(down, "enter", 2)
    assert opened.is_open
    assert not press(opened, "enter", 2).is_open
    assert press(opened, "escape", 2) == down
    assert press(down, "escape", 2).has_left
    assert press(opened, "quit", 2).has_left
    assert not press(typed, "enter", 0).is_open
    assert press(down, "b", 2).selected == 0, "other letters have other hits"


def test_completing() -> None:
    typed = Typed("hello wor", 2)
    assert press(typed, "tab", 0) == typed
    assert press(typed, "tab", 0, "hello world") == Typed("hello world", 11)


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("", ""),
        ("pyth", "pyth*"),
        ("title:pyth", "title:pyth*"),
        ("pyth ", "pyth "),
        ("a AND", "a AND"),
        ("a and", "a and*"),
        ('"a b', '"a b'),
        ('"a b" c', '"a b" c*'),
        ("year:[1 TO 2]", "year:[1 TO 2]"),
        ("pyth*", "pyth*"),
        ("word~1", "word~1"),
    ],
)
def test_what_is_looked_for_while_typing(text: str, query: str) -> None:
    assert query_of(text) == query
