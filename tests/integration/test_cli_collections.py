"""Aliases on the command line: in process, against a fake router."""

import json
from collections.abc import Callable, Iterator

import pytest
from fakes.router_service import FakeRouter

from kvshard.cli import main

Cli = Callable[..., int]


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    with FakeRouter() as fake:
        yield fake


@pytest.fixture
def cli(router: FakeRouter) -> Cli:
    def call(*argv: str) -> int:
        return main([*argv, "--router", router.address])

    return call


def test_an_alias_is_made_moved_shown_and_removed(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("products_v1", "products_v2"):
        assert cli("collection", "create", name, "--schema", "title=text") == 0
    assert cli("collection", "alias", "products", "products_v1", "--if-collection", "") == 0
    assert router.aliases == {"products": "products_v1"}
    assert cli("collection", "alias", "products", "products_v2", "--if-collection", "products_v1") == 0
    assert "products stands for products_v2" in capsys.readouterr().out
    assert cli("collection", "list") == 0
    assert "products_v2  title=text    -        products" in capsys.readouterr().out
    assert cli("collection", "list", "--json") == 0
    rows = {row["name"]: row["aliases"] for row in json.loads(capsys.readouterr().out)}
    assert rows == {"default": [], "products_v1": [], "products_v2": ["products"]}
    assert cli("collection", "alias", "products", "--remove", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"removed": "products", "collection": "products_v2"}
    assert router.aliases == {}


@pytest.mark.parametrize(
    "fields",
    [
        ("title:text", "at:vector(3,l2)"),
        ("title=text", "at:vector(3,l2)"),
        ("--schema", "title:text, at=vector(3,l2)"),
        ("at:vector(3,l2)", "--schema", "title=text"),
    ],
)
def test_the_fields_of_a_new_collection_are_written_either_way(
    cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str], fields: tuple[str, ...]
) -> None:
    assert cli("collection", "create", "docs", *fields, "--json") == 0
    assert json.loads(capsys.readouterr().out)["schema"] == {"title": "text", "at": "vector(3,l2)"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("title",), 'a field is written as "title:text" or "title=text"; \'title\' does not fit'),
        (("title:text", "title:keyword"), "field 'title' stands there twice"),
        (("title:text", "--schema", "title=keyword"), "field 'title' stands there twice"),
        (("title:txt",), "unknown type 'txt'"),
        ((":text",), "field name ''"),
    ],
)
def test_what_fields_are_refused_for(
    cli: Cli, capsys: pytest.CaptureFixture[str], fields: tuple[str, ...], message: str
) -> None:
    assert cli("collection", "create", "docs", *fields) == 2
    assert message in capsys.readouterr().err


def test_what_an_alias_is_refused_for(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("collection", "alias", "products") == 2
    assert cli("collection", "alias", "products", "default", "--remove") == 2
    assert cli("collection", "alias", "products", "nothing") == 1
    assert cli("collection", "alias", "products", "--remove") == 1
    assert cli("collection", "alias", "products", "default") == 0
    assert cli("collection", "alias", "products", "nothing", "--if-collection", "other") == 1
    assert "stands for 'default'" in capsys.readouterr().err


def test_fields_are_added(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("collection", "create", "docs", "--schema", "title=text") == 0
    assert cli("collection", "add-field", "docs", "lang:keyword", "year=integer") == 0
    router.put(b"a", b"{}", "docs")
    assert "being indexed: title=text, lang=keyword, year=integer" in capsys.readouterr().out
    assert cli("collection", "list") == 0
    assert "reindexing 0% for lang=keyword, year=integer" in capsys.readouterr().out
    assert cli("status") == 0
    assert "reindexing" in capsys.readouterr().out
    assert cli("collection", "list", "--json") == 0
    change = {row["name"]: row["change"] for row in json.loads(capsys.readouterr().out)}["docs"]
    assert (change["version"], change["schema"]["lang"], change["waiting_for"][0]["shard"]) == (2, "keyword", 0)
    router.finish_change("docs")
    assert cli("collection", "add-field", "docs", "lang:keyword", "--wait") == 0
    assert capsys.readouterr().out.splitlines() == [
        "collection docs: title=text, lang=keyword, year=integer",
        "3 documents have a value that does not fit, and are not found by field lang",
    ]
    assert cli("collection", "add-field", "docs") == 2
    assert cli("collection", "add-field", "docs", "year:text") == 2
    assert cli("collection", "add-field", "docs", "x:nothing") == 2


def test_an_index_is_built_anew(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("collection", "create", "docs", "--schema", "title=text,body=text") == 0
    assert cli("collection", "reindex", "docs", "--field", "body=text(english)", "--field", "title:keyword", "--json") == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["change"]["schema"] == {"title": "keyword", "body": "text(english)"}
    assert cli("collection", "reindex", "docs") == 1
    assert "being changed already" in capsys.readouterr().err
    assert cli("collection", "reindex", "docs", "--cancel", "--wait") == 2
    assert cli("collection", "reindex", "docs", "--cancel") == 0
    assert capsys.readouterr().out == "collection docs: title=text, body=text\n"


def test_several_collections_are_searched(cli: Cli, router: FakeRouter) -> None:
    for name in ("docs", "notes"):
        assert cli("collection", "create", name, "--schema", "title=text") == 0
    assert cli("search", "docs,notes", "word", "--json") == 0
    request = router.requests["Search"][-1]
    assert (request.collection, list(request.collections)) == ("docs", ["notes"])
    assert cli("search", "docs,notes", "word") == 0
    assert list(router.requests["Search"][-1].highlight) == ["title"], "a field that both have is marked once"
