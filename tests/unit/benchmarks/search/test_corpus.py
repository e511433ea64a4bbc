import gzip
import itertools
import json
from pathlib import Path

import pytest

from benchmarks.search.corpus import SCHEMA, corpus, manual_sections, origins
from kvshard.schema import parse_schema, validate_document

PAGE = r""".TH LS 1
.SH NAME
ls \- list directory contents
.SH "SEE ALSO"
.B dir (1)
and \fIvdir\fR(1),
.PP
which list them \(aqtoo\(aq.
.IP "first word" 2m
.\" a comment
"""


@pytest.fixture
def manuals(tmp_path):
    folder = tmp_path / "man" / "man1"
    folder.mkdir(parents=True)
    (folder / "ls.1.gz").write_bytes(gzip.compress(PAGE.replace("list directory", "list the many directory").encode()))
    for number in range(3):
        (folder / f"git-{number}.1").write_text(PAGE.replace("list directory", f"list {number} directory"))
    (folder / "damaged.1.gz").write_bytes(b"\x1f\x8b damaged")
    return folder.parent


@pytest.fixture
def roots(tmp_path):
    package = tmp_path / "site" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""A package with\na docstring.\n\nIt has a second paragraph of some length."""\n')
    functions = [f'def f{n}():\n    """Function number {n % 5}."""\n' for n in range(10)]
    (package / "functions.py").write_text("".join(functions))
    return [tmp_path / "site"]


def test_the_sections_of_a_page_are_plain_text():
    sections = dict(manual_sections(PAGE))
    assert sections["NAME"] == "ls - list directory contents"
    assert sections["SEE ALSO"] == "dir (1)\nand vdir(1),\n\nwhich list them 'too'.\n\nfirst word"


def test_no_text_comes_twice_and_each_fits_the_schema(manuals, roots):
    texts = corpus(1_000, manuals, roots)
    docs = [text.document["doc"] for text in texts]
    assert len(set(docs)) == len(docs)
    assert len({text.key for text in texts}) == len(texts)
    for text in texts:
        validate_document(parse_schema(SCHEMA), json.dumps(text.document).encode(), json.loads)


def test_the_rest_follows_where_one_source_has_too_few(manuals, roots):
    texts = corpus(1_000, manuals, roots)
    kinds = [origin for origin, _ in itertools.groupby(text.origin for text in texts)]
    assert kinds[0] == "docstring"
    assert kinds[-1] == "paragraph"
    assert sum(text.origin == "docstring" for text in texts) == 6
    assert "6 docstrings" in origins(texts)


def test_programs_take_turns_with_their_pages(manuals, tmp_path):
    found = [text.key for text in corpus(6, manuals, [tmp_path / "nothing"])]
    assert found[0] == "man:git-0.1/1"
    assert next(key for key in found if key.startswith("man:ls")) in found[:3]


def test_half_are_manual_sections_where_there_are_enough(manuals, roots):
    assert [text.origin for text in corpus(4, manuals, roots)] == ["docstring"] * 2 + ["manual section"] * 2


def test_without_manual_pages_it_is_python_alone(roots):
    texts = corpus(1_000, Path("/there/is/none"), roots)
    assert {text.origin for text in texts} == {"docstring", "paragraph"}


def test_it_is_the_same_each_time(manuals, roots):
    assert corpus(8, manuals, roots) == corpus(8, manuals, roots)
