"""Merging hits equals sorting the whole; coverage keeps its identity; facet counts stay within their stated error."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kvshard.collapsing import group_digest, group_sizes, shown_after, shown_digests
from kvshard.errors import Unavailable, record_of
from kvshard.model import SearchAfter, ShardHit, ShardSearchReply, changed
from kvshard.scatter.coverage import FailedLeg, coverage_of, shortfall
from kvshard.scatter.merge import merge_facet, merge_hits, used_up
from kvshard.scatter.tokens import SearchPosition, TokenCodec, fingerprint
from kvshard.sorting import field_keys, is_by_score, parse_sort, place_of

KEYS = st.binary(min_size=1, max_size=3)
SHARDS = 4

VALUES = {
    "year": st.one_of(st.none(), st.integers(-2, 2)),
    "tag": st.one_of(st.none(), st.sampled_from(["", "a", "b", "\u00e9"])),
    "x": st.one_of(st.none(), st.sampled_from([-1.5, 0.0, 1e300])),
}
DOCUMENT = st.tuples(st.integers(0, SHARDS - 1), st.sampled_from([0.0, 0.25, 1.5]), st.fixed_dictionaries(VALUES))
DOCUMENTS = st.dictionaries(KEYS, DOCUMENT, max_size=30)


@st.composite
def sort_texts(draw) -> str:
    names = draw(st.lists(st.sampled_from([*VALUES, "_score"]), unique=True, max_size=4))
    keys = [
        name if name == "_score" else draw(st.sampled_from(["", "-"])) + name + draw(st.sampled_from(["", ":missing_first"]))
        for name in names
    ]
    return ",".join(keys + draw(st.sampled_from([[], ["_key"], ["-_key"]])))


def expected_order(documents, text: str) -> list[bytes]:
    """The keys, sorted by the sort keys from the last to the first: Python's sort is stable."""
    order = sorted(documents)
    for key in reversed(text.split(",") if text else ["_score"]):
        name = key.removeprefix("-").removesuffix(":missing_first")
        if name == "_key":
            order.sort(reverse=key.startswith("-"))
        elif name == "_score":
            order.sort(key=lambda each: documents[each][1], reverse=True)
        else:
            present = [each for each in order if documents[each][2][name] is not None]
            missing = [each for each in order if documents[each][2][name] is None]
            present.sort(key=lambda each: documents[each][2][name], reverse=key.startswith("-"))
            order = missing + present if key.endswith(":missing_first") else present + missing
    return order


def shard_replies(documents, text: str, after, limit: int, deliver) -> dict[int, ShardSearchReply]:
    """What shards answer that look at their own documents alone. deliver: how many of its hits a shard delivers at most."""
    sorts = parse_sort(text)
    place, names = place_of(sorts), [key.name for key in field_keys(sorts)]
    replies = {}
    for shard in range(SHARDS):
        own = [
            ShardHit(key, score, b"", 1, [values[name] for name in names])
            for key, (at, score, values) in documents.items()
            if at == shard
        ]
        own.sort(key=lambda hit: place(hit.sort_values, hit.score, hit.key))
        begin = None if after is None else place(after.values, after.score, after.key)
        behind = [hit for hit in own if begin is None or place(hit.sort_values, hit.score, hit.key) > begin]
        given_hits = behind[: min(limit, deliver(shard))]
        replies[shard] = ShardSearchReply(given_hits, len(own), len(own), has_more=len(behind) > len(given_hits))
    return replies


def pages(text: str, limit: int, documents_of, deliver=lambda shard: 1_000) -> list[bytes]:
    """The keys of all pages. documents_of: what there is when the page with this number is asked for."""
    codec, request, sorts = TokenCodec("c"), fingerprint([b"q"]), parse_sort(text)
    position, seen = SearchPosition(), []
    for number in range(200):
        replies = shard_replies(documents_of(number), text, position.after, limit, deliver)
        page = merge_hits(replies, sorts, limit, 1_000)
        seen.extend(hit.key for _, hit in page.hits)
        if not page.has_more:
            return seen
        assert page.hits
        assert len(page.hits) == limit or page.is_cut
        last = page.hits[-1][1]
        reached = SearchPosition(SearchAfter(last.sort_values, last.score, last.key), position.taken + len(page.hits))
        position = codec.decode_search(codec.encode_search(1, request, reached), 1, request)
        assert position == reached
    raise AssertionError("the pages do not end")


@given(documents=DOCUMENTS, text=sort_texts(), limit=st.integers(1, 7), deliver=st.lists(st.integers(1, 7), min_size=SHARDS))
def test_pages_of_hits_equal_sort(documents, text: str, limit: int, deliver) -> None:
    """Paged to the end, every hit comes once, in the order of the whole, even if shards deliver less than was asked for."""
    order = expected_order(documents, text)
    whole = merge_hits(shard_replies(documents, text, None, 99, lambda _: 99), parse_sort(text), 99, 10**9)
    assert [hit.key for _, hit in whole.hits] == order
    assert pages(text, limit, lambda _: documents) == order
    assert pages(text, limit, lambda _: documents, lambda shard: deliver[shard]) == order


@given(
    documents=DOCUMENTS,
    text=sort_texts(),
    limit=st.integers(1, 7),
    deliver=st.lists(st.integers(0, 7), min_size=SHARDS),
    has_bounds=st.booleans(),
)
def test_a_short_page_is_made_whole_by_the_shards_that_are_used_up(
    documents, text: str, limit: int, deliver, has_bounds: bool
) -> None:
    """Asked once more, all of them together, for as many hits as the page has."""
    sorts = parse_sort(text)
    whole = shard_replies(documents, text, None, limit, lambda _: limit)
    replies = shard_replies(documents, text, None, limit, lambda shard: deliver[shard])
    if has_bounds and is_by_score(sorts):
        for shard, reply in replies.items():
            kept_back = [hit.score for hit in shard_replies(documents, text, None, 99, lambda _: 99)[shard].hits]
            least = next(
                (score for score in sorted({*kept_back, 2.0}) if score > max(kept_back[len(reply.hits) :], default=0)), 2.0
            )
            replies[shard] = changed(reply, complete_to=least if reply.has_more else None)
    page, asked = merge_hits(replies, sorts, limit, 10**9), used_up(replies, sorts, limit)
    assert page.is_short == bool(asked)
    right = merge_hits(whole, sorts, limit, 10**9)
    assert page.hits == right.hits[: len(page.hits)]
    again = merge_hits(replies | {shard: whole[shard] for shard in asked}, sorts, limit, 10**9)
    assert (again.hits, again.has_more, again.is_short) == (right.hits, right.has_more, False)


@given(
    stay=DOCUMENTS,
    come_and_go=st.lists(DOCUMENTS, min_size=1, max_size=6),
    homes=st.lists(st.integers(0, SHARDS - 1), min_size=30, max_size=30),
    text=sort_texts(),
    limit=st.integers(1, 5),
)
def test_what_is_there_throughout_is_on_one_page_exactly(stay, come_and_go, homes, text: str, limit: int) -> None:
    """While others are written and deleted between the pages, and those that stay move to other shards by splits."""
    moved = {key: (home, *rest) for (key, (_, *rest)), home in zip(stay.items(), homes, strict=False)}

    def documents_of(number: int):
        others = come_and_go[number % len(come_and_go)] if number < 20 else {}
        return others | (stay if number % 2 else moved)

    seen = [key for key in pages(text, limit, documents_of) if key in stay]
    assert seen == expected_order(stay, text)


def collapsed_replies(documents, text: str, position: SearchPosition, limit: int) -> dict[int, ShardSearchReply]:
    """What shards answer to a collapsed search: the first hit of each of their groups that was not shown before."""
    shown = shown_digests(position.shown)
    replies = {}
    for shard, reply in shard_replies(documents, text, position.after, 1_000, lambda _: 1_000).items():
        firsts: dict[object, ShardHit] = {}
        sizes = Counter(values["year"] for at, _, values in documents.values() if at == shard)
        for hit in reply.hits:
            group = documents[hit.key][2]["year"]
            if group not in firsts and group_digest(group) not in shown:
                firsts[group] = changed(hit, group=group, group_size=sizes[group])
        found = list(firsts.values())
        replies[shard] = ShardSearchReply(found[:limit], 0, 0, has_more=len(found) > limit)
    return replies


@given(documents=DOCUMENTS, text=sort_texts(), limit=st.integers(1, 4))
def test_pages_of_a_collapsed_search_have_the_first_hit_of_each_group(documents, text: str, limit: int) -> None:
    sizes = Counter(values["year"] for _, _, values in documents.values())
    expected = {documents[key][2]["year"]: key for key in reversed(expected_order(documents, text))}
    order = [key for key in expected_order(documents, text) if expected[documents[key][2]["year"]] == key]
    position, seen = SearchPosition(), []
    for _ in range(40):
        replies = collapsed_replies(documents, text, position, limit)
        page = merge_hits(replies, parse_sort(text), limit, 1_000, is_collapsed=True)
        hits = [hit for _, hit in page.hits]
        for size in group_sizes(hits, replies):
            assert size.count == sizes[size.value] if size.is_exact else size.count <= sizes[size.value]
        seen += [hit.key for hit in hits]
        if not page.has_more:
            break
        last = hits[-1]
        after = SearchAfter(last.sort_values, last.score, last.key)
        position = SearchPosition(after, len(seen), shown=shown_after(position.shown, hits))
    assert seen == order


@given(
    answered=st.dictionaries(st.integers(0, 20), st.integers(0, 50)),
    silent=st.sets(st.integers(0, 20)),
    known=st.dictionaries(st.integers(0, 20), st.integers(0, 50)),
    min_coverage=st.floats(0, 1),
)
def test_coverage_identity(answered, silent, known, min_coverage) -> None:
    failed = [FailedLeg(shard, record_of(Unavailable("down"))) for shard in silent - answered.keys()]
    coverage = coverage_of(answered, failed, known.get)
    coverage.check_invariants()
    assert coverage.legs == coverage.legs_ok + len(coverage.failed)
    assert coverage.is_complete == (not failed)
    assert (coverage.fraction == 1.0) == coverage.is_complete
    error = shortfall(coverage, min_coverage)
    assert (error is not None) == (bool(failed) and coverage.fraction < min_coverage)
    assert error is None or set(error.details.shards) == {leg.shard for leg in failed}


@given(
    shards=st.lists(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9)), min_size=1, max_size=4),
    listed=st.integers(1, 4),
    limit=st.integers(1, 4),
)
def test_facet_counts_are_within_their_error(shards, listed: int, limit: int) -> None:
    replies = []
    for counts in shards:
        best = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        cut = best[listed:]
        error = cut[0][1] if cut else 0
        replies.append(ShardSearchReply([], 0, 0, {"tag": dict(best[:listed])}, {"tag": error}))
    merged = merge_facet("tag", replies, limit)
    true_counts = Counter()
    for counts in shards:
        true_counts.update(counts)
    for value, count in merged.values:
        assert count <= true_counts[value] <= count + merged.error_bound
