"""What the index finds for a query is what somebody finds who reads every document."""

import json
import random
import re
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvshard import hashing
from kvshard.query import (
    AnyOf,
    Best,
    Boost,
    Clause,
    Constant,
    Exists,
    Fuzzy,
    Group,
    Keys,
    MatchAll,
    MatchNone,
    Minimum,
    Occur,
    Phrase,
    Prefix,
    Range,
    Regex,
    Wildcard,
    Within,
    Word,
    check_query,
)
from kvshard.query.bounds import fuzzy_distance
from kvshard.query.edits import is_within
from kvshard.query.glob import parts_of
from kvshard.query.tree import decode_tree, encode_tree
from leaf.bm25 import Bm25
from leaf.explanations import Explainer
from leaf.index_statistics import explained
from leaf.text_index import TextIndex
from leaf.weighting import Numbered

SCHEMA = {"title": "text", "body": "text", "tag": "keyword", "n": "integer"}
VOCABULARY = ("a", "ab", "ba", "abc", "acb", "bca", "aabb", "abab")


def made_documents():
    rng = random.Random(7)
    documents = {}
    for number in range(60):
        document = {name: " ".join(rng.choices(VOCABULARY, k=rng.randrange(1, 6))) for name in ("title", "body")}
        document |= {"tag": rng.sample(VOCABULARY, rng.randrange(1, 3)), "n": rng.randrange(10)}
        for name in rng.sample(sorted(document), rng.randrange(2)):
            del document[name]
        documents[b"%02d" % number] = document
    return documents


DOCUMENTS = made_documents()


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    index = TextIndex.create(tmp_path_factory.mktemp("index") / "i", SCHEMA, lambda key: hashing.slot(key, 0))
    for at, (key, document) in enumerate(DOCUMENTS.items()):
        index.write({key: (json.dumps(document).encode(), 0)})
        if at % 20 == 19:
            index.commit(at + 1)
    return index


WORDS = st.sampled_from(VOCABULARY)
FIELDS = st.sampled_from([None, "title", "body", "tag"])
TEXTS = st.sampled_from([None, "title", "body"])
PATTERNS = st.text("abc*?", min_size=1, max_size=4)
LEAVES = st.one_of(
    st.builds(Word, FIELDS, WORDS),
    st.builds(Phrase, TEXTS, st.lists(WORDS, min_size=1, max_size=3).map(" ".join)),
    st.builds(Prefix, FIELDS, st.text("abc", min_size=1, max_size=3)),
    st.builds(Wildcard, FIELDS, PATTERNS),
    st.builds(Regex, FIELDS, st.sampled_from(["a.*", "(a|b)+c?", "[^a]+", "A?b{1,2}.", "a|ba|\\w{4}", ".*", "x"])),
    st.builds(Fuzzy, TEXTS, WORDS, st.none() | st.integers(0, 2)),
    st.builds(Exists, st.sampled_from(sorted(SCHEMA))),
    st.builds(Range, st.just("n"), st.none() | st.sampled_from("357"), st.just("8"), st.booleans(), st.booleans()),
    st.builds(AnyOf, st.just("n"), st.lists(st.sampled_from("12345"), max_size=3).map(tuple)),
    st.builds(AnyOf, st.just("tag"), st.lists(WORDS, max_size=3).map(tuple)),
    st.builds(Keys, st.lists(st.sampled_from(sorted(DOCUMENTS)), max_size=5).map(tuple)),
    st.just(MatchAll()),
    st.just(MatchNone()),
)


def outer(inner):
    clauses = st.lists(st.builds(Clause, st.sampled_from(Occur), inner), min_size=1, max_size=4).map(tuple)
    return st.one_of(
        st.builds(Group, clauses, st.none() | st.builds(Minimum, st.integers(-3, 4))),
        st.builds(Boost, inner, st.just(2.0)),
        st.builds(Constant, inner, st.just(3.0)),
        st.builds(Best, st.lists(inner, min_size=1, max_size=3).map(tuple), st.sampled_from([0.0, 0.5])),
        st.builds(Within, st.sampled_from([(("title", 2.0),), (("body", 1.0), ("tag", 0.5))]), inner),
    )


NODES = st.recursive(LEAVES, outer, max_leaves=8)


def is_like(parts, text):
    if not parts:
        return not text
    char, is_wild = parts[0]
    if is_wild and char == "*":
        return any(is_like(parts[1:], text[at:]) for at in range(len(text) + 1))
    return bool(text) and (is_wild or text[0] == char) and is_like(parts[1:], text[1:])


def stands_in(node, name, document):
    """Whether a document has what a word, phrase or pattern looks for in a field."""
    given = document.get(name)
    if given is None:
        return False
    words = given if name == "tag" else re.findall(r"\w+", given)
    match node:
        case Word():
            return node.text in words
        case Phrase():
            wanted = node.text.split()
            if name == "tag":
                return node.text in words
            return any(words[at : at + len(wanted)] == wanted for at in range(len(words)))
        case Prefix():
            return any(word.startswith(node.text) for word in words)
        case Wildcard():
            return any(is_like(list(parts_of(node.pattern)), word) for word in words)
        case Regex():
            return any(re.fullmatch(node.pattern if name == "tag" else node.pattern.lower(), word) for word in words)
        case Fuzzy():
            edits = fuzzy_distance(node.distance, len(node.text)) if name != "tag" else 0
            return any(is_within(node.text, word, edits) for word in words)


def matches(node, key, fields=("title", "body")):
    document = DOCUMENTS[key]
    match node:
        case Word() | Phrase() | Prefix() | Wildcard() | Regex() | Fuzzy():
            return any(stands_in(node, name, document) for name in (fields if node.field is None else [node.field]))
        case MatchAll() | MatchNone():
            return isinstance(node, MatchAll)
        case Exists():
            return node.field in document
        case Keys():
            return key in node.keys
        case AnyOf():
            given = document.get(node.field, [])
            return any(str(each) in node.values for each in (given if isinstance(given, list) else [given]))
        case Range():
            n = document.get("n")
            if n is None:
                return False
            is_above = node.lower is None or n > int(node.lower) or (node.includes_lower and n == int(node.lower))
            return is_above and (n < int(node.upper) or (node.includes_upper and n == int(node.upper)))
        case Best():
            return any(matches(each, key, fields) for each in node.nodes)
        case Boost() | Constant():
            return matches(node.node, key, fields)
        case Within():
            return matches(node.node, key, [name for name, _ in node.fields])
    return group_matches(node, key, fields)


def group_matches(group, key, fields):
    by_occur = {occur: [matches(each.node, key, fields) for each in group.clauses if each.occur is occur] for occur in Occur}
    required = by_occur[Occur.MUST] + by_occur[Occur.FILTER]
    optional = by_occur[Occur.SHOULD]
    wanted = 0 if group.minimum is None else group.minimum.of(len(optional))
    if optional and not required:
        wanted = max(1, wanted)
    return all(required) and sum(optional) >= wanted and not any(by_occur[Occur.MUST_NOT])


@settings(max_examples=400, deadline=None)
@given(NODES)
def test_found_is_what_matches(index, node):
    check_query(node, SCHEMA)
    expected = {key for key in DOCUMENTS if matches(node, key)}
    searcher = index.searcher()

    def found(query):
        hits = searcher.search(query, len(DOCUMENTS)).hits
        return {bytes.fromhex(searcher.doc(address).get_first("key")[1:]): score for score, address in hits}

    compiled = found(index.compiler.compile(node, [], None))
    assert set(compiled) == expected
    assert set(found(index.compiler.compile(MatchAll(), [node], None))) == expected
    assert set(found(index.compiler.scored(node, Numbered(index.fields)))) >= expected
    assert not index.compiler.has_one_score(node) or len(set(compiled.values())) <= 1
    assert decode_tree(encode_tree(node)) == node


NOT_A = Group((Clause(Occur.MUST_NOT, Word("title", "a")),))
TWO_OF = Group((Clause(Occur.SHOULD, NOT_A), Clause(Occur.SHOULD, Word("body", "ab")), Clause(Occur.SHOULD, MatchAll())))


@settings(max_examples=150, deadline=None)
@given(NODES)
@example(Group((Clause(Occur.MUST_NOT, NOT_A),)))
@example(Group((Clause(Occur.SHOULD, Constant(NOT_A, 3.0)), Clause(Occur.SHOULD, MatchAll()))))
@example(Group((Clause(Occur.SHOULD, replace(TWO_OF, minimum=Minimum(2))), Clause(Occur.SHOULD, Word("tag", "a")))))
@example(Group((Clause(Occur.SHOULD, Group((Clause(Occur.FILTER, NOT_A),))), Clause(Occur.SHOULD, MatchAll()))))
def test_scores_and_explanations_are_those_of_one_index(index, node):
    """Nothing is deleted here and there is one shard, so the scores for all shards are tantivy's own."""
    statistics, searcher = index.statistics, index.statistics.searcher
    numbered = Numbered(index.fields)
    explainable = index.compiler.scored(node, numbered, searcher)
    scores = Bm25(statistics.of(numbered.terms), numbered.parts)
    explainer = Explainer(numbered.parts, None)
    for score, address in searcher.search(index.compiler.compile(node, [], None), len(DOCUMENTS)).hits:
        told = explained(explainable, searcher, address)
        assert scores.score(told) == pytest.approx(score, rel=1e-4, abs=1e-6)
        assert explainer.explain(told).value == pytest.approx(score, rel=1e-4, abs=1e-6)
