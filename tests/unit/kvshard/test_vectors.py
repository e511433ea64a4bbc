"""Vector fields: types, vectors that fit them, wishes for the nearest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshard.errors import InvalidArgument
from kvshard.schema import parse_schema, validate_document
from kvshard.vectors import (
    COSINE,
    DOT,
    K_LEAST,
    L2,
    NEAREST_MAX,
    VECTOR_MAX_DIM,
    Nearest,
    VectorType,
    check_nearest,
    check_vector,
    parse_vector_type,
    vector_bytes,
    vector_of,
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("vector(3)", VectorType(3, COSINE)),
        ("vector( 384 , dot )", VectorType(384, DOT)),
        ("vector(4096,l2)", VectorType(4096, L2)),
        ("vector(8,cosine)", VectorType(8, COSINE)),
    ],
)
def test_types(text: str, wanted: VectorType) -> None:
    assert parse_vector_type(text) == wanted
    assert parse_vector_type(wanted.text) == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("vector", "written vector"),
        ("vector()", "written vector"),
        ("vector(x)", "written vector"),
        ("vector(3,cosine,1)", "written vector"),
        ("vector(0)", "1 to 4096"),
        (f"vector({VECTOR_MAX_DIM + 1})", "1 to 4096"),
        ("vector(3,manhattan)", "no metric; known are cosine, dot, l2"),
    ],
)
def test_wrong_types(text: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why) as caught:
        parse_schema({"title": "text", "at": text})
    assert caught.value.details.field == "schema.at"


def test_a_schema_holds_the_type_as_it_is_written_shortest() -> None:
    assert parse_schema({"at": "vector( 3, cosine)"}) == {"at": "vector(3)"}


@pytest.mark.parametrize(
    ("given", "field", "why"),
    [
        ("text", "document.at", "a list of 2 numbers"),
        (1.0, "document.at", "a list of 2 numbers"),
        ([1.0], "document.at", "2 components, not 1"),
        ([1.0, 2.0, 3.0], "document.at", "2 components, not 3"),
        ([1.0, "2"], "document.at", "finite number"),
        ([1.0, True], "document.at", "finite number"),
        ([1.0, None], "document.at", "finite number"),
        ([1e16, 0.0], "document.at", "finite number"),
        ([0, 0.0], "document.at", "zeros"),
        ([1e-30, 0.0], "document.at", "zeros"),
    ],
)
def test_documents_that_do_not_fit(given: object, field: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why) as caught:
        validate_document({"at": "vector(2)"}, b"", lambda _: {"at": given})
    assert caught.value.details.field == field


def test_a_document_without_a_vector_fits() -> None:
    schema = {"at": "vector(2,l2)", "n": "integer"}
    for document in ({"at": None, "n": 1}, {"at": [0, 0]}, {"at": [1, 2.5], "n": [1, 2]}, {}):
        assert validate_document(schema, b"", lambda _, found=document: found) == document  # type: ignore[misc]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_packed_vectors_come_back(vector: list[float]) -> None:
    assert vector_of(vector_bytes(vector)) == vector


class TestNearest:
    SCHEMA = {"title": "text", "at": "vector(2)"}

    def test_a_wish_that_fits(self) -> None:
        assert check_nearest(self.SCHEMA, "at", 2, NEAREST_MAX) == VectorType(2, COSINE)

    @pytest.mark.parametrize(
        ("name", "dim", "k", "field", "why"),
        [
            ("title", 2, 1, "nearest.field", "the collection's are at"),
            ("nowhere", 2, 1, "nearest.field", "no vector field"),
            ("at", 3, 1, "nearest.vector", "2 components, as at has, not 3"),
            ("at", 2, NEAREST_MAX + 1, "nearest.k", "1 to 1000"),
        ],
    )
    def test_wishes_that_do_not(self, name: str, dim: int, k: int, field: str, why: str) -> None:
        with pytest.raises(InvalidArgument, match=why) as caught:
            check_nearest(self.SCHEMA, name, dim, k)
        assert caught.value.details.field == field

    def test_how_many(self) -> None:
        assert Nearest("at", [1.0]).wanted(10) == K_LEAST
        assert Nearest("at", [1.0]).wanted(50) == 50
        assert Nearest("at", [1.0], k=3).wanted(50) == 3


def test_what_counts_as_a_vector() -> None:
    assert check_vector(VectorType(2, DOT), (1, 0), "x") == [1.0, 0.0]
    with pytest.raises(InvalidArgument):
        check_vector(VectorType(2, DOT), b"ab", "x")
