import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshard.errors import InvalidArgument
from kvshard.meaning import meant
from kvshard.query import Best, Boost, Clause, Group, Minimum, Occur, Phrase, Word, prepare
from kvshard.synonyms import RULES_MAX, RULES_MAX_CHARS, check_synonyms, rules_for, table_of, with_synonyms

SCHEMA = {"title": "text", "body": "text(english)", "tag": "keyword", "year": "integer"}
RULES = ("car, automobile, motor car", "laptop => notebook, portable computer", "new york, nyc", "new york city, nyc")


def meaning(text, rules=RULES, schema=SCHEMA):
    return with_synonyms(prepare(text, schema), table_of(rules), schema)


def test_rules_are_kept_in_one_form():
    given = ["  Car,AUTOMOBILE ,  motor   car ", "", "# a comment", "laptop=>notebook, Portable Computer", "a, b, a"]
    assert check_synonyms(given) == ("car, automobile, motor car", "laptop => notebook, portable computer", "a, b")
    assert check_synonyms(check_synonyms(given)) == check_synonyms(given)
    assert check_synonyms([]) == ()


@pytest.mark.parametrize(
    ("rules", "part"),
    [
        (["car"], "synonym rule 1 needs at least two different terms, as in: car, automobile: 'car'"),
        (["a, b", "car, CAR"], "synonym rule 2 needs at least two"),
        (["car,, auto"], "has an empty term"),
        (["=> car"], "has an empty term"),
        (["car =>"], "has an empty term"),
        (["a => b => c"], "more than one =>"),
        (["car, ..."], "has the term '...', in which there is nothing to search for"),
        ([", ".join(f"w{n}" for n in range(21))], "more than 20 terms"),
        (["a, " + " ".join("b" * 9)], "more than 8 words"),
        ([f"a{n}, b{n}" for n in range(RULES_MAX + 1)], "at most 1000 synonym rules, not 1001"),
        (["a" * 9_000 + ", b", "c" * 9_000 + ", d"], f"at most {RULES_MAX_CHARS} characters together, not 18006"),
    ],
)
def test_wrong_rules_are_refused(rules, part):
    with pytest.raises(InvalidArgument) as caught:
        check_synonyms(rules)
    assert part in caught.value.message
    assert caught.value.details.field == "synonyms"
    assert len(caught.value.message) < 200


def test_words_mean_each_other():
    assert meaning("car") == Best((Word(None, "car"), Word(None, "automobile"), Phrase(None, "motor car")))
    assert meaning("title:Automobile") == Best(
        (Word("title", "Automobile"), Word("title", "car"), Phrase("title", "motor car"))
    )
    assert meaning('"motor car"') == Best((Phrase(None, "motor car"), Word(None, "car"), Word(None, "automobile")))
    assert meaning("car^2") == Boost(meaning("car"), 2.0)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a fast CAR"], RULES[:1]),
        (["title:motor", "tag:x body:car"], RULES[:1]),
        (['("new york"^2 tail)'], RULES[2:3]),
        (["+new +york -city"], RULES[2:]),
        (["laptop", "nyc"], RULES[1:]),
        (["notebook", "ca*", "york"], ()),
    ],
)
def test_only_rules_that_concern_a_query_travel_with_it(texts, expected):
    assert tuple(rules_for(RULES, [prepare(text, SCHEMA) for text in texts])) == expected
    assert rules_for((), [prepare("car", SCHEMA)]) == []


@given(st.lists(st.sampled_from(["car", "motor", "new", "york", "city", "nyc", "laptop", "x"]), min_size=1, max_size=6))
def test_the_rules_that_travel_mean_what_all_of_them_do(words):
    text = " ".join(words)
    assert meaning(text, tuple(rules_for(RULES, [prepare(text, SCHEMA)]))) == meaning(text)


def test_an_arrow_points_one_way():
    assert meaning("laptop") == Best((Word(None, "laptop"), Word(None, "notebook"), Phrase(None, "portable computer")))
    assert meaning("notebook") == Word(None, "notebook")


def test_rules_of_the_same_word_add_up_and_are_not_followed():
    assert meaning("nyc") == Best((Word(None, "nyc"), Phrase(None, "new york"), Phrase(None, "new york city")))
    assert meaning("a", ("a, b", "b, c")) == Best((Word(None, "a"), Word(None, "b")))


@pytest.mark.parametrize(
    "text", ["tag:car", "ca*", "car~", "c?r", "year:2013", "*", "bicycle", '"fast car"', "tag:[car TO dar]"]
)
def test_all_else_means_what_it_says(text):
    assert meaning(text) == prepare(text, SCHEMA)
    assert meaning("car", schema={"tag": "keyword"}) == Word(None, "car")


def test_words_side_by_side_are_one_term():
    new, york = Word(None, "new"), Word(None, "york")
    together = Group((Clause(Occur.SHOULD, new), Clause(Occur.SHOULD, york)))
    either = Best((together, Word(None, "nyc")))
    assert meaning("hotel New York") == Group(
        (
            Clause(Occur.SHOULD, Word(None, "hotel")),
            Clause(
                Occur.SHOULD,
                Best(
                    (
                        Group((Clause(Occur.SHOULD, Word(None, "New")), Clause(Occur.SHOULD, Word(None, "York")))),
                        Word(None, "nyc"),
                    )
                ),
            ),
        )
    )
    assert meaning("new york") == Group((Clause(Occur.SHOULD, either),))
    longest = meaning("new york city", RULES)
    assert isinstance(longest, Group)
    assert len(longest.clauses) == 1
    required = meaning("+new +york")
    assert required == Group(
        (Clause(Occur.MUST, Best((Group((Clause(Occur.MUST, new), Clause(Occur.MUST, york))), Word(None, "nyc")))),)
    )


@pytest.mark.parametrize("text", ["new OR title:york", "+new york", "new hotel york", "-new -york", "tag:new tag:york"])
def test_words_that_do_not_stand_side_by_side_are_not(text):
    assert meaning(text) == prepare(text, SCHEMA)


def test_clauses_that_are_counted_stay_clauses():
    group = Group((Clause(Occur.SHOULD, Word(None, "new")), Clause(Occur.SHOULD, Word(None, "york"))), Minimum(2))
    assert with_synonyms(group, table_of(RULES), SCHEMA) == group


def test_what_is_excluded_is_excluded_by_all_its_names():
    assert meaning("tail -car") == Group((Clause(Occur.SHOULD, Word(None, "tail")), Clause(Occur.MUST_NOT, meaning("car"))))


def test_synonyms_of_many_words_are_too_many():
    rules = (", ".join(f"w{n}" for n in range(20)),)
    meaning(" ".join(["w1"] * 53), rules)
    with pytest.raises(InvalidArgument, match="come to more than 1,024 clauses"):
        meaning(" ".join(["w1"] * 54), rules)


def test_slips_are_forgiven_in_synonyms_too():
    node = meant(prepare("car", SCHEMA), SCHEMA, ("car, automobile",), "auto")
    assert isinstance(node, Best)
    assert node.nodes == tuple(meant(Word(None, word), SCHEMA, (), "auto") for word in ("car", "automobile"))
    assert meant(Word(None, "car"), SCHEMA, ()) == Word(None, "car")


TERMS = st.lists(st.sampled_from(["a", "b", "c d", "e"]), min_size=2, max_size=4, unique=True)


@given(st.lists(TERMS, max_size=4), st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), min_size=1, max_size=6))
def test_what_was_asked_for_is_always_among_what_is_meant(rules, words):
    table = table_of(check_synonyms(", ".join(rule) for rule in rules))
    text = " ".join(words)
    node = with_synonyms(prepare(text, SCHEMA), table, SCHEMA)
    assert _words(node) == [Word(None, word) for word in words]


def _words(node):
    """The words of the query without what was added."""
    if isinstance(node, Group):
        return [word for clause in node.clauses for word in _words(clause.node)]
    if isinstance(node, Best):
        return _words(node.nodes[0])
    return [node]
