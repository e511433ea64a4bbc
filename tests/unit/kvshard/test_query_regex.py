"""Regular expressions of the query language, beside Python's own."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvshard.query.automaton import Automaton
from kvshard.query.regex import REGEX_MAX_POSITIONS, RegexError, parse_regex, prefix_of, size_of, written

ATOMS = st.sampled_from(["a", "b", "c", ".", "[ab]", "[^a]", "[a-c]", "\\w", "\\D", "\\.", "[^\\s.]", "é", "()"])


def larger(inner):
    repetitions = st.sampled_from(["*", "+", "?", "{2}", "{1,}", "{0,2}", "{0}"])
    repeated = st.builds("({}){}".format, inner, repetitions)
    return st.one_of(st.builds("{}{}".format, inner, inner), st.builds("{}|{}".format, inner, inner), repeated)


EXPRESSIONS = st.recursive(ATOMS, larger, max_leaves=7)


@settings(max_examples=300, deadline=None)
@given(EXPRESSIONS, st.lists(st.text("abc.é ", max_size=6), min_size=1, max_size=8))
def test_it_matches_what_pythons_do(text, words):
    regex = parse_regex(text)
    automaton, right = Automaton(regex), re.compile(text, re.DOTALL)
    for word in words:
        is_match = right.fullmatch(word) is not None
        assert automaton.matches(word) is is_match
        assert not is_match or word.startswith(prefix_of(regex))


@pytest.mark.parametrize(
    ("text", "message", "at"),
    [
        ("", "an empty regular expression", 0),
        ("a(b", "unbalanced parenthesis", 1),
        ("ab)c", "unbalanced parenthesis", 2),
        ("a[bc", "unbalanced bracket", 1),
        ("a[z-b]", "a range has two characters, the lower one first", 3),
        ("a[b-\\d]", "a range has two characters", 3),
        ("*a", r"\* has nothing before it to repeat", 0),
        ("a|+", r"\+ has nothing before it", 2),
        ("a**", r"unexpected \* behind a repetition", 2),
        ("a{,3}", "a repetition is written", 1),
        ("a{3,2}", "a repetition is written", 1),
        ("a{1", "a repetition is written", 1),
        ("a{1000}", "a repetition is written", 1),
        ("ab\\", "a backslash needs a character", 2),
        ("a\\b", r"\\b means nothing here", 1),
        ("a(?=b)", "nothing looks ahead or back", 2),
        ("^a", r"\^ has no place here, whole words are compared", 0),
        ("a$", r"\$ has no place here", 1),
        ("a]", r"unexpected \]", 1),
        ("a" * 257, "has at most 256 characters, not 257", 256),
        ("(" * 33 + "a" + ")" * 33, "nested at most 32 deep", 32),
        ("(a{200}){2}", "spells at most 256 characters with its repetitions, not 400", 0),
        ("((((((a{100}){100}){100}){100}){100}){100}){100}", "not more than a billion", 0),
    ],
)
def test_what_is_no_expression_is_told_with_its_place(text, message, at):
    with pytest.raises(RegexError, match=message) as refused:
        parse_regex(text)
    assert refused.value.at == at


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("abc", "abc"),
        ("ab?c", "a"),
        ("a(bc){2}d*", "abcbc"),
        ("(ab)+c", "ab"),
        ("a{3}b", "aaab"),
        ("a{2,3}b", "aa"),
        ("a|b", ""),
        ("a[b]c[de]", "abc"),
        ("\\.a.", ".a"),
    ],
)
def test_what_every_match_begins_with(text, prefix):
    assert prefix_of(parse_regex(text)) == prefix


def test_letters_are_folded_as_the_words_are():
    automaton = Automaton(parse_regex("[A-C]X\\D[^Y]", str.lower))
    assert [word for word in ("axxx", "bxqz", "axxy", "ax1x", "AXXX", "dxxx") if automaton.matches(word)] == ["axxx", "bxqz"]


@pytest.mark.parametrize("text", ["(a|a)*b", "(a*)*b", "(a+)+b", "(a|b|ab)*c", "(.*a){12}.*b", "(a?){100}a{100}"])
def test_a_bomb_takes_a_step_a_character(text, monkeypatch):
    """Python's own take billions of steps for these."""
    regex = parse_regex(text)
    assert size_of(regex) <= REGEX_MAX_POSITIONS
    automaton = Automaton(regex)
    steps = []
    led_to = automaton._led_to
    monkeypatch.setattr(automaton, "_led_to", lambda state: (steps.append(state), led_to(state))[1])
    automaton.matches("a" * 5_000)
    assert len(steps) <= 5_000


def test_an_expression_is_written_so_that_it_stands_between_slashes():
    assert written("a/b c\\/d\\ e\\\\/") == "a\\/b\\ c\\/d\\ e\\\\\\/"
