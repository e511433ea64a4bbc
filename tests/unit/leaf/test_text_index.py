import json
import random

import pytest

from kvshard import hashing
from kvshard.errors import InvalidArgument
from kvshard.query import prepare
from kvshard.sorting import BY_SCORE, parse_sort
from leaf import text_index, text_search
from leaf.index_fields import keyword_of, keyword_term
from leaf.text_index import IndexFailed, TextIndex, remove_index
from leaf.text_search import IndexView


def slot_of(key: bytes) -> int:
    return hashing.slot(key, 0)


SCHEMA = {"body": "text", "tag": "keyword", "n": "integer", "x": "float", "on": "boolean", "at": "date"}


def make(path, documents, schema=SCHEMA, commits=1):
    """An index of key -> document, spread over several commits and so over several segments."""
    index = TextIndex.create(path, schema, slot_of)
    items = list(documents.items())
    for part in range(commits):
        index.write({key: (json.dumps(document).encode(), 0) for key, document in items[part::commits]})
        index.commit(part + 1)
    return index


def page(index, text="*", sort="", limit=10, after=None, taken=0, expired_at_ms=None):
    node = prepare(text, index.schema)
    query = index.compiler.compile(node, [], expired_at_ms)
    view = IndexView(index.searcher(), index.fields, index.schema, index.parse)
    return view.page(query, parse_sort(sort), limit, after, taken, index.compiler.has_one_score(node))


def keys(index, *args, **kwargs):
    return [found.key for found in page(index, *args, **kwargs).found]


def all_pages(index, text, sort, limit):
    found, after = [], None
    while True:
        part = page(index, text, sort, limit, after, len(found))
        found += part.found
        assert part.has_more == (len(found) < part.total)
        if not part.has_more:
            return found
        assert len(part.found) == limit
        after = part.found[-1].after


def test_a_page_tells_what_the_first_hit_behind_it_scores(tmp_path):
    documents = {b"k%d" % number: {"body": "tail " * (1 + number % 4) + "end " * number} for number in range(12)}
    index = make(tmp_path / "i", documents, commits=3)
    whole = page(index, "tail", limit=12).found
    assert page(index, "tail", limit=12).next_score is None
    for limit in range(1, 12):
        part = page(index, "tail", limit=limit)
        assert (part.found, part.next_score) == (whole[:limit], whole[limit].score)
    assert page(index, "*", limit=5).next_score == 1.0
    assert page(index, "tail", sort="_key", limit=5).next_score == 0.0, "such an order has no scores"


def test_keys_are_any_bytes(tmp_path):
    names = [b"\x00", b"\x00\xff", b"a", b"\xc3\xa9", b"\xff" * 1024]
    index = make(tmp_path / "i", {name: {"body": "hello"} for name in names})
    assert keys(index, "hello") == sorted(names)


def test_replacing_and_deleting(tmp_path):
    index = make(tmp_path / "i", {b"a": {"body": "old"}, b"b": {"body": "old"}})
    index.write({b"a": (b'{"body": "new"}', 0), b"b": None, b"c": None})
    assert keys(index, "old") == [b"a", b"b"]  # not before the commit
    index.commit(2)
    assert keys(index, "old") == []
    assert keys(index, "new") == [b"a"]
    index.write({b"a": (b'{"body": "new"}', 0)})  # a replay
    index.commit(2)
    assert page(index).total == 1


def test_clear(tmp_path):
    index = make(tmp_path / "i", {b"a": {"body": "old"}})
    index.clear()
    index.write({b"b": (b'{"body": "old"}', 0)})
    index.commit(2)
    assert keys(index, "old") == [b"b"]


@pytest.mark.parametrize("commits", [1, 3, 7])
def test_equal_scores_are_in_key_order_wherever_they_lie(tmp_path, commits):
    names = [b"k%04d" % i for i in range(400)]
    random.Random(commits).shuffle(names)
    bodies = {name: {"body": "x y" if int(name[1:]) % 4 == 0 else "x y z"} for name in names}
    index = make(tmp_path / "i", bodies, commits=commits)
    short = sorted(name for name in names if int(name[1:]) % 4 == 0)
    longer = sorted(set(names) - set(short))
    for limit in (1, 7, 64, 150, 400):
        assert [each.key for each in all_pages(index, "x", "", limit)] == short + longer
        assert [each.key for each in all_pages(index, "*", "", limit)] == sorted(names)


@pytest.mark.parametrize("sort", ["n", "-n", "x", "tag", "-tag", "on", "at"])
@pytest.mark.parametrize("commits", [1, 4])
def test_sorting_puts_missing_last_and_equal_ones_by_key(tmp_path, sort, commits):
    rng = random.Random(5)
    values = {
        "n": [-(2**63), -1, 0, 7, 2**63 - 1],
        "x": [-1.5, 0.0, 1e300],
        "tag": ["", "a", "b c", "é"],
        "on": [False, True],
        "at": ["1969-01-01", "2020-01-01T00:00:00.000001Z", "2020-01-01"],
    }[sort.removeprefix("-")]
    name = sort.removeprefix("-")
    documents = {}
    for i in range(300):
        value = rng.choice([*values, None])
        documents[b"%03d" % rng.randrange(1000)] = {"n": i} | ({name: value})
    index = make(tmp_path / "i", documents, commits=commits)
    present = [(documents[key][name], key) for key in documents if documents[key][name] is not None]
    missing = sorted(key for key in documents if documents[key][name] is None)
    present.sort(key=lambda each: each[1])
    rank = values.index if name == "at" else None
    order = {"1969-01-01": 0, "2020-01-01": 1, "2020-01-01T00:00:00.000001Z": 2} if rank else None
    present.sort(key=lambda each: order[each[0]] if order else each[0], reverse=sort.startswith("-"))
    expected = [key for _, key in present] + missing
    for limit in (3, 50, 300):
        assert [each.key for each in all_pages(index, "*", sort, limit)] == expected


@pytest.mark.parametrize(
    "sort",
    [
        "tag,-n",
        "-tag:missing_first,x",
        "n:missing_first,-tag,x:missing_first",
        "on,-_key",
        "-n:missing_first,_score",
        "tag,_score,-n",
        "_score,tag:missing_first,-_key",
        "_score,-n",
        "_key",
        "-_key",
    ],
)
@pytest.mark.parametrize("commits", [1, 4])
def test_sorting_by_several_keys(tmp_path, sort, commits):
    """Every page of every size equals a part of the whole, sorted here by one key after the other."""
    rng = random.Random(7)
    choices = {
        "tag": ["", "a", "b c", "\u00e9", None],
        "n": [-1, 0, 7, None],
        "x": [-1.5, 0.0, None],
        "on": [True, False, None],
    }
    documents = {
        b"%04d" % rng.randrange(10_000): {"body": "word " * rng.randrange(1, 4)}
        | {name: rng.choice(values) for name, values in choices.items()}
        for _ in range(260)
    }
    index = make(tmp_path / "i", documents, commits=commits)
    scores = {found.key: found.score for found in page(index, "word", limit=300).found}
    expected = sorted(documents)
    for key in reversed(sort.split(",")):
        name = key.removeprefix("-").removesuffix(":missing_first")
        given = {each: {"_key": each, "_score": -scores[each]}.get(name, documents[each].get(name)) for each in documents}
        present = sorted((each for each in expected if given[each] is not None), key=given.get, reverse=key.startswith("-"))
        missing = [each for each in expected if given[each] is None]
        expected = missing + present if key.endswith(":missing_first") else present + missing
    for limit in (3, 41, 300):
        assert [each.key for each in all_pages(index, "word", sort, limit)] == expected


def test_paging_by_score_ends_with_an_error_where_it_cannot_be_right(tmp_path, monkeypatch):
    monkeypatch.setattr(text_search, "TIE_WINDOW", 100)
    monkeypatch.setattr(text_search, "_TIES_MANY", 10)
    index = make(tmp_path / "i", {b"%04d" % i: {"body": "x y" if i % 2 else "x y z"} for i in range(400)})
    found, after = [], None
    for _ in range(4):
        found += page(index, "x", "", 40, after, len(found)).found
        after = found[-1].after
    assert [each.key for each in found] == [b"%04d" % i for i in range(1, 320, 2)], "equal ones in key order beyond the window"
    with pytest.raises(InvalidArgument) as caught:
        all_pages(index, "x", "_score,n", 40)
    assert (caught.value.details.field, caught.value.details.limit) == ("token", 10_000)


def test_sort_values(tmp_path):
    index = make(tmp_path / "i", {b"a": {"tag": ["z", "a"], "at": "1970-01-01T00:00:01Z", "on": True, "x": 1, "n": 3}})
    for sort, value in {"tag": "z", "at": 1_000_000, "on": 1, "x": 1.0, "-n": 3}.items():
        assert page(index, sort=sort).found[0].values == (value,)
    assert page(make(tmp_path / "j", {b"a": {}}), sort="tag").found[0].values == (None,)


def test_expired_documents_are_left_out(tmp_path):
    index = TextIndex.create(tmp_path / "i", SCHEMA, slot_of)
    index.write({b"a": (b"{}", 1000), b"b": (b"{}", 2000), b"c": (b"{}", 0)})
    index.commit(1)
    assert keys(index) == [b"a", b"b", b"c"]
    assert keys(index, expired_at_ms=999) == [b"a", b"b", b"c"]
    assert keys(index, expired_at_ms=1000) == [b"b", b"c"]
    assert page(index, expired_at_ms=5000).total == 1


def test_facets(tmp_path):
    documents = {b"%d" % i: {"tag": ["all", "all", f"t{i % 3}"], "body": "x"} for i in range(30)}
    index = make(tmp_path / "i", documents, commits=2)
    view = IndexView(index.searcher(), index.fields, SCHEMA, index.parse)
    query = index.compiler.compile(prepare("x", SCHEMA), [], None)
    counts = view.facets(query, ["tag"], 10)["tag"]
    assert (counts.values, counts.error) == ({"all": 30, "t0": 10, "t1": 10, "t2": 10}, 0)
    cut = view.facets(query, ["tag"], 2)["tag"]
    assert cut.values["all"] == 30
    assert cut.error == 10  # a value missing here has at most as many as the last one
    assert view.facets(query, [], 10) == {}


def test_facets_that_segments_cut_are_counted_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("leaf.text_search._FACET_SEGMENT_FACTOR", 1)
    monkeypatch.setattr("leaf.text_search._FACET_SEGMENT_MARGIN", 0)
    index = TextIndex.create(tmp_path / "i", SCHEMA, slot_of)
    for at, counts in enumerate(({"a": 10, "b": 9, "c": 8}, {"c": 6, "d": 5, "a": 4, "b": 3})):
        tags = [tag for tag, count in counts.items() for _ in range(count)]
        index.write({b"%d-%d" % (at, n): (json.dumps({"tag": tag}).encode(), 0) for n, tag in enumerate(tags)})
        index.commit(at + 1)
    assert index.searcher().num_segments == 2
    view = IndexView(index.searcher(), index.fields, SCHEMA, index.parse)
    counts = view.facets(index.compiler.compile(prepare("*", SCHEMA), [], None), ["tag"], 2)["tag"]
    right = {"a": 14, "b": 12, "c": 14, "d": 5}
    assert counts.values == {value: right[value] for value in counts.values}
    assert len(counts.values) == 2
    assert all(right[value] <= counts.error for value in right.keys() - counts.values)


def test_reopening_finds_what_was_committed(tmp_path):
    index = make(tmp_path / "i", {b"a": {"body": "hello"}})
    index.write({b"b": (b'{"body": "hello"}', 0)})  # never committed
    index.discard_changes()
    index.close_writer()
    again = TextIndex.open(tmp_path / "i", dict(reversed(SCHEMA.items())), slot_of)
    assert again.indexed_through == 1
    assert keys(again, "hello") == [b"a"]
    again.write({b"b": (b'{"body": "hello"}', 0)})
    again.commit(9)
    assert again.has_writer
    again.close_writer()
    assert not again.has_writer
    assert TextIndex.open(tmp_path / "i", SCHEMA, slot_of).indexed_through == 9


def segment_files(path, suffix):
    return sorted((path / "segments").glob(f"*{suffix}"))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "no folder": lambda path: remove_index(path),
    "no sidecar": lambda path: (path / "indexed.json").unlink(),
    "empty sidecar": lambda path: (path / "indexed.json").write_text(""),
    "wrong sidecar": lambda path: (path / "indexed.json").write_text('{"format": 1, "schema": "x", "indexed_through": 1}'),
    "no segments": lambda path: [file.unlink() for file in (path / "segments").iterdir()],
    "no meta": lambda path: (path / "segments" / "meta.json").unlink(),
    "garbage meta": lambda path: (path / "segments" / "meta.json").write_text("garbage"),
    "a missing file": lambda path: segment_files(path, ".idx")[0].unlink(),
    "a missing store": lambda path: segment_files(path, ".store")[0].unlink(),
    "a truncated file": lambda path: truncate(segment_files(path, ".term")[0]),
    "a truncated store": lambda path: truncate(segment_files(path, ".store")[0]),
    "garbage": lambda path: segment_files(path, ".fast")[0].write_bytes(b"\x07" * 500),
    "a file in its place": lambda path: (remove_index(path), path.write_text("x")),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_when_opening(tmp_path, kind):
    path = tmp_path / "i"
    make(path, {b"a": {"body": "hello"}}).close_writer()
    DAMAGE[kind](path)
    with pytest.raises(IndexFailed) as caught:
        TextIndex.open(path, SCHEMA, slot_of)
    assert caught.value.is_damage
    assert keys(make(path, {b"b": {"body": "hello"}}), "hello") == [b"b"]


def test_another_schema_is_damage(tmp_path):
    make(tmp_path / "i", {b"a": {}}).close_writer()
    with pytest.raises(IndexFailed) as caught:
        TextIndex.open(tmp_path / "i", SCHEMA | {"more": "text"}, slot_of)
    assert caught.value.is_damage


def test_a_document_that_does_not_fit_is_left_out_alone(tmp_path):
    index = TextIndex.create(tmp_path / "i", SCHEMA, slot_of)
    index.write({b"a": (b'{"n": 1}', 0), b"b": (b'{"n": "x"}', 0), b"c": (b"garbage", 0), b"d": (b"[]", 0), b"e": (b"{}", 0)})
    index.commit(1)
    assert keys(index) == [b"a", b"b", b"e"]
    assert index.misfits == {"n": 1, "": 2}
    index.close_writer()
    assert TextIndex.open(tmp_path / "i", SCHEMA, slot_of).misfits == {"n": 1, "": 2}


@pytest.mark.parametrize("value", ["", "a b", "é\n\x00", "\U0010ffff" * 8191])
def test_keyword_terms(tmp_path, value):
    assert keyword_of(keyword_term(value)) == value
    index = make(tmp_path / "i", {b"a": {"tag": value}, b"b": {"tag": "other"}})
    view = IndexView(index.searcher(), index.fields, SCHEMA, index.parse)
    counts = view.facets(index.compiler.compile(prepare("*", SCHEMA), [], None), ["tag"], 10)["tag"]
    assert counts.values == {value: 1, "other": 1}


def halves(keys, at_slot=1 << 15):
    return {key for key in keys if slot_of(key) < at_slot}, {key for key in keys if slot_of(key) >= at_slot}


def found_in(index):
    return {found.key for found in page(index, limit=1_000).found}


@pytest.mark.parametrize("commits", [1, 5])
def test_a_fork_and_what_is_left_have_each_their_documents(tmp_path, commits) -> None:
    documents = {b"k%02d" % n: {"body": f"word w{n}", "n": n} for n in range(60)}
    index = make(tmp_path / "parent", documents, commits=commits)
    index.fork(tmp_path / "child", 1 << 15, (1 << 16) - 1, 77, slot_of)
    index.cut((1 << 15) - 1)
    index.commit(commits)
    low, high = halves(documents)
    for at in ("now", "reopened"):
        child = TextIndex.open(tmp_path / "child", SCHEMA, slot_of)
        if at == "reopened":
            index = TextIndex.open(tmp_path / "parent", SCHEMA, slot_of)
        assert (found_in(index), found_in(child)) == (low, high)
        assert (index.last_slot, child.last_slot, child.indexed_through) == ((1 << 15) - 1, (1 << 16) - 1, 77)
    child.write({b"new": (b'{"n": 1}', 0)})
    child.commit(78)
    index.write(dict.fromkeys(low))
    index.commit(commits + 1)
    child.close_writer()
    index.close_writer()
    assert found_in(TextIndex.open(tmp_path / "child", SCHEMA, slot_of)) == {*high, b"new"}
    assert found_in(TextIndex.open(tmp_path / "parent", SCHEMA, slot_of)) == set()


def test_a_search_leaves_out_what_has_left_before_it_is_removed(tmp_path) -> None:
    documents = {b"k%02d" % n: {"body": "word"} for n in range(40)}
    index = make(tmp_path / "i", documents)
    query = index.compiler.compile(prepare("word", index.schema), [], None, (1 << 15) - 1)
    view = IndexView(index.searcher(), index.fields, index.schema, index.parse)
    result = view.page(query, BY_SCORE, 100)
    assert {found.key for found in result.found} == halves(documents)[0]
    assert result.total == len(halves(documents)[0])


def test_a_cut_that_was_not_committed_is_forgotten(tmp_path) -> None:
    documents = {b"k%02d" % n: {"body": "word"} for n in range(10)}
    index = make(tmp_path / "i", documents)
    index.cut((1 << 15) - 1)
    index.discard_changes()
    index.commit(2)
    assert index.last_slot == (1 << 16) - 1
    assert found_in(TextIndex.open(tmp_path / "i", SCHEMA, slot_of)) == set(documents)


def test_a_fork_of_a_fork_is_cut_on_both_sides(tmp_path) -> None:
    documents = {b"k%02d" % n: {"body": "word"} for n in range(60)}
    index = make(tmp_path / "i", documents)
    index.fork(tmp_path / "middle", 1 << 14, (1 << 15) - 1, 5, slot_of)
    assert found_in(TextIndex.open(tmp_path / "middle", SCHEMA, slot_of)) == {
        key for key in documents if 1 << 14 <= slot_of(key) < 1 << 15
    }


@pytest.mark.parametrize("sort", ["", "n", "-tag"])
def test_a_search_looks_between_slices_whether_it_is_wanted(tmp_path, sort):
    """Equal documents beyond the page make it read keys and search again; it stops at whichever look says so."""
    index = make(tmp_path / "i", {b"%04d" % i: {"body": "x", "n": 1, "tag": "t"} for i in range(300)})
    query = index.compiler.compile(prepare("x", SCHEMA), [], None)

    class Unwanted(Exception):
        pass

    def looks(allowed):
        left = iter(range(allowed))

        def check():
            if next(left, None) is None:
                raise Unwanted

        return check

    needed = 0
    while True:
        try:
            view = IndexView(index.searcher(), index.fields, SCHEMA, index.parse, looks(needed))
            view.page(query, parse_sort(sort), 100)
            break
        except Unwanted:
            needed += 1
    assert needed >= 2


def test_a_key_that_is_written_again_before_the_commit_is_one_document(tmp_path):
    index = make(tmp_path / "i", {b"known": {"body": "old"}})
    for word in ("first", "second"):
        index.write({key: (json.dumps({"body": word}).encode(), 0) for key in (b"known", b"new")})
    index.write({b"gone": (b'{"body": "first"}', 0)})
    index.write({b"gone": None})
    index.commit(2)
    assert keys(index, "old OR first") == []
    assert keys(index, "second") == [b"known", b"new"]
    assert page(index).total == 2


def test_more_keys_between_two_commits_than_are_remembered_are_one_document_each(tmp_path, monkeypatch):
    monkeypatch.setattr(text_index, "UNCOMMITTED_MAX", 2)
    index = make(tmp_path / "i", {})
    for word in ("first", "second"):
        index.write({b"%d" % number: (json.dumps({"body": word}).encode(), 0) for number in range(5)})
    index.commit(2)
    assert page(index).total == 5
    index.write({b"0": (b'{"body": "third"}', 0)})
    index.commit(3)
    assert page(index).total == 5


def test_what_a_failed_commit_wrote_is_not_written_twice(tmp_path, monkeypatch):
    index = make(tmp_path / "i", {})
    index.write({b"a": (b'{"body": "once"}', 0)})
    reload_index = index._index.reload

    class FailsToReload:
        def __getattr__(self, name):
            return getattr(real, name)

        def reload(self):
            raise OSError("too many open files")

    real, index._index = index._index, FailsToReload()
    with pytest.raises(IndexFailed):
        index.commit(1)
    index._index = real
    index.write({b"a": (b'{"body": "once"}', 0)})
    index.commit(1)
    reload_index()
    assert page(index).total == 1
