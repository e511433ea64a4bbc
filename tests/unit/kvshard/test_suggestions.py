import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshard.errors import FailedPrecondition, InvalidArgument
from kvshard.query.bounds import fuzzy_distance
from kvshard.query.edits import distance_within
from kvshard.suggest_messages import SuggestedWord, SuggestPart, SuggestReply
from kvshard.suggestions import (
    FEW_DOCUMENTS,
    SuggestQuery,
    asked_again,
    check_suggest,
    completions_asked,
    corrected,
    merge_completions,
    merge_words,
    nearest,
)

SCHEMA = {
    "title": "text",
    "body": "text(english)",
    "typed": "text(ngram)",
    "cjk": "text(cjk)",
    "name": "text(keyword)",
    "tag": "keyword",
    "year": "integer",
}


@pytest.mark.parametrize(
    ("word", "other", "distance"),
    [
        ("asynco", "asyncio", 1),
        ("gahter", "gather", 1),
        ("teh", "the", 1),
        ("ab", "ba", 1),
        ("latnecy", "latency", 1),
        ("recieve", "receive", 1),
        ("straße", "strasse", 2),
        ("übung", "ubung", 1),
        ("kitten", "sitting", None),
        ("ca", "abc", None),
        ("same", "same", 0),
        ("", "ab", 2),
        ("🎉a", "🎉b", 1),
    ],
)
def test_distances(word, other, distance):
    assert distance_within(word, other, 2) == distance
    assert distance_within(other, word, 2) == distance


def plain_distance(word: str, other: str) -> int:
    """Optimal string alignment, the whole table."""
    table = [[row + column for column in range(len(other) + 1)] for row in range(len(word) + 1)]
    for row in range(1, len(word) + 1):
        for column in range(1, len(other) + 1):
            differ = word[row - 1] != other[column - 1]
            table[row][column] = min(
                table[row - 1][column] + 1, table[row][column - 1] + 1, table[row - 1][column - 1] + differ
            )
            if row > 1 and column > 1 and word[row - 1] == other[column - 2] and word[row - 2] == other[column - 1]:
                table[row][column] = min(table[row][column], table[row - 2][column - 2] + 1)
    return table[-1][-1]


WORDS = st.text(alphabet="abcd", max_size=8)


@given(WORDS, WORDS, st.integers(0, 3))
def test_a_distance_is_what_the_whole_table_says(word, other, most):
    distance = plain_distance(word, other)
    assert distance_within(word, other, most) == (distance if distance <= most else None)


@given(WORDS, st.lists(st.tuples(WORDS, st.integers(1, 9)), unique_by=lambda each: each[0], max_size=20))
def test_nearest_looks_at_every_word(word, known):
    most = fuzzy_distance(None, len(word))
    all_near = [(other, count, plain_distance(word, other)) for other, count in known if other != word]
    expected = sorted((each for each in all_near if each[2] <= most), key=lambda each: (each[2], -each[1], each[0]))
    assert nearest(word, known, 100) == (expected if most else [])


def test_short_words_have_no_near_ones():
    assert nearest("ab", [("abc", 5)], 5) == []


def test_a_long_look_can_be_ended():
    def give_up():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        nearest("latency", [("latenci", 1)], 5, give_up)


def test_completions_are_added_up():
    replies = [
        SuggestReply([("gather", 5), ("gate", 3)], missed=0),
        SuggestReply([("gather", 2), ("gap", 2)], missed=1),
        SuggestReply([], missed=0),
    ]
    merged = merge_completions(replies, 2)
    assert merged.texts == [("gather", 7), ("gate", 3)]
    assert merged.error_bound == 1  # "gate" may stand in the second shard too
    assert merge_completions(replies[:1], 5).error_bound == 0
    assert merge_completions([], 5).texts == []


COUNTS = st.dictionaries(st.sampled_from([f"w{i}" for i in range(12)]), st.integers(1, 30), max_size=12)


@given(st.lists(COUNTS, min_size=1, max_size=5), st.integers(1, 4), st.integers(1, 8))
def test_no_number_is_lower_than_the_bound_says(shards, limit, asked):
    replies = []
    for counts in shards:
        ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
        missed = ordered[asked - 1][1] if len(ordered) >= asked else 0
        replies.append(SuggestReply(ordered[:asked], missed))
    merged = merge_completions(replies, limit)
    for text, documents in merged.texts:
        true = sum(counts.get(text, 0) for counts in shards)
        assert documents <= true <= documents + merged.error_bound
    if all(len(counts) < asked for counts in shards):
        assert merged.error_bound == 0


def word(text, documents, *near, start=0):
    return SuggestedWord(text, start, start + len(text), documents, list(near))


def test_corrections_are_added_up_over_shards_and_ordered_by_distance():
    replies = [
        SuggestReply([], words=[word("latancy", 0, ("latency", 3, 1), ("lazily", 9, 2))]),
        SuggestReply([], words=[word("latancy", 0, ("latency", 2, 1))]),
    ]
    (merged,) = merge_words(replies)
    assert (merged.word, merged.documents) == ("latancy", 0)
    assert [(each.text, each.documents, each.distance) for each in merged.corrections] == [("latency", 5, 1), ("lazily", 9, 2)]


@pytest.mark.parametrize(
    ("documents", "others", "is_corrected"),
    [(0, 1, True), (1, 99, False), (1, 100, True), (FEW_DOCUMENTS, 199, False), (FEW_DOCUMENTS + 1, 10_000, False)],
)
def test_only_words_that_hardly_any_document_has_are_corrected(documents, others, is_corrected):
    replies = [SuggestReply([], words=[word("tial", documents, ("tail", others, 1))])]
    assert bool(merge_words(replies)) is is_corrected


def test_a_word_that_one_shard_knows_well_is_right():
    replies = [
        SuggestReply([], words=[word("tial", 0, ("tail", 500, 1))]),
        SuggestReply([], words=[word("tial", 3)]),
    ]
    assert merge_words(replies) == []


def test_the_corrected_text_keeps_what_stands_around_the_words():
    words = [word("asynco", 0, ("asyncio", 9, 1)), word("gahter", 0, ("gather", 9, 1), start=8)]
    merged = merge_words([SuggestReply([], words=words)])
    assert corrected("Asynco: gahter!", merged) == "asyncio: gather!"


def test_what_is_asked_again():
    part = SuggestPart("asynco gath", ["title"], 5)
    merged = merge_words([SuggestReply([], words=[word("asynco", 0, ("asyncio", 9, 1))])])
    again = asked_again(part, merged)
    assert again is not None
    assert (again.text, again.has_context, again.wants_corrections) == ("asyncio gath", True, False)
    again = asked_again(part, [])
    assert again is not None
    assert (again.text, again.has_context) == ("asynco gath", False)
    assert asked_again(SuggestPart("gath", ["title"], 5), []) is None


def query(**changed):
    return SuggestQuery(**({"text": "gath", "fields": [], "limit": 5} | changed))


@pytest.mark.parametrize(
    ("schema", "fields", "expected"),
    [
        (SCHEMA, [], ["title", "body", "typed"]),
        (SCHEMA, ["tag", "title", "tag"], ["tag", "title"]),
        ({"tag": "keyword", "name": "text(keyword)"}, [], ["tag", "name"]),
    ],
)
def test_fields_that_have_suggestions(schema, fields, expected):
    assert check_suggest(query(fields=fields), "docs", schema) == expected


@pytest.mark.parametrize(
    ("schema", "changed", "field", "part"),
    [
        (SCHEMA, {"fields": ["titel"]}, "fields", "did you mean title?"),
        (SCHEMA, {"fields": ["cjk"]}, "fields", "is of type text(cjk) and has no suggestions"),
        (SCHEMA, {"fields": ["year"]}, "fields", "is of type integer"),
        (SCHEMA, {"text": ""}, "text", "1 to 256 characters"),
        (SCHEMA, {"text": "x" * 257}, "text", "not 257"),
        (SCHEMA, {"limit": 0}, "limit", "1 to 100"),
        (SCHEMA, {"limit": 101}, "limit", "1 to 100"),
        (SCHEMA, {"filters": ["year:x"]}, "filters[0]", "is not an integer"),
        (SCHEMA, {"filters": ["*"] * 33}, "filters", "not 33"),
        ({"body": "text(cjk)"}, {}, "fields", "no field has suggestions"),
    ],
)
def test_wrong_requests_are_refused(schema, changed, field, part):
    with pytest.raises(InvalidArgument) as caught:
        check_suggest(query(**changed), "docs", schema)
    assert caught.value.details.field == field
    assert part in caught.value.message


def test_collections_without_a_schema_have_none():
    with pytest.raises(FailedPrecondition, match="no schema"):
        check_suggest(query(), "default", {})


def test_shards_are_asked_for_more_than_is_shown():
    assert completions_asked(5, 1) == 5
    assert completions_asked(5, 8) == 17
