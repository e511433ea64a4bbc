import pytest

from kvshard.errors import InvalidArgument
from kvshard.query import Clause, Constant, Fuzzy, Group, Occur, Word, prepare, with_fuzziness
from kvshard.query.fuzziness import FUZZY_MAX_WORDS, NEARLY_SCORE, check_fuzziness

SCHEMA = {"title": "text", "body": "text(english)", "tag": "keyword", "year": "integer"}


def near(field, text, distance=None):
    nearly = Constant(Fuzzy(field, text, distance), NEARLY_SCORE)
    return Group((Clause(Occur.SHOULD, nearly), Clause(Occur.SHOULD, Word(field, text))))


def fuzzy(text, fuzziness="auto", schema=None):
    schema = schema or SCHEMA
    return with_fuzziness(prepare(text, schema), fuzziness, schema)


@pytest.mark.parametrize(("given", "wanted"), [("", ""), ("0", ""), ("1", "1"), ("2", "2"), (" AUTO ", "auto")])
def test_what_may_be_asked_for(given, wanted):
    assert check_fuzziness(given) == wanted


@pytest.mark.parametrize("given", ["3", "-1", "yes", "auto:3,6", "x" * 100])
def test_what_may_not(given):
    with pytest.raises(InvalidArgument, match="fuzziness is auto, or 0 to 2") as caught:
        check_fuzziness(given)
    assert caught.value.details.field == "fuzziness"
    assert len(caught.value.message) < 80


def test_words_of_texts_are_fuzzy():
    assert fuzzy("tail") == near(None, "tail")
    assert fuzzy("body:tail", "1") == near("body", "tail", 1)
    assert fuzzy("+tail +title:latency") == Group(
        (Clause(Occur.MUST, near(None, "tail")), Clause(Occur.MUST, near("title", "latency")))
    )


@pytest.mark.parametrize("text", ['"tail latency"', "tai*", "t?il", "tail~1", "tag:tail", "year:2013", "*", "title:*", "-tail"])
def test_all_else_stays_exact(text):
    assert fuzzy(text) == prepare(text, SCHEMA)
    assert fuzzy("tail", "") == Word(None, "tail")
    assert fuzzy("tail", schema={"tag": "keyword"}) == Word(None, "tail")


def test_many_words_are_too_many():
    fuzzy(" ".join(["tail"] * FUZZY_MAX_WORDS))
    with pytest.raises(InvalidArgument, match="at most 64 words"):
        fuzzy(" ".join(["tail"] * (FUZZY_MAX_WORDS + 1)))
