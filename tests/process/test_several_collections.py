"""One search over several collections, in a real cluster."""

import pytest
from harness.cluster import UpProcess

from kvshard import Client, CollectionNotFound, InvalidArgument


async def test_a_search_over_several_collections(shared_cluster: UpProcess) -> None:
    async with Client(shared_cluster.address, timeout=20.0) as kv:
        books, films = kv.collection("books"), kv.collection("films")
        await books.create({"title": "text", "year": "integer", "author": "keyword"})
        await films.create({"title": "text", "year": "integer", "studio": "keyword"})
        await kv.set_alias("movies", "films")
        await books.put_many(
            {f"b{n}": {"title": "the sea", "year": 1900 + n, "author": "melville"} for n in range(20)}, refresh=True
        )
        await films.put_many(
            {f"f{n}": {"title": "the sea", "year": 1950 + n, "studio": "rko"} for n in range(20)}, refresh=True
        )
        page = await books.search("sea", collections=["movies"], limit=40)
        assert (page.total, page.complete, len(page.hits)) == (40, True, 40)
        assert {(hit.collection, hit.key[0]) for hit in page.hits} == {("books", "b"), ("films", "f")}
        by_year = await books.search("sea", collections=["films"], sort="-year", limit=25)
        assert [hit.key for hit in by_year.hits] == [
            *(f"f{n}" for n in range(19, -1, -1)),
            *(f"b{n}" for n in range(19, 14, -1)),
        ]
        mixed = await books.search("author:melville OR studio:rko", collections=["films"], facets=["author", "studio"], limit=1)
        assert mixed.total == 40
        assert {name: facet["melville" if name == "author" else "rko"] for name, facet in mixed.facets.items()} == {
            "author": 20,
            "studio": 20,
        }
        only = await books.search("sea", collections=["films"], filters=["NOT studio:rko"], limit=40)
        assert {hit.collection for hit in only.hits} == {"books"}
        for query, options, field in (
            ("nothing:x", {}, "query"),
            ("sea", {"sort": "author"}, "sort"),
            ("sea", {"next": b"x"}, "token"),
        ):
            with pytest.raises(InvalidArgument) as refused:
                await books.search(query, collections=["films"], **options)
            assert refused.value.details.field == field
        with pytest.raises(InvalidArgument, match="stands twice"):
            await films.search("sea", collections=["movies"])
        with pytest.raises(CollectionNotFound):
            await films.search("sea", collections=["none"])


@pytest.mark.parametrize("sort", ["", "-year", "_key"])
async def test_several_collections_are_paged_through_without_holes_or_repeats(shared_cluster: UpProcess, sort: str) -> None:
    async with Client(shared_cluster.address, timeout=20.0) as kv:
        books, films = kv.collection(f"paged-books{sort.strip('-_')}"), kv.collection(f"paged-films{sort.strip('-_')}")
        for docs, count in ((books, 30), (films, 12)):
            await docs.create({"title": "text", "year": "integer"})
            await docs.put_many(
                {f"d{n:02}": {"title": "the sea " * (n % 4 + 1), "year": 1900 + n % 5} for n in range(count)}, refresh=True
            )
        options = {"collections": [films.name], "sort": sort}
        whole = await books.search("sea", limit=100, **options)
        assert (len(whole.hits), whole.next) == (42, b"")
        found, token, pages = [], b"", 0
        while pages == 0 or token:
            page = await books.search("sea", limit=4, next=token, profile=True, **options)
            found += [(hit.collection, hit.key) for hit in page.hits]
            assert page.total == 42
            assert page.profile is not None
            assert {leg.collection for leg in page.profile.legs} == {books.name, films.name}
            token, pages = page.next, pages + 1
        assert found == [(hit.collection, hit.key) for hit in whole.hits]
        first = await books.search("sea", limit=4, **options)
        for other, query, changes in (
            (films, "sea", {"collections": [books.name]}),
            (books, "the", options),
            (books, "sea", {"sort": sort}),
        ):
            with pytest.raises(InvalidArgument) as refused:
                await other.search(query, limit=4, next=first.next, **changes)
            assert refused.value.details.field == "token"
