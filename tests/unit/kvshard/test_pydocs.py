"""Documentation read from sources: what becomes a document, in which order, under which key."""

import sys
from pathlib import Path

import pytest

from kvshard.cli.pydocs import SCHEMA, documents, parse_source, source_files, source_roots

SOURCE = '''"""A module."""
import os

class Ring(Base, metaclass=Meta):
    """A ring."""

    def add(self, leaf: str, *, weight: float = 1.0) -> None:
        """Add a leaf."""

    @property
    def size(self):
        # How many leaves there are.
        return 1

    class _Point:
        """Inner."""

if os.name == "nt":
    def token(key): "First arm."
else:
    async def token(key):
        """Second arm."""
        def inner():
            """Nested."""

# The block above a function, which has no docstring.
@decorator
def commented(): return 1

def bare(a, /, b=2, *args, c, **rest): return 1  # noqa
'''


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def test_every_kind_of_definition():
    found = [(item.name, item.kind, item.signature, item.doc, item.line) for item in parse_source(SOURCE, "lib.ring")]
    assert found == [
        ("lib.ring", "module", "import lib.ring", "A module.", 1),
        ("Ring", "class", "class Ring(Base, metaclass=Meta)", "A ring.", 4),
        ("Ring.add", "method", "def add(self, leaf: str, *, weight: float=1.0) -> None", "Add a leaf.", 7),
        ("Ring.size", "method", "def size(self)", "How many leaves there are.", 11),
        ("Ring._Point", "class", "class _Point", "Inner.", 15),
        ("token", "function", "def token(key)", "First arm.", 19),
        ("token", "function", "async def token(key)", "Second arm.", 21),
        ("token.<locals>.inner", "function", "def inner()", "Nested.", 23),
        ("commented", "function", "def commented()", "The block above a function, which has no docstring.", 28),
        ("bare", "function", "def bare(a, /, b=2, *args, c, **rest)", "", 30),
    ]


def test_document_fits_the_schema():
    types = {"keyword": str, "text": str, "integer": int, "boolean": bool}
    for item in parse_source(SOURCE, "lib.ring"):
        document = item.document()
        assert set(document) == set(SCHEMA)
        assert all(type(document[name]) is types[kind] for name, kind in SCHEMA.items())
        assert document["length"] == len(item.doc)
        assert document["package"] == "lib"


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("a.b", "def f(): 'x'", True),
        ("a._b", "def f(): 'x'", False),
        ("a.b", "def _f(): 'x'", False),
        ("a.b", "def __f(): 'x'", False),
        ("a.b", "def __init__(): 'x'", True),
    ],
)
def test_public_means_no_underscore_on_the_way(module, source, expected):
    assert parse_source(source, module)[1].is_public is expected


def test_order_docstrings_then_comments_then_tests_then_signatures(tmp_path):
    root = write(
        tmp_path,
        {
            "zoo.py": "def bare(): pass\ndef commented():\n    # four words of comment\n    pass\ndef told():\n    'doc'",
            "pkg/__init__.py": "'package doc'",
            "pkg/tests/test_it.py": "def test_it():\n    'tested'",
        },
    )
    expected = ["zoo:told", "pkg:", "zoo:commented", "pkg.tests.test_it:test_it", "zoo:bare"]
    assert [key for key, _ in documents(100, [root])][:5] == expected
    assert [key for key, _ in documents(2, [root])] == expected[:2]
    assert list(documents(0, [root])) == []


def test_keys_are_unique(tmp_path):
    root = write(tmp_path, {"m.py": "def f(): 'one'\ndef f(): 'two'\ndef f(): 'three'", "f.py": "'doc'"})
    assert [(key, document["doc"]) for key, document in documents(9, [root])] == [
        ("f:", "doc"),
        ("m:f", "one"),
        ("m:f#2", "two"),
        ("m:f#3", "three"),
    ]


def test_sources_that_are_no_python_cost_only_themselves(tmp_path):
    root = write(
        tmp_path,
        {
            "broken.py": "def f(:",
            "old.py": "print 'python 2'",
            "latin.py": "# -*- coding: latin-1 -*-\n'''caf\xe9'''".encode("latin-1"),
            "undeclared.py": b"'''caf\xe9'''",
            "null.py": b"'doc'\x00",
            "deep.py": "x = " + "(" * 5000 + ")" * 5000,
            "huge.py": "'''doc'''\n" + "#" * (2 * 1024 * 1024),
            "escape.py": "'''doc \\d'''",
            "surrogate.py": "'doc \\ud800 here'",
            "formfeed.py": "\x0c\ndef f():\n    # comment of four words\n    pass",
            "good.py": "'''good'''",
        },
    )
    found = {key: document["doc"] for key, document in documents(100, [root])}
    assert found == {
        "latin:": "caf\xe9",
        "escape:": "doc \\d",
        "surrogate:": "doc ? here",
        "formfeed:f": "comment of four words",
        "good:": "good",
    }


def test_files_that_are_no_modules_are_passed_over(tmp_path):
    names = ["a.py", "b/__init__.py", "b/c.py", "b/__main__.py", "x.dist-info/d.py", "__pycache__/e.py", "f-g.py", "h.txt"]
    names += ["i.pyi", "a.pyi", "__init__.py"]
    root = write(tmp_path, dict.fromkeys(names, ""))
    assert [source.module for source in source_files(root)] == ["a", "i", "b", "b.c"]


def test_this_python_has_documentation_and_nothing_gets_imported():
    before = set(sys.modules)
    first = list(documents(300))
    assert first == list(documents(300))
    assert len({key for key, _ in first}) == 300
    assert all(document["length"] > 0 for _, document in first)
    assert "__future__:" in {key for key, _ in first}, "the standard library comes first"
    assert all(root.is_dir() for root in source_roots())
    assert not {str(document["module"]) for _, document in first} & (set(sys.modules) - before)
