"""Documents are cut down to the fields asked for, and nothing else of them changes."""

import json

import pytest

from leaf.projection import Projection

DOCUMENT = {
    "title": "t",
    "year": 2**63,
    "none": None,
    "author": {"name": "n", "home": {"city": "c", "zip": 1}},
    "list": [{"a": 1, "b": 2}, 3, {"b": 4}, [{"a": 5}]],
    "a.b": "literal",
    "a": {"b": "nested", "c": 1},
}


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["title"], {"title": "t"}),
        (["year", "title"], {"year": 2**63, "title": "t"}),
        (["none"], {"none": None}),
        (["nothing", "title.x", "author.x", "list.x"], {}),
        (["author.name"], {"author": {"name": "n"}}),
        (["author.home.city", "author.name"], {"author": {"home": {"city": "c"}, "name": "n"}}),
        (["author.home", "author.home.city"], {"author": {"home": {"city": "c", "zip": 1}}}),
        (["author", "author.name"], {"author": DOCUMENT["author"]}),
        (["author.name", "author"], {"author": DOCUMENT["author"]}),
        (["list.a"], {"list": [{"a": 1}, [{"a": 5}]]}),
        (["a.b"], {"a.b": "literal"}),
        (["a.c"], {"a": {"c": 1}}),
        (["."], {}),
        (["title", "title"], {"title": "t"}),
    ],
)
def test_what_is_kept(paths, expected):
    assert json.loads(Projection(paths).cut(json.dumps(DOCUMENT).encode())) == expected


def test_values_are_copied_as_they_stand():
    document = b'{"x": 1.10000000000000000000001, "y":  [1 ,2], "z": {"deep": "\\u00e9"}}'
    assert (
        Projection(["x", "y", "z.deep"]).cut(document) == b'{"x":1.10000000000000000000001,"y":[1 ,2],"z":{"deep":"\\u00e9"}}'
    )


def test_spaces_before_an_object_do_not_hide_it():
    assert Projection(["a.b"]).cut(b'{"a":  \n {"b": 1}}') == b'{"a":{"b":1}}'
